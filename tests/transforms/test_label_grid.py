from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from bundle.transforms import MatchLabel, MatchLabeld, OrientSlices, OrientSlicesd

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
    assert "l.nii.gz: covers 7 x 5 x 7 voxels of a.nii.gz, and is placed by its header" in caplog.text


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
        (lambda labels, affine: (labels[2:5], affine + shift(7.5)), "labels lie outside of the image"),
        (lambda labels, affine: (labels.transpose(2, 0, 1), affine), "does not fit the image"),
    ],
    ids=["halves", "a slice short", "moved", "beyond", "turned without a word"],
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


LOST = {
    "identity": np.eye(4),
    "identity of ITK": np.diag([-1.0, -1, 1, 1]),
    "spacing alone": np.diag([0.8, 0.8, 1.2, 1]),
    "no form at all": nib.Nifti1Image(np.zeros(SHAPE, np.uint8), None).header.get_base_affine(),
}


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("degrees", [0, 20, 45])
def test_label_whose_place_was_lost_is_on_the_voxels_of_its_image(kind, degrees, caplog):
    labels, image = pair(oblique(degrees))
    found = MatchLabel()(volume(labels, LOST[kind], filename_or_obj="l.nii.gz"), image)
    np.testing.assert_array_equal(found[0], labels)
    np.testing.assert_array_equal(found.affine, image.affine)
    assert "l.nii.gz: has a header without a place, and is taken for the voxels of a.nii.gz" in caplog.text
    if kind == "no form at all":
        return  # its center moves with its shape
    with pytest.raises(ValueError, match="does not fit the image a.nii.gz"):
        MatchLabel()(volume(labels[1:], LOST[kind], filename_or_obj="l.nii.gz"), image)


def test_label_of_the_other_form_of_the_header_is_on_the_voxels_of_its_image(caplog):
    labels, image = pair(oblique(10))
    other = oblique(12)
    other[:3, 3] += 30
    with pytest.raises(ValueError, match="lies up to .* mm beside its image a.nii.gz"):
        MatchLabel()(volume(labels, other, filename_or_obj="l.nii.gz"), image)
    image.meta["other_affine"] = other
    np.testing.assert_array_equal(MatchLabel()(volume(labels, other, filename_or_obj="l.nii.gz"), image)[0], labels)
    assert "l.nii.gz: lies where the other form of the header of a.nii.gz says" in caplog.text


@pytest.mark.parametrize("factor", [2, 0.5])
@pytest.mark.parametrize("degrees", [0, 20])
def test_label_with_voxels_of_its_own_gives_the_nearest(factor, degrees, caplog):
    affine = oblique(degrees)
    blocks = np.kron(np.random.default_rng(0).integers(0, 3, (4, 3, 3)), np.ones((2, 2, 2), int))
    image = volume(blocks + 10.0, affine, filename_or_obj="a.nii.gz")
    scaled = affine @ np.diag([factor, factor, factor, 1.0])  # outer edges stay where they are
    scaled[:3, 3] += affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    labels = blocks[::2, ::2, ::2] if factor == 2 else np.kron(blocks, np.ones((2, 2, 2), int))
    found = MatchLabel()(volume(labels, scaled, filename_or_obj="l.nii.gz"), image)
    np.testing.assert_array_equal(found[0], blocks)
    assert "l.nii.gz: has voxels of its own, " in caplog.text
    assert "fall between" not in caplog.text
    thin = np.zeros((16, 12, 12))
    thin[3, 4, 5], thin[6:, 6:] = 2, 1
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    MatchLabel()(volume(thin, fine, filename_or_obj="l.nii.gz"), image)
    assert "l.nii.gz: the label values [2.0] fall between the voxels of a.nii.gz" in caplog.text


@pytest.mark.parametrize(("mm", "told"), [(0.0, False), (0.3, False), (0.55, True)])
def test_label_a_little_beside_its_image_is_told(mm, told, caplog):
    labels, image = pair(oblique(0))
    affine = oblique(0)
    affine[1, 3] += mm
    np.testing.assert_array_equal(MatchLabel()(volume(labels, affine, filename_or_obj="l.nii.gz"), image)[0], labels)
    assert ("l.nii.gz: lies 0.6 mm beside a.nii.gz, and is taken for its voxels" in caplog.text) == told


def test_what_was_changed_is_said_once_a_file(caplog):
    caplog.set_level(logging.INFO)
    labels, image = pair(oblique(0))
    affine = oblique(0)
    affine[1, 3] += 0.55
    match = MatchLabeld("label")
    for name in "llm":
        match({"image": image, "label": volume(labels + 1e-4, affine, filename_or_obj=f"{name}.nii.gz")})
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("l.nii.gz: label values are rounded to whole numbers") == 1
    assert [line[:8] for line in lines] == ["l.nii.gz"] * 2 + ["m.nii.gz"] * 2


@pytest.mark.parametrize("kind", ["identical", "flipped to LPS", "of voxels along other axes", "as floats", "cropped"])
@pytest.mark.parametrize("degrees", [0, 30, 45])
def test_labels_saved_by_simpleitk_are_those_of_the_image(kind, degrees, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    labels, image = pair(oblique(degrees))
    labels[0], labels[-2:], labels[:, :1] = 0, 0, 0
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), oblique(degrees)), tmp_path / "own.nii.gz")
    stored = sitk.ReadImage(str(tmp_path / "own.nii.gz"))
    if kind == "flipped to LPS":
        stored = sitk.DICOMOrient(stored, "LPS")
    elif kind == "of voxels along other axes":
        stored = sitk.PermuteAxes(stored, [2, 0, 1])
    elif kind == "as floats":
        stored = sitk.Cast(stored, sitk.sitkFloat32) * 1.00001
    elif kind == "cropped":
        stored = stored[1:-2, 1:]
    sitk.WriteImage(stored, str(tmp_path / "saved.nii.gz"))
    load = LoadImage("bundle.data.NiftiReader", ensure_channel_first=True)
    found = OrientSlicesd(["image", "label"])(
        MatchLabeld("label")({"image": image, "label": load(tmp_path / "saved.nii.gz")})
    )
    expected = OrientSlices()(volume(labels, oblique(degrees)))
    assert torch.equal(found["label"].as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
    torch.testing.assert_close(found["label"].affine, found["image"].affine)
