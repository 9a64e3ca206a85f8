from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundle.transforms import RandPseudoLabel, RandPseudoLabeld

SIZES = {1: 30, 2: 9, 3: 12, 4: 1, 5: 40}


@pytest.fixture
def superpixels():
    """A map (1, 16, 16) of five superpixels of known sizes."""
    flat = np.zeros(256, np.int16)
    start = 5
    for value, size in SIZES.items():
        flat[start : start + size] = value
        start += size
    return flat.reshape(1, 16, 16)


def draws(transform, superpixels, count):
    transform.set_random_state(seed=0)
    return [transform(superpixels) for _ in range(count)]


@pytest.mark.parametrize(
    ("min_area_px", "eligible"), [(1, {1, 2, 3, 4, 5}), (9, {1, 2, 3, 5}), (10, {1, 3, 5}), (40, {5})]
)
def test_every_large_superpixel_is_drawn_with_equal_probability_and_no_other(superpixels, min_area_px, eligible):
    count = 1200
    counts = dict.fromkeys(SIZES, 0)
    for mask in draws(RandPseudoLabel(min_area_px=min_area_px), superpixels, count):
        value = int(superpixels[mask > 0][0])
        np.testing.assert_array_equal(mask, superpixels == value)
        counts[value] += 1
    assert {value for value, times in counts.items() if times} == eligible
    expected = count / len(eligible)
    spread = np.sqrt(count * (1 / len(eligible)) * (1 - 1 / len(eligible)))
    assert all(abs(counts[value] - expected) <= 4 * spread for value in eligible)


def test_zero_min_area_never_gives_an_empty_mask(superpixels):
    gaps = superpixels.copy()
    gaps[gaps == 2] = 0  # an identifier that nothing has
    assert all(mask.any() for mask in draws(RandPseudoLabel(min_area_px=0), gaps, 200))


def test_several_draws_are_classes_that_do_not_repeat(superpixels):
    for label in draws(RandPseudoLabel(4, min_area_px=9), superpixels, 20):
        assert label.shape == (1, 16, 16)
        assert set(np.unique(label)) == {0, 1, 2, 3, 4}
        drawn = [np.unique(superpixels[label == way]) for way in (1, 2, 3, 4)]
        assert all(len(values) == 1 for values in drawn)
        assert {int(values[0]) for values in drawn} == {1, 2, 3, 5}
        assert (label > 0).sum() == 30 + 9 + 12 + 40
    fewer = draws(RandPseudoLabel(6, min_area_px=9), superpixels, 1)[0]
    assert set(np.unique(fewer)) == {0, 1, 2, 3, 4}  # the rest of the classes is absent


def test_one_level_is_drawn_among_those_that_have_a_large_superpixel(superpixels):
    empty = np.zeros_like(superpixels)
    coarse = np.where(superpixels > 0, 1, 0).astype(np.int16)
    counts = {"fine": 0, "coarse": 0}
    for label in draws(RandPseudoLabel(1, min_area_px=9), np.concatenate([empty, superpixels, coarse]), 400):
        counts["coarse" if (label > 0).sum() == (coarse > 0).sum() else "fine"] += 1
    assert abs(counts["fine"] - 200) < 40


def test_same_seed_same_draws_and_another_seed_others(superpixels):
    def sequence(seed):
        transform = RandPseudoLabel(min_area_px=1).set_random_state(seed=seed)
        return np.stack([transform(superpixels) for _ in range(12)])

    np.testing.assert_array_equal(sequence(3), sequence(3))
    assert (sequence(3) != sequence(4)).any()


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_type_follows_the_input(superpixels, make):
    mask = RandPseudoLabel(min_area_px=1)(make(superpixels))
    assert type(mask) is type(make(superpixels))
    assert str(mask.dtype).endswith("uint8")


def test_dictionary_version_draws_the_same_under_compose(superpixels):
    data = {"superpixels": superpixels}
    chain = Compose([RandPseudoLabeld(num_draws=2, min_area_px=9)]).set_random_state(seed=1)
    first = [chain(data)["pseudo_label"] for _ in range(5)]
    chain.set_random_state(seed=1)
    np.testing.assert_array_equal(first, [chain(data)["pseudo_label"] for _ in range(5)])
    assert set(data) == {"superpixels"}


def test_too_small_superpixels_are_an_error(superpixels):
    with pytest.raises(ValueError, match="no superpixel of at least 41 pixels .* lower min_area_px"):
        RandPseudoLabel(min_area_px=41)(superpixels)
