from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from bundle.data.phantom import make_phantom
from bundle.options import read_config
from bundle.transforms import Superpixels, Superpixelsd

from ..conftest import ROOT

PARAMETERS = {"scale": 1, "sigma": 0.5, "min_size": 20}


@pytest.fixture
def two_squares():
    """Two bright squares on dark ground, and the mask of both: (1, 32, 32) each."""
    image = np.zeros((1, 32, 32), np.float32)
    image[0, 4:14, 4:14] = 1.0
    image[0, 18:28, 18:28] = 2.0
    return image, image > 0


@pytest.fixture(scope="module")
def scan():
    """Generated slices and a body: (1, 48, 48, 4) each."""
    image, _, _ = make_phantom(1, shape=(48, 48, 4), spacing_mm=(7.0, 7.0, 30.0))
    image = image.astype(np.float32)[None]
    return (image - image.mean()) / image.std(), image > 100


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("felzenszwalb", {"scale": 1, "sigma": 0.1, "min_size": 20}), ("slic", {"n_segments": 2, "compactness": 1e-3})],
)
def test_two_squares_give_two_superpixels(two_squares, method, parameters):
    image, mask = two_squares
    maps = Superpixels(method, parameters, min_piece=10)(image, mask)
    assert maps.dtype == np.int16
    assert sorted(np.unique(maps)) == [0, 1, 2]
    assert (maps[0, 4:14, 4:14] == maps[0, 4, 4]).all()
    assert (maps[0, 18:28, 18:28] == maps[0, 18, 18]).all()
    assert (maps[~mask] == 0).all()


def test_what_the_mask_cuts_apart_is_two_pieces_and_small_ones_vanish():
    image = np.zeros((1, 30, 30), np.float32)
    mask = np.ones_like(image)
    mask[0, :, 10] = 0  # leaves 10 columns on the left and 19 on the right
    cut = Superpixels("felzenszwalb", {"min_size": 50}, min_piece=1)(image, mask)
    assert cut[0, 0, 0] != cut[0, 0, 20]
    assert set(np.unique(cut)) == {0, 1, 2}
    kept = Superpixels("felzenszwalb", {"min_size": 50}, min_piece=300)(image, mask)
    np.testing.assert_array_equal(kept, cut)  # the left piece has 300 pixels
    gone = Superpixels("felzenszwalb", {"min_size": 50}, min_piece=301)(image, mask)
    assert set(np.unique(gone)) == {0, 1}
    assert (gone[0, :, :11] == 0).all()
    assert Superpixels("felzenszwalb", {"min_size": 50}, min_piece=571)(image, mask).max() == 0


def test_map_equals_a_literal_computation(scan):
    image, body = scan
    got = Superpixels("felzenszwalb", PARAMETERS, min_piece=12)(image, body)
    for z in range(image.shape[-1]):
        segments = felzenszwalb(np.ascontiguousarray(image[0, ..., z]), **PARAMETERS)
        seen = np.zeros(segments.shape, bool)
        for segment in np.unique(segments):
            pieces, count = ndimage.label((segments == segment) & body[0, ..., z])
            for piece in range(1, count + 1):
                where = pieces == piece
                values = np.unique(got[0, ..., z][where])
                assert len(values) == 1
                if where.sum() < 12:
                    assert values[0] == 0
                else:
                    assert values[0] > 0
                    assert (got[0, ..., z] == values[0]).sum() == where.sum()
                seen |= where
        assert (got[0, ..., z][~seen] == 0).all()
        used = np.unique(got[0, ..., z])
        np.testing.assert_array_equal(used, np.arange(len(used)))


def test_levels_are_the_maps_of_their_parameters(scan):
    image, body = scan
    sets = [PARAMETERS, {**PARAMETERS, "min_size": 60}]
    both = Superpixels("felzenszwalb", sets, 12)(image, body)
    assert both.shape == (2, *image.shape[1:])
    for level, parameters in zip(both, sets):
        np.testing.assert_array_equal(level, Superpixels("felzenszwalb", parameters, 12)(image, body)[0])
    assert both[0].max() > both[1].max()
    np.testing.assert_array_equal(Superpixels("felzenszwalb", sets, 12)(image[..., 1], body[..., 1]), both[..., 1])


def test_slices_types_and_threads_agree(scan):
    image, body = scan
    whole = Superpixels("felzenszwalb", PARAMETERS, 12)(torch.from_numpy(image), torch.from_numpy(body))
    assert whole.dtype == torch.int16
    assert whole.shape == image.shape
    np.testing.assert_array_equal(Superpixels("felzenszwalb", PARAMETERS, 12, num_workers=3)(image, body), whole)
    single = Superpixels("felzenszwalb", PARAMETERS, 12)(image[..., 1], body[..., 1])
    np.testing.assert_array_equal(single, whole[..., 1])
    assert single.max() > 3


def test_dictionary_version_equals_the_array_version(scan):
    image, body = scan
    data = {"image": image, "body": body}
    out = Superpixelsd("image", parameters=PARAMETERS, min_piece=12)(data)
    np.testing.assert_array_equal(out["superpixels"], Superpixels(parameters=PARAMETERS, min_piece=12)(image, body))
    assert set(data) == {"image", "body"}
    free = Superpixelsd("image", mask_key=None, parameters=PARAMETERS, min_piece=12)(data)["superpixels"]
    assert (free[~body] > 0).any()


def test_bad_arguments_are_named(scan):
    with pytest.raises(ValueError, match="superpixel method must be one of .*, got 'watershed'"):
        Superpixels("watershed")
    with pytest.raises(
        ValueError, match=r"mask of shape \(1, 48, 48\) does not fit the image of shape \(1, 48, 48, 4\)"
    ):
        Superpixels()(scan[0], scan[1][..., 0])


def halves(image, mask, rows=16):
    """Two superpixels, above and below a row; in one scale of numbers below zero."""
    assert mask.dtype == bool
    assert image.dtype == np.float32
    return np.where(np.arange(image.shape[0])[:, None] < rows, -5, 7) * np.ones(image.shape, np.int8)


def test_a_function_of_ones_own_is_called_with_the_mask_and_its_parameters(two_squares):
    image, mask = two_squares
    maps = Superpixels(halves, [{"rows": 8}, {}], min_piece=1)(image, mask)
    assert maps.shape == (2, 32, 32)
    assert maps[0, 4:8, 4:14].min() == maps[0, 4:8, 4:14].max() != maps[0, 9, 9]
    assert set(np.unique(maps[1])) == {0, 1, 2}


@pytest.mark.parametrize(
    "method",
    [{"_target_": "skimage.segmentation.watershed", "_mode_": "callable", "markers": 9},
     {"_target_": "tests.transforms.test_superpixel.halves", "_mode_": "callable"}],
    ids=["watershed", "own"],
)  # fmt: skip
def test_a_target_in_the_config_is_the_method(method, scan, tmp_path):
    files = [ROOT / "configs" / "train.json"]
    parser = read_config(files, {"superpixel#method": method, "superpixel#parameters": {}, "output_dir": str(tmp_path)})
    maps = parser.get_parsed_content("train#preprocessing").transforms[-1]({"image": scan[0], "body": scan[1]})
    assert len(np.unique(maps["superpixels"])) > 2


@pytest.mark.parametrize("method", ["felzenszwalb", "slic"])
def test_each_method_of_the_config_has_parameters_of_its_own(method, scan):
    given = {"superpixel#method": method, "superpixel#min_area_px": 2}  # the slices are small ones
    parser = read_config([ROOT / "configs" / "train.json"], given)
    maps = parser.get_parsed_content("train#preprocessing").transforms[-1]({"image": scan[0], "body": scan[1]})
    assert maps["superpixels"].shape[0] == 3
    assert maps["superpixels"].max() > 1


def test_what_is_no_map_and_what_a_method_does_not_take_are_refused(two_squares):
    image, mask = two_squares
    with pytest.raises(ValueError, match="superpixel method 'slic' takes no 'scale'; it takes image, n_segments"):
        Superpixels("slic", {"scale": 1})
    with pytest.raises(ValueError, match="must give whole numbers of shape .32, 32., got float32 of"):
        Superpixels(lambda image: image)(image, mask)
    with pytest.raises(ValueError, match="must be one of felzenszwalb, slic or a function, got 'quickshift'"):
        Superpixels("quickshift")
