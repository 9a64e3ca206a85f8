from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.transforms import MatchLabel, MatchLabeld, OrientSlicesd

from ..conftest import volume

SHAPE = (9, 8, 7)


def oblique(degrees, spacing=(0.8, 0.8, 1.2)):
    """Sagittal slices, turned about the head-foot axis."""
    turn = np.deg2rad(degrees)
    axes = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes @ np.diag(spacing)
    affine[:3, 3] = -20, 15, 3
    return affine


def pair(affine):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, SHAPE)
    image = volume(labels + 10.0, affine, filename_or_obj="a.nii.gz")
    return labels, image


@pytest.mark.parametrize("degrees", [0, 5, 30, 44.99, 45, 45.01, 60, 90])
@pytest.mark.parametrize("noise", [0.0, 1e-6, -1e-6])
def test_label_follows_its_image_however_a_tool_rounds_headers(degrees, noise):
    affine = oblique(degrees)
    labels, image = pair(affine)
    other = affine * (1 + noise)
    other[:3, :3] = oblique(degrees, (0.8, 0.8 + noise, 1.2 - noise))[:3, :3]
    stored = {"image": image, "label": volume(labels.astype(float), other, filename_or_obj="l.nii.gz")}
    out = OrientSlicesd(["image", "label"])(MatchLabeld("label")(stored))
    assert torch.equal(out["image"].as_subclass(torch.Tensor) - 10, out["label"].as_subclass(torch.Tensor))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL", "AIR", "PRI"])
def test_other_orders_of_axes_come_back(codes):
    labels, image = pair(np.diag([1.0, 1.0, 3.0, 1.0]))
    turn = nib.orientations.axcodes2ornt(codes)
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels.astype(np.float32), image.affine.numpy()))
    turned = turned.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(turned.affine), turn))
    label = volume(np.array(turned.dataobj), turned.affine)
    np.testing.assert_array_equal(MatchLabel()(label, image)[0], labels)


@pytest.mark.parametrize("flip", [False, True])
def test_label_that_was_cropped_is_placed_by_its_header(flip, caplog):
    affine = oblique(20)
    labels, image = pair(affine)
    labels[:2], labels[:, -3:] = 0, 0
    start = np.array([2, 0, 0])
    part = nib.Nifti1Image(labels[2:, :5].astype(np.float32), affine)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ start
    array = np.asarray(part.dataobj)
    if flip:  # 3D Slicer writes its axes to the left and to the back
        array = array[::-1]
        moved = moved @ np.array([[-1, 0, 0, array.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    with caplog.at_level(logging.INFO):
        found = MatchLabel()(volume(array.copy(), moved, filename_or_obj="l.nii.gz"), image)
    np.testing.assert_array_equal(found[0], labels)
    assert "l.nii.gz: covers 7 x 5 x 7 voxels, placed by its header" in caplog.text


@pytest.mark.parametrize("off", [2e-5, -2e-5, 0.009])
def test_values_that_miss_whole_numbers_are_rounded(off):
    labels, image = pair(np.eye(4))
    found = MatchLabel()(volume((labels + off).astype(np.float32), np.eye(4)), image)
    np.testing.assert_array_equal(found[0], labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels, affine: (labels * 0.5, affine), "label values must be whole numbers from 0, got"),
        (lambda labels, affine: (labels[:-1], affine), "does not fit the image a.nii.gz"),
        (lambda labels, affine: (labels, affine + np.diag([0, 0, 0, 0]) + shift(9)), "lies up to 9.0 mm beside"),
        (lambda labels, affine: (labels[2:5], affine + shift(6.5)), "labels lie outside of the image|does not fit"),
        (lambda labels, affine: (labels[::2], affine * np.array([2.0, 1, 1, 1])), "does not fit the image"),
    ],
    ids=["halves", "a slice short", "moved", "beyond", "other spacing"],
)
def test_what_is_no_label_of_the_image_is_named(change, message):
    labels, image = pair(np.eye(4))
    array, affine = change(labels, np.eye(4))
    with pytest.raises(ValueError, match=f"l.nii.gz.*({message})"):
        MatchLabel()(volume(np.asarray(array, np.float32), affine, filename_or_obj="l.nii.gz"), image)


def shift(mm):
    out = np.zeros((4, 4))
    out[0, 3] = mm
    return out
