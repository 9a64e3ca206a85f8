from __future__ import annotations

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from bundle.data import SupportCheck
from bundle.data.support_check import side_of
from bundle.transforms import BodyMaskd, OrientSlicesd, ScanIntensityd, SliceFramed

from ..conftest import affine_of, save_nifti

SHAPE = (40, 36, 12)
LPS = affine_of(np.diag([-1.0, -1.0, 1.0]), (2.0, 2.0, 5.0))
STEPS = [
    LoadImaged(["image", "label"]),
    EnsureChannelFirstd(["image", "label"]),
    OrientSlicesd(["image", "label"]),
    ScanIntensityd("image"),
    BodyMaskd("image"),
    SliceFramed(["image", "label"], size=(32, 32)),
]


def body():
    """A noisy body in dark air: 2 mm pixels, to the right with falling first index in LPS."""
    values = np.random.RandomState(0).uniform(0, 5, SHAPE)
    values[6:34, 6:30] += np.random.RandomState(1).uniform(90, 110, (28, 24, 12))
    return values.astype(np.float32)


def block(label, value, rows, columns, slices):
    label[slice(*rows), slice(*columns), slice(*slices)] = value
    return label


@pytest.fixture
def look(tmp_path):
    """Say what the check says about an image and a label."""

    def start(image, label, affine=LPS, names=None, **entry):
        said, warned = [], []
        files = {
            "image": str(save_nifti(tmp_path / "a.nii.gz", image, affine)),
            "label": str(save_nifti(tmp_path / "l.nii.gz", label.astype(np.uint8), affine)),
        }
        SupportCheck(Compose(STEPS), names, say=said.append, warn=warned.append)({**files, **entry})
        (line,) = said
        return line, warned

    return start


def test_of_many_warnings_the_first_are_said(look):
    label = organs()
    for value in range(3, 12):
        block(label, value, (0, 2), (value, value + 1), (3, 6))
    _, warned = look(body(), label)
    assert len(warned) == 6
    assert warned[4].startswith("support a.nii.gz: label 7 lies outside of the body by 100 %")
    assert warned[5] == "support a.nii.gz: and 4 more of its labels"


def organs():
    """A liver in the right half of the body and a spleen in the left one."""
    label = block(np.zeros(SHAPE, np.uint8), 1, (8, 16), (8, 18), (2, 8))
    return block(label, 2, (26, 31), (12, 20), (3, 6))


def test_a_support_is_described_in_one_line_of_its_own_axes(look):
    line, warned = look(body(), organs(), names={1: "liver"})
    assert line.startswith("support a.nii.gz: ")
    assert line.endswith("MR, LPS")
    assert "liver (1): 9.6 mL, 6 slices, 16 x 20 x 30 mm; label 2: 2.4 mL, 3 slices, 10 x 16 x 15 mm;" in line
    assert not warned
    line, _ = look(body(), organs(), names={7: "liver"}, values={"1": 7})
    assert "liver (7): 9.6 mL" in line
    assert "label 2" not in line


def test_of_many_labels_the_first_are_described(look):
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, 21):
        block(label, value, (8 + value, 9 + value), (10, 12), (3, 6))
    line, _ = look(body(), label)
    assert "label 12" in line
    assert "label 13" not in line
    assert "8 more labels" in line


def test_a_label_in_the_air_is_warned_of(look):
    label = block(organs(), 3, (0, 5), (0, 20), (3, 6))
    _, warned = look(body(), label)
    assert warned == [
        "support a.nii.gz: label 3 lies outside of the body by 100 %; does the label belong to this image?"
    ]


def test_a_crop_without_air_has_no_outside(look):
    image = np.random.RandomState(1).uniform(90, 110, SHAPE).astype(np.float32)
    assert not look(image, organs())[1]


def test_a_label_of_two_distant_parts_is_warned_of_where_the_others_are_whole(look):
    label = block(organs(), 1, (30, 33), (24, 30), (2, 10))
    _, warned = look(body(), label)
    assert len(warned) == 1
    assert "label 1 is of two parts" in warned[0]
    label = block(label, 2, (8, 10), (24, 30), (2, 8))
    assert not look(body(), label)[1]  # all are, as those of paired organs may be
    small = block(organs(), 1, (32, 33), (29, 30), (2, 3))
    assert not look(body(), small)[1]
    sparse = organs()
    sparse[..., [3, 4, 6, 7]] = 0  # slices that nobody labelled part nothing
    assert not look(body(), sparse)[1]


@pytest.mark.parametrize("affine", [LPS, affine_of(np.eye(3), (2.0, 2.0, 5.0))], ids=["LPS", "RAS"])
@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        ({1: "right kidney", 2: "left kidney"}, False),
        ({1: "left kidney", 2: "right kidney"}, True),
        ({1: "kidney_left", 2: "kidney_right"}, True),
        ({1: "LK", 2: "RK"}, True),
        ({1: "L kidney", 2: "R kidney"}, True),
        ({1: "KidneyLeft", 2: "spleen"}, True),
        ({1: "lung", 2: "Lung_R"}, True),
        ({1: "left lung", 2: "left kidney"}, True),
        ({1: "left ventricle", 2: "liver"}, False),
        ({1: "LV", 2: "liver"}, False),
        ({1: "LV", 2: "RV"}, True),
        ({1: "liver", 2: "spleen"}, False),
    ],
)
def test_left_and_right_on_the_wrong_side_are_warned_of(look, affine, names, wrong):
    turned = organs() if affine is LPS else organs()[::-1]  # organ 1 lies to the right in both
    _, warned = look(body(), np.ascontiguousarray(turned), affine, names)
    assert bool(warned) is wrong, warned


@pytest.mark.parametrize(
    ("name", "others", "expected"),
    [
        ("left kidney", [], ("left", {"kidney"})),
        ("Kidney-Right", [], ("right", {"kidney"})),
        ("kidneyL", [], ("left", {"kidney"})),
        ("rt. parotid", [], ("right", {"parotid"})),
        ("RK", [], ("right", {"k"})),
        ("LP", [], None),
        ("LP", ["RP"], ("left", {"p"})),
        ("liver", [], None),
        ("bright spot", [], None),
        ("left to right shunt", [], None),
        ("Niere rechts", [], None),
    ],
)
def test_sides_of_names(name, others, expected):
    found = side_of(name, others)
    assert found == (None if expected is None else (expected[0], frozenset(expected[1])))


def test_a_label_map_given_as_image_is_warned_of(look):
    _, warned = look(organs().astype(np.float32) * 10, organs())
    assert any("3 whole values in flat areas, as a label map has" in line for line in warned)
    label = block(organs(), 3, (0, 5), (0, 20), (3, 6))  # what lies outside is not said of mixed files
    assert len(look(organs().astype(np.float32) * 10, label)[1]) == 1
    eight_bits = body().round()
    assert len(np.unique(eight_bits)) < 40
    assert not look(eight_bits, organs())[1]
