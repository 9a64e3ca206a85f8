"""Volume, extent and intensity of labels, worked out by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bundle.measurements import COLUMNS, measure_labels, read_intensities, table_row

AFFINES = {
    "along the body": np.diag([-2.0, 3, 5, 1]),
    "slices from left to right": np.array([[0, 0, 5.0, 7], [-2, 0, 0, 9], [0, 3, 0, -4], [0, 0, 0, 1]]),
    "turned": np.array([[1.6, -1.8, 0, 0], [1.2, 2.4, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]]),
}
EXTENTS = {
    "along the body": [8, 9, 10],
    "slices from left to right": [10, 8, 9],
    "turned": [8, 9, 10],  # along the scan's own axes
}


@pytest.mark.parametrize("kind", AFFINES)
def test_box_of_a_structure(kind):
    mask = np.zeros((9, 8, 7), bool)
    mask[2:6, 1:4, 3:5] = True
    mask[3, 2, 3] = False  # a hole changes the volume, not the extent
    image = np.where(mask, 100, -7)
    image[2, 1, 3] = 123
    found = measure_labels({"liver": mask, "spleen": np.zeros_like(mask)}, AFFINES[kind], image)
    assert found["volume_ml"] == {"liver": pytest.approx(23 * 0.03), "spleen": 0}
    assert found["extent_mm"] == {"liver": pytest.approx(EXTENTS[kind]), "spleen": None}
    assert found["mean_intensity"] == {"liver": 101, "spleen": None}
    row = dict(zip(COLUMNS, table_row({**found, "reverse_dice": {"liver": 0.8}}, "liver")))
    assert (row["feet_head_mm"], row["confidence"], row["reverse_dice"]) == (EXTENTS[kind][2], None, 0.8)


def test_intensities_are_those_of_the_file(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    header = nib.Nifti1Header()
    header.set_slope_inter(2, -10)
    for shape in ((2, 3, 4), (2, 3, 4, 1)):
        image = nib.Nifti1Image(array.reshape(shape).astype(float) * 2 - 10, np.eye(4), header)
        nib.save(image, tmp_path / "a.nii.gz")
        assert np.array_equal(read_intensities(tmp_path / "a.nii.gz", (2, 3, 4)), array * 2 - 10)
    assert read_intensities(tmp_path / "a.nii.gz", (3, 3, 4)) is None
    assert read_intensities(tmp_path / "b.nii.gz", (2, 3, 4)) is None
