from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage
from nibabel import aff2axcodes

from bundle.transforms import OrientSlices, OrientSlicesd, RestoreGeometry, RestoreGeometryd, SliceFrame, SliceFramed
from bundle.transforms.spatial import body_box, slice_axcodes

from ..conftest import GEOMETRIES, OBLIQUE, SPL, affine_of, rotation, save_nifti, volume, world_grid

SLOPE = np.array([0.7, -1.3, 2.1])


def load(tmp_path, values, affine):
    """A volume as the configs load it."""
    path = save_nifti(tmp_path / "scan.nii.gz", values, affine)
    return EnsureChannelFirst()(LoadImage(image_only=True)(path))


def ball(affine, shape, radius_mm=14.0, offset_mm=(6.0, -5.0, 0.0)):
    """Ball near the middle of a volume."""
    world = world_grid(affine, shape)
    middle = world.reshape(-1, 3).mean(axis=0) + offset_mm
    return (((world - middle) ** 2).sum(axis=-1) < radius_mm**2).astype(np.uint8)


@pytest.mark.parametrize(
    ("directions", "spacing_mm", "codes"),
    [
        (np.eye(3), (1, 1, 5), "RAS"),
        (np.diag([-1, -1, 1]), (1, 1, 5), "RAS"),
        (np.eye(3), (1, 1, 1), "RAS"),
        (SPL, (5, 1, 1), "RAS"),
        (OBLIQUE, (1, 1, 5), "RAS"),
        (np.eye(3), (1, 5, 1), "RSA"),
        (np.eye(3), (5, 1, 1), "ASR"),
        (SPL, (1, 1, 5), "ASR"),
        (np.eye(3), (1, 1.4, 1), "RAS"),
        (rotation(40, 0) @ rotation(50, 1), (1, 1, 8), None),
    ],
    ids=[
        "axial",
        "LPS",
        "isotropic",
        "permuted",
        "oblique",
        "coronal",
        "sagittal",
        "SPL sagittal",
        "1.4",
        "short axis",
    ],
)
def test_slice_axis_is_the_coarse_one_or_runs_from_feet_to_head(directions, spacing_mm, codes):
    affine = affine_of(directions, spacing_mm)
    if codes is None:  # whatever the direction, the third stored axis has to stay the slice axis
        coarse = aff2axcodes(affine)[2]
        codes = next(pair for pair in ("RL", "AP", "SI") if coarse in pair)[0]
        assert slice_axcodes(affine)[2] == codes
    else:
        assert slice_axcodes(affine) == codes


def test_every_voxel_keeps_its_place_in_the_world(geometry):
    affine, shape = geometry
    values = world_grid(affine, shape) @ SLOPE
    out = OrientSlices()(volume(values, affine))
    expected = world_grid(out.affine.numpy(), out.shape[1:]) @ SLOPE
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-3)
    assert "".join(aff2axcodes(out.affine.numpy())) == slice_axcodes(affine)
    spacing = np.linalg.norm(out.affine.numpy()[:3, :3], axis=0)
    assert spacing[2] == pytest.approx(max(spacing))


def test_orientation_of_a_2d_image_is_an_error():
    with pytest.raises(ValueError, match=r"image: expected a 3D volume, got 2 spatial axes \(4, 5\)"):
        OrientSlices()(MetaTensor(torch.zeros(1, 4, 5)))


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (96, 24)], ids=str)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_frame_keeps_places_in_the_world(geometry, size, mode):
    affine, shape = geometry
    image = OrientSlices()(volume(world_grid(affine, shape) @ SLOPE, affine))
    body = np.zeros(image.shape)
    body[:, 4:-3, 3:-2] = 1
    out = SliceFrame(size, mode=mode)(image, body)
    assert out.shape == (1, *size, image.shape[3])
    expected = world_grid(out.affine.numpy(), out.shape[1:]) @ SLOPE
    steps = np.abs(image.affine.numpy()[:3, :2].T @ SLOPE).sum()  # change over one stored pixel
    finer = size[0] >= image.shape[1] - 7 and size[1] >= image.shape[2] - 5
    margin = 6 if mode == "bilinear" else 0  # at the edge of the box the filter is one-sided
    inside = (slice(margin, size[0] - margin), slice(margin, size[1] - margin))
    error = np.abs(out[0].numpy()[inside] - expected[inside]).max()
    if mode == "nearest":
        assert error <= 0.51 * steps
    else:
        assert error <= (1e-2 if finer else 0.1 * steps)  # the antialiasing filter is not quite symmetric


def test_frame_of_the_same_size_and_no_body_is_the_image_itself():
    image = volume(np.random.default_rng(0).normal(size=(16, 24, 3)), GEOMETRIES["oblique"][0])
    out = SliceFrame((16, 24))(image)
    torch.testing.assert_close(out, image.float())
    torch.testing.assert_close(out.affine, image.affine)


def test_frame_shows_the_box_of_the_body_and_nothing_else():
    image = np.zeros((40, 60, 2))
    image[10:30, 20:50] = 1 + np.arange(20)[:, None, None]
    out = SliceFrame((20, 30))(volume(image), image[None] > 0)
    np.testing.assert_allclose(out[0].numpy(), image[10:30, 20:50])


def test_box_of_a_body():
    mask = np.zeros((50, 60, 4))
    mask[10:40, 5:50, :3] = 1
    mask[0, 0, 0] = 1  # one pixel of 135 in the fullest row, 90 in the fullest column
    mask[20, 20, 3] = 1  # one of 1351 in the fullest slice
    assert body_box(mask, occupancy=0.02) == (slice(10, 40), slice(5, 50), slice(0, 3))
    assert body_box(mask, occupancy=0.0) == (slice(0, 40), slice(0, 50), slice(0, 4))
    assert body_box(np.zeros((50, 60, 4))) == (slice(0, 50), slice(0, 60), slice(0, 4))


def test_slices_beyond_the_body_are_cut_off_and_come_back_empty():
    affine, shape = GEOMETRIES["oblique"]
    image = OrientSlices()(volume(1 + np.abs(world_grid(affine, shape) @ SLOPE), affine))
    image.meta["original_affine"], image.meta["spatial_shape"] = image.affine.numpy(), np.array(image.shape[1:])
    body = np.zeros(image.shape)
    body[..., 1:-2] = 1
    out = SliceFrame(image.shape[1:3])(image, body)
    assert out.shape[-1] == image.shape[-1] - 3
    expected = image.numpy() * body
    np.testing.assert_allclose(RestoreGeometry()(out), expected, atol=1e-3)


def test_prediction_comes_back_on_the_grid_of_the_file(tmp_path, geometry):
    affine, shape = geometry
    truth = ball(affine, shape)
    assert truth.sum() > 40
    image = load(tmp_path, truth, affine)
    oriented = OrientSlices()(image)
    body = np.ones(oriented.shape)
    body[:, :1] = body[:, :, :2] = 0
    framed = SliceFrame((64, 80))(oriented, body)
    out = RestoreGeometry()(framed)
    assert tuple(out.shape[1:]) == shape
    np.testing.assert_allclose(out.affine.numpy(), image.affine.numpy(), atol=1e-9)
    found = out[0].numpy() > 0.5
    dice = 2 * (found & (truth > 0)).sum() / (found.sum() + truth.sum())
    assert dice > 0.9
    center = world_grid(affine, shape)[found].mean(axis=0) - world_grid(affine, shape)[truth > 0].mean(axis=0)
    assert np.abs(center).max() < 0.3  # mm


def test_restored_label_map_is_exact_where_the_frame_is_finer(tmp_path):
    affine, shape = GEOMETRIES["permuted SPL"]
    truth = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    framed = SliceFrame((3 * 36, 3 * 40), mode="nearest")(OrientSlices()(load(tmp_path, truth, affine)))
    np.testing.assert_array_equal(RestoreGeometry("nearest")(framed)[0].numpy(), truth)


def test_outside_of_the_frame_is_zero(tmp_path):
    affine, shape = GEOMETRIES["RAS"]
    image = load(tmp_path, np.ones(shape, np.uint8), affine)
    body = np.zeros((1, *shape))
    body[:, 10:30, 8:28] = 1
    out = RestoreGeometry()(SliceFrame((64, 64))(OrientSlices()(image), body))
    outside = np.ones(shape, bool)
    outside[9:31, 7:29] = False
    assert (out[0].numpy()[outside] == 0).all()
    np.testing.assert_allclose(out[0].numpy()[11:29, 9:27], 1, atol=1e-4)


def test_restoring_needs_the_meta_data_of_a_file():
    with pytest.raises(KeyError, match="meta data lack .'original_affine', 'spatial_shape'"):
        RestoreGeometry()(MetaTensor(torch.zeros(1, 4, 4, 4)))


def test_dictionary_versions_equal_the_array_versions(tmp_path):
    affine, shape = GEOMETRIES["oblique"]
    image = load(tmp_path, ball(affine, shape), affine)
    data = {"image": image, "label": image, "body": image.new_ones(image.shape)}
    oriented = OrientSlicesd(["image", "label", "body"])(data)
    torch.testing.assert_close(oriented["image"], OrientSlices()(image))
    framed = SliceFramed(["image", "label", "none"], size=(32, 32), mode=["bilinear", "nearest", "nearest"],
                         allow_missing_keys=True)(oriented)  # fmt: skip
    torch.testing.assert_close(framed["image"], SliceFrame((32, 32))(oriented["image"], oriented["body"]))
    assert set(torch.unique(framed["label"]).tolist()) == {0.0, 1.0}
    assert len(torch.unique(framed["image"])) > 2
    framed["pred"] = framed["image"]
    torch.testing.assert_close(RestoreGeometryd("pred")(framed)["pred"], RestoreGeometry()(framed["image"]))
    assert data["image"] is image
