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


def test_several_draws_are_classes_of_one_label_map(superpixels):
    for label in draws(RandPseudoLabel(4, min_area_px=9), superpixels, 20):
        assert label.shape == (1, 16, 16)
        assert sorted(np.unique(label)) == [0, 1, 2, 3, 4]
        for value in range(1, 5):  # each class is one whole superpixel
            (identifier,) = np.unique(superpixels[0][label[0] == value])
            assert (superpixels[0] == identifier).sum() == (label == value).sum()


def test_classes_beyond_the_superpixels_are_absent(superpixels):
    eligible = sum((superpixels == value).sum() >= 9 for value in range(1, superpixels.max() + 1))
    label = RandPseudoLabel(40, min_area_px=9)(superpixels)
    assert label.max() == eligible


def test_levels_are_drawn_with_equal_probability_and_not_mixed():
    levels = np.stack([np.kron([[1, 2], [3, 4]], np.ones((8, 8))), np.ones((16, 16)), np.zeros((16, 16))]).astype(
        np.int16
    )
    draw = RandPseudoLabel(2, min_area_px=9).set_random_state(seed=0)
    whole = [(draw(levels) > 0).mean() == 1 for _ in range(400)]
    assert 0.42 < np.mean(whole) < 0.58


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
