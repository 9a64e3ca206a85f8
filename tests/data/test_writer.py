from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import SaveImage

from bundle.data.writer import VolumeWriter

from ..conftest import volume


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1), (6, 1, 1), (1, 1, 1)], ids=str)
def test_shape_and_affine_of_the_file_are_those_of_the_volume(tmp_path, geometry, shape):
    values = np.random.default_rng(0).integers(0, 9, shape).astype(np.uint8)
    save = SaveImage(tmp_path, "seg", output_dtype=None, writer="bundle.data.VolumeWriter", print_log=False)
    save(volume(values, geometry[0], filename_or_obj="case_1.nii.gz").byte())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "case_1" / "case_1_seg.nii.gz"]
    stored = nib.load(files[0])
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(stored.dataobj), values)
    np.testing.assert_allclose(stored.affine, geometry[0], atol=1e-5)


def test_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    def dies(image, filename):
        open(filename, "wb").write(b"half")
        raise OSError("No space left on device")

    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"old")
    made = VolumeWriter(None)
    made.set_data_array(np.ones((1, 3, 3, 3)))
    made.set_metadata(None)
    monkeypatch.setattr("monai.data.image_writer.nib.save", dies)
    with pytest.raises(OSError, match="No space left"):
        made.write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
