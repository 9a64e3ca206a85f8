"""Chunks of a query under the published protocols, where the frame has fewer slices than the file."""

from __future__ import annotations

import csv
import shutil

import nibabel as nib
import numpy as np
import pytest

from bundle.data.protocol import query_chunks
from bundle.transforms import OrientSlices, QueryChunksd, SliceFrame
from bundle.transforms.spatial import slice_axis

from ..conftest import GEOMETRIES, volume

BEFORE, AFTER = 3, 2  # empty slices


@pytest.mark.parametrize("name", ["RAS", "LPS", "oblique"])
def test_each_slice_of_the_frame_has_the_chunk_that_it_has_in_the_file(name):
    affine, _ = GEOMETRIES[name]
    label = np.zeros((12, 10, 14), np.uint8)
    label[3:9, 3:8, 4:12] = 1
    truth, image = volume(label, affine), OrientSlices()(volume(label.astype(np.float32), affine))
    body = np.zeros(image.shape)
    body[..., 2:-1] = 1
    framed = SliceFrame((16, 16))(image, body)
    framed.meta["spatial_shape"] = np.array(label.shape)
    found = QueryChunksd("official", [1])({"image": framed, "truth": truth})["image"].meta["chunks"]
    shown = OrientSlices()(truth)[0].flatten(0, 1).any(dim=0).numpy()
    expected = query_chunks(shown, 3)
    assert found.shape == (1, 11)
    np.testing.assert_array_equal(found[0], expected[2:-1])
    assert set(expected[[0, 1, -1]]) == {-1}  # what was cut off shows nothing


def padded(path):
    """A file with empty slices around its own."""
    file = nib.load(path)
    values, affine, axis = np.asarray(file.dataobj), file.affine.copy(), slice_axis(file.affine)
    affine[:3, 3] -= BEFORE * affine[:3, axis]
    sides = [(BEFORE, AFTER) if own == axis else (0, 0) for own in range(3)]
    return nib.Nifti1Image(np.pad(values, sides, constant_values=values.min()), affine, file.header)


@pytest.mark.filterwarnings("ignore")
def test_the_published_protocol_gives_padded_scans_the_same_dice(phantom_dir, run_config, tmp_path):
    copy = shutil.copytree(phantom_dir, tmp_path / "padded")
    for folder in ("imagesTr", "labelsTr"):
        for path in sorted((copy / folder).glob("*.nii.gz")):
            nib.save(padded(path), path)
    # what follows the histogram of a whole scan is given here, since empty slices have a part in it
    given = {"protocol": "official", "folds": 2, "fold": 0, "overlays": False}
    given |= {"body_threshold": 60, "intensity#upper_percentile": 100}
    tables = []
    for name, folder in (("a", phantom_dir), ("b", copy)):
        run_config("inference", "evaluate", dataset_dir=str(folder), output_dir=str(tmp_path / name), **given)
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            tables.append([(row["case"], row["label"], row["dice"]) for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert any(float(dice) > 10 for *_, dice in tables[0])
