from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from bundle.checks import check_geometry, check_label, check_volume
from bundle.errors import root_cause
from bundle.transforms import CheckVolumed

from .conftest import volume

GOOD = np.arange(24.0, dtype=np.float32).reshape(1, 2, 3, 4)
BAD = {
    "2D": (GOOD[..., 0], "expected one 3D volume, got 2 spatial axes (2, 3); convert 2D images"),
    "4D": (GOOD[..., None], "expected one 3D volume, got 4 spatial axes (2, 3, 4, 1)"),
    "empty": (GOOD[:, :0], "the volume is empty, its shape is (0, 3, 4)"),
    "NaN": (np.where(GOOD == 5, np.nan, GOOD), "contains NaN or infinite values; replace them"),
    "infinite": (np.where(GOOD == 5, np.inf, GOOD), "contains NaN or infinite values"),
    "constant": (GOOD * 0 + 2.5, "every voxel is 2.5; the file holds no image"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_bad_volume_is_named(kind, make):
    array, message = BAD[kind]
    with pytest.raises(ValueError, match=re.escape(f"scan.nii: {message}")):
        check_volume(make(array), "scan.nii")


def test_good_volume_passes():
    check_volume(GOOD, "scan.nii")
    check_volume(GOOD[:, :1, :1, :2], "scan.nii")


def test_transform_names_the_file_and_counts_channels():
    data = {"image": volume(np.arange(8.0).reshape(2, 2, 2), filename_or_obj="d/a.nii.gz")}
    assert CheckVolumed("image")(data)["image"] is data["image"]
    data["image"] = torch.cat([data["image"], data["image"]])
    with pytest.raises(ValueError, match="d/a.nii.gz: expected 1 channel, got 2; split 4D series and color"):
        CheckVolumed("image")(data)
    with pytest.raises(ValueError, match="image: every voxel is 0"):
        CheckVolumed("image")({"image": torch.zeros(1, 2, 2, 2)})


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1.0, 1, 0, 1]), "the header has no valid geometry; repair its affine"),
        (np.diag([1.0, np.nan, 1, 1]), "the header has no valid geometry"),
        (np.diag([1.0, 1, 200, 1]), "spacing 1 x 1 x 200 mm is not in 0.01..100; repair the header"),
        (np.diag([0.001, 1, 1, 1]), "spacing 0.001 x 1 x 1 mm is not in 0.01..100"),
    ],
    ids=["flat", "NaN", "too large", "too small"],
)
def test_bad_geometry_is_named(affine, message):
    with pytest.raises(ValueError, match=re.escape(f"s.nii: {message}")):
        check_geometry(affine, "s.nii")
    scan = volume(np.arange(8.0).reshape(2, 2, 2), affine, filename_or_obj="s.nii")
    with pytest.raises(ValueError, match=re.escape(f"s.nii: {message}")):
        CheckVolumed("image")({"image": scan})


def test_good_geometry_passes(geometry):
    check_geometry(geometry[0], "s.nii", np.linalg.norm(geometry[0][:3, :3], axis=0))
    check_geometry(np.diag([-1.0, -1, 7.7, 1]), "s.nii", [1, 1, 7.7])
    for stated, message in (
        ([1, 1, 5], "the header gives two spacings, 1 x 1 x 5 mm and by"),
        ([-1, 1, 7.7], "spacing -1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_geometry(np.diag([1.0, 1, 7.7, 1]), "s.nii", stated)


def test_label_values_come_back_ascending():
    label = np.array([[[[0, 7, 3], [3, 300, 0]]]], np.int16)
    assert check_label(label, (1, 2, 3), "l", "i") == [3, 7, 300]
    assert check_label(label.astype(float), (1, 2, 3), "l", "i", values=[7]) == [3, 7, 300]


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        (np.ones((1, 2, 2, 3)), None, "l: label of shape (2, 2, 3) does not fit the image i of shape (2, 2, 2)"),
        (np.full((1, 2, 2, 2), 1.25), None, "l: label values must be whole numbers from 0, got [1.25]"),
        (np.full((1, 2, 2, 2), -2), None, "l: label values must be whole numbers from 0, got [-2.0]"),
        (np.full((1, 2, 2, 2), np.nan), None, "l: label values must be whole numbers from 0, got [nan"),
        (np.zeros((1, 2, 2, 2)), None, "l: the support label has no foreground, every voxel is 0"),
        (np.ones((1, 2, 2, 2)), [1, 4], "l: label values [4] are wanted, but only [1] occur"),
    ],
    ids=["shape", "fraction", "negative", "NaN", "empty", "missing value"],
)
def test_bad_label_is_named(label, values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_label(label, (2, 2, 2), "l", "i", values)


def test_root_cause_goes_through_what_wraps_it():
    def fail(suppress):
        try:
            try:
                raise KeyError("bottom")
            except KeyError as error:
                raise ValueError("middle") from (None if suppress else error)
        except ValueError as error:
            raise RuntimeError("top") from error

    for suppress, kind in ((False, KeyError), (True, ValueError)):
        with pytest.raises(RuntimeError) as caught:
            fail(suppress)
        assert type(root_cause(caught.value)) is kind
