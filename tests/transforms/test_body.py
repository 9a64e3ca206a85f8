from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from bundle.transforms import BodyMask, BodyMaskd
from bundle.transforms.body import fill_largest, open_slices

from ..conftest import volume


def disc(size, row, column, radius):
    rows, columns = np.mgrid[:size, :size]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@pytest.fixture
def scene():
    """A bright body with a dark cavity, and a bright speck beside it: (48, 48, 3), the last slice empty."""
    image = np.zeros((48, 48, 3), np.float32)
    body = disc(48, 24, 22, 15)
    for z in range(2):
        image[..., z][body] = 100.0
        image[..., z][disc(48, 24, 22, 5)] = 0.0
        image[..., z][2:7, 42:47] = 100.0
    return image, body


@pytest.mark.parametrize("threshold", [50.0, None], ids=["given", "automatic"])
def test_body_with_cavity_and_speck_gives_the_filled_body(scene, threshold):
    image, body = scene
    mask = BodyMask(threshold=threshold, opening=0, smoothing=0.5)(volume(image))
    for z in range(2):
        np.testing.assert_array_equal(mask[0, ..., z].numpy(), body)
    assert not mask[0, ..., 2].any()


def test_threshold_is_strict_and_in_units_of_the_image(scene):
    image, body = scene
    assert BodyMask(threshold=99.0, opening=0)(image[None]).sum() == 2 * body.sum()
    assert BodyMask(threshold=100.0, opening=0)(image[None]).sum() == 0


def test_opening_cuts_off_a_table_that_a_thin_bridge_holds():
    image = np.zeros((48, 48), np.float32)
    image[disc(48, 18, 24, 13)] = 1
    image[30:40, 24] = 1  # pseudo-support of one pixel
    image[40:43, 4:44] = 1  # table
    held = BodyMask(threshold=0.5, opening=0)(image[None])[0]
    cut = BodyMask(threshold=0.5, opening=1)(image[None])[0]
    assert held[41, 24] == 1
    assert cut[35:].sum() == 0
    assert cut[18, 24] == 1
    assert cut.sum() > 0.9 * disc(48, 18, 24, 13).sum()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_automatic_threshold_does_not_depend_on_the_scale(scale):
    rng = np.random.default_rng(0)
    image = rng.normal(5, 2, (48, 48, 2)).clip(0).astype(np.float32)
    image[disc(48, 24, 24, 15)] += rng.normal(120, 20, (disc(48, 24, 24, 15).sum(), 2)).astype(np.float32)
    mask = BodyMask()(scale * image[None])
    body = disc(48, 24, 24, 15)[..., None]
    assert 2 * (mask[0] & body).sum() / (mask.sum() + 2 * body.sum()) > 0.95


def test_slice_and_volume_agree_and_types_follow_the_input(scene):
    image, _ = scene
    whole = volume(image, np.diag([2.0, 2.0, 5.0, 1.0]))
    mask = BodyMask(threshold=50.0)(whole)
    assert type(mask) is type(whole)
    assert mask.dtype == torch.uint8
    torch.testing.assert_close(mask.affine, whole.affine)
    single = BodyMask(threshold=50.0)(image[None, ..., 0])
    assert isinstance(single, np.ndarray)
    np.testing.assert_array_equal(single, mask[..., 0].numpy())


def test_constant_image_has_no_body():
    assert BodyMask()(np.full((1, 16, 16, 2), 7.0, np.float32)).sum() == 0


def test_dictionary_version_adds_masks_and_leaves_its_input(scene):
    image, _ = scene
    data = {"image": image[None], "other": 2 * image[None]}
    out = BodyMaskd("image", threshold=50.0)(data)
    np.testing.assert_array_equal(out["body"], BodyMask(50.0)(image[None]))
    assert set(data) == {"image", "other"}
    both = BodyMaskd(["image", "other"], threshold=150.0)(data)
    assert both["image_body"].sum() == 0
    assert both["other_body"].sum() > 0
    with pytest.raises(KeyError):
        BodyMaskd("absent")(data)
    assert set(BodyMaskd("absent", allow_missing_keys=True)(data)) == set(data)


def test_first_threshold_above_the_darkest_voxel_counts():
    volume = np.full((1, 12, 12, 1), -1000.0)
    volume[0, 2:10, 2:10] = -110
    volume[0, 4:8, 4:8] = 40
    mask = BodyMask((-300, -124), opening=0)
    assert mask(volume).sum() == 64
    assert mask(np.maximum(volume, -125)).sum() == 64
    assert BodyMask((-300, 0), opening=0)(np.maximum(volume, -125)).sum() == 16


@pytest.mark.parametrize("opening", [0, 1, 3])
def test_opening_and_filling_are_those_of_scipy(opening):
    rng = np.random.default_rng(0)
    noise = [ndimage.gaussian_filter(rng.normal(size=(40, 50)), width) > 0 for width in (0.7, 1.5, 3.0, 4.0)]
    slices = np.stack([*noise, np.zeros((40, 50), bool), np.ones((40, 50), bool)])
    for mask, opened in zip(slices, open_slices(slices, opening)):
        expected = ndimage.binary_opening(mask, iterations=opening) if opening else mask
        np.testing.assert_array_equal(opened, expected)
        components, _ = ndimage.label(opened)
        sizes = np.bincount(components.ravel())[1:]
        largest = components == sizes.argmax() + 1 if len(sizes) else np.zeros_like(mask)
        np.testing.assert_array_equal(fill_largest(opened), ndimage.binary_fill_holes(largest))
