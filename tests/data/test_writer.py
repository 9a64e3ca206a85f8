from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage, SaveImage

from bundle.data.writer import GEOMETRY, VolumeWriter

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
    monkeypatch.setattr("nibabel.save", dies)
    with pytest.raises(OSError, match="No space left"):
        made.write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


RNG = np.random.default_rng(0)


def make_header(sform, qform, codes, unit):
    header = nib.Nifti1Header()
    header.set_data_shape((6, 5, 4))
    header.set_qform(qform, code=codes[0])
    header.set_sform(sform, code=codes[1])
    header.set_xyzt_units(unit, "sec")
    return header


TILTED = np.array([[1.0, 0, 0, 5], [0, 1.2, 0.7, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
PLAIN = np.array([[-1.0, 0, 0, 30], [0, -1.2, 0, 3], [0, 0, 4, -9], [0, 0, 0, 1]])


@pytest.mark.parametrize("codes", [(1, 1), (1, 4), (0, 2), (1, 0)], ids=str)
@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
@pytest.mark.parametrize("sform", [TILTED, PLAIN], ids=["sheared", "as the qform"])
def test_a_result_has_the_geometry_of_its_query_in_every_reader(tmp_path, codes, unit, sform):
    sitk = pytest.importorskip("SimpleITK")
    scan = nib.Nifti1Image(RNG.random((6, 5, 4)).astype(np.float32), None, make_header(sform, PLAIN, codes, unit))
    nib.save(scan, tmp_path / "a.nii.gz")
    image = LoadImage(reader="bundle.data.NiftiReader", ensure_channel_first=True)(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(
        image.affine, nib.load(tmp_path / "a.nii.gz").affine
    )  # not another form, whatever pixdim says
    SaveImage(tmp_path, "seg", output_dtype=None, writer="bundle.data.VolumeWriter", print_log=False)(
        (image > 0.5).byte()
    )
    paths = tmp_path / "a.nii.gz", tmp_path / "a" / "a_seg.nii.gz"
    query, result = (nib.load(path) for path in paths)
    for name in GEOMETRY:
        np.testing.assert_array_equal(result.header[name], query.header[name], err_msg=name)
    np.testing.assert_array_equal(result.affine, query.affine)
    assert (np.asarray(result.dataobj) == (np.asarray(query.dataobj) > 0.5)).all()
    if codes == (0, 2) and sform is TILTED:
        return  # ITK refuses a sheared form without another one
    query, result = (sitk.ReadImage(str(path)) for path in paths)
    for what in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(result, what)() == getattr(query, what)()


def test_microns_are_read_as_mm(tmp_path):
    header = make_header(PLAIN * 1000, PLAIN * 1000, (1, 1), "micron")
    header["srow_x"][3] = 30000
    nib.save(nib.Nifti1Image(np.ones((6, 5, 4), np.float32), None, header), tmp_path / "a.nii.gz")
    image = LoadImage(reader="bundle.data.NiftiReader")(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, PLAIN, atol=1e-4)
    np.testing.assert_allclose(image.meta["original_affine"], PLAIN, atol=1e-4)


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_unit_of_which_no_scan_can_be_is_taken_for_mm(tmp_path, unit, caplog):
    nib.save(
        nib.Nifti1Image(np.ones((6, 5, 4), np.float32), None, make_header(PLAIN, PLAIN, (1, 1), unit)),
        tmp_path / "a.nii",
    )
    image = LoadImage(reader="bundle.data.NiftiReader")(tmp_path / "a.nii")
    np.testing.assert_allclose(image.affine, PLAIN, atol=1e-4)
    assert f"a.nii: the header is in {unit}, its spacing can only be in mm and is taken so" in caplog.text


def save_result(folder, path):
    image = LoadImage(reader="bundle.data.NiftiReader", ensure_channel_first=True)(path)
    SaveImage(folder, "seg", output_dtype=None, writer="bundle.data.VolumeWriter", print_log=False)(
        (image > 0.5).byte()
    )
    return nib.load(folder / "a" / "a_seg.nii.gz")


def test_geometry_of_files_of_many_digits_stays(tmp_path):
    affine = PLAIN.copy()
    affine[:3, 3] = 1 / 3, 2 / 7, -1e3 / 3
    nib.save(nib.Nifti2Image(RNG.random((6, 5, 4)), affine), tmp_path / "a.nii.gz")
    result = save_result(tmp_path, tmp_path / "a.nii.gz")
    assert isinstance(result, nib.Nifti2Image)
    np.testing.assert_array_equal(result.affine, affine)


def test_spacing_of_a_series_of_one_scan_stays(tmp_path):
    header = make_header(PLAIN, PLAIN, (1, 1), "mm")
    scan = nib.Nifti1Image(RNG.random((6, 5, 4, 1, 1)).astype(np.float32), PLAIN, header)
    scan.header["pixdim"][4:] = 2.5, 0, 0, 0
    nib.save(scan, tmp_path / "a.nii.gz")
    result = save_result(tmp_path, tmp_path / "a.nii.gz")
    assert result.shape == (6, 5, 4)
    np.testing.assert_array_equal(result.header["pixdim"], scan.header["pixdim"])


def test_volume_on_another_grid_than_its_file_has_its_own_geometry(tmp_path):
    nib.save(nib.Nifti1Image(RNG.random((6, 6, 6)).astype(np.float32), PLAIN), tmp_path / "a.nii.gz")
    turned = volume(np.ones((6, 6, 6)), TILTED, filename_or_obj=str(tmp_path / "a.nii.gz")).byte()
    SaveImage(tmp_path, "seg", output_dtype=None, writer="bundle.data.VolumeWriter", print_log=False)(turned)
    np.testing.assert_allclose(nib.load(tmp_path / "a" / "a_seg.nii.gz").affine, TILTED, atol=1e-5)


@pytest.mark.parametrize("stretch", [1.0, 1.05])
def test_a_sheared_sform_is_worked_on_as_it_is(tmp_path, stretch):
    sform = TILTED @ np.diag([1, 1, stretch, 1])
    scan = nib.Nifti1Image(np.zeros((6, 5, 4), np.float32), None, make_header(sform, PLAIN, (1, 2), "mm"))
    nib.save(scan, tmp_path / "a.nii.gz")
    image = LoadImage(reader="bundle.data.NiftiReader")(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, sform, atol=1e-5)
    np.testing.assert_allclose(image.meta["original_affine"], sform, atol=1e-5)
