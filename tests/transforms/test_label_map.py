from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.transforms import ClassMasksd, LabelMap, LabelMapd, LabelMasksd

from ..conftest import volume


def scores(values, *channels):
    """Scores (C, 1, 1, D) of lists a channel, for label values."""
    made = volume(np.zeros((1, 1, 1)), np.diag([2.0, 3.0, 4.0, 1.0]))
    plain = torch.tensor(channels, dtype=torch.float32)[:, None, None]
    out = type(made)(plain, meta=dict(made.meta), affine=made.affine)
    out.meta["label_values"] = torch.tensor([values])
    return out


def test_highest_score_wins_with_the_value_of_the_support():
    out = LabelMap()(scores([7, 2], [0, 0, 5, 1], [1, -1, 4, 1], [0, 3, 4, 1]))
    assert out.flatten().tolist() == [7, 2, 0, 0]  # a tie is background
    assert out.dtype == torch.uint8
    assert out.shape == (1, 1, 1, 4)
    torch.testing.assert_close(out.affine, torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64)))


def test_scores_without_background_compare_with_zero():
    out = LabelMap()(scores([1, 4], [2, -1, 0, 1], [1, -2, 0, 3]))
    assert out.flatten().tolist() == [1, 0, 0, 4]


@pytest.mark.parametrize(
    ("value", "dtype"), [(255, torch.uint8), (256, torch.int16), (32767, torch.int16), (40000, torch.int32)]
)
def test_type_holds_the_largest_value(value, dtype):
    out = LabelMap()(scores([1, value], [0.0, 0], [1, 0], [0, 1]))
    assert out.dtype == dtype
    assert out.flatten().tolist() == [1, value]


def test_masks_of_competing_and_of_independent_scores():
    competing = ClassMasksd()({"pred": scores([7, 2], [0, 0, 5], [1, -1, 4], [2, 3, 4])})["pred"]
    assert competing.flatten(1).tolist() == [[0, 0, 0], [1, 1, 0]]
    independent = ClassMasksd()({"pred": scores([7, 2], [1, -1, 4], [2, 3, -4])})["pred"]
    assert independent.flatten(1).tolist() == [[1, 0, 1], [1, 1, 0]]
    assert independent.dtype == torch.uint8


def test_masks_of_a_label_map_are_in_the_given_order():
    label = volume(np.array([[[0, 3, 5, 3]]]))
    data = {"truth": label}
    out = LabelMasksd("truth", labels=[5, 3, 8])(data)["truth"]
    assert out.flatten(1).tolist() == [[0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert data["truth"] is label


def test_dictionary_version_equals_the_array_version():
    pred = scores([7, 2], [0, 0, 5, 1], [1, -1, 4, 1], [0, 3, 4, 1])
    torch.testing.assert_close(LabelMapd()({"pred": pred})["pred"], LabelMap()(pred))


def test_missing_and_unfit_values_are_named():
    with pytest.raises(KeyError, match="meta data lack label_values"):
        LabelMap()(volume(np.zeros((2, 2, 2))))
    with pytest.raises(ValueError, match=r"4 channels for the label values \[0, 1, 2\]"):
        LabelMap()(scores([1, 2], [0.0], [0], [0], [0]))
