from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.transforms import ConfidenceMap, ConfidenceMapd, LabelMap, LabelMapd, MeanConfidence, MeanConfidenced

from ..conftest import volume
from .test_label_map import scores


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_competing_scores_are_a_softmax_at_the_temperature():
    out = ConfidenceMap(temperature=0.5)(scores([7, 2], [0, 1], [1, 0], [-1e4, -1e4]))
    assert out.shape == (1, 1, 1, 2)
    np.testing.assert_allclose(out.flatten(), [sigmoid(2), sigmoid(2)], rtol=1e-6)
    three = ConfidenceMap(temperature=2.0)(scores([7, 2], [2.0], [4.0], [0.0]))
    assert float(three) == pytest.approx(math.exp(2) / (math.exp(1) + math.exp(2) + 1))
    torch.testing.assert_close(out.affine, torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64)))


def test_independent_scores_are_a_sigmoid_and_background_is_as_sure_as_its_closest_label():
    out = ConfidenceMap(temperature=0.5)(scores([1, 4], [2, -1, -3], [1, -2, -0.5]))
    np.testing.assert_allclose(out.flatten(), [sigmoid(4), sigmoid(2), sigmoid(1)], rtol=1e-6)


@pytest.mark.parametrize("channels", [([0, 0.0], [0, 1], [0, 0]), ([0, 1.0], [0, -1])])
def test_outside_of_the_frame_is_background_by_rule(channels):
    pred = scores([1, 2], *channels)
    assert ConfidenceMap()(pred).flatten()[0] == 1
    assert ConfidenceMap(outside=0.25)(pred).flatten()[0] == 0.25
    assert 0.25 < ConfidenceMap(outside=0.25)(pred).flatten()[1] < 1


@pytest.mark.parametrize("channels", [([0.0, 3], [2, 1], [1, 0]), ([2.0, -1], [1, 2])])
def test_a_given_label_map_decides_the_class(channels):
    pred = scores([7, 2], *channels)
    torch.testing.assert_close(ConfidenceMap()(pred, LabelMap()(pred)), ConfidenceMap()(pred))
    changed = ConfidenceMap()(pred, torch.tensor([0, 2]).view(1, 1, 1, 2))  # an island was removed
    assert changed.flatten()[0] < 0.5
    with pytest.raises(ValueError, match=r"shows 3, the scores are of \[0, 7, 2\]"):
        ConfidenceMap()(pred, torch.tensor([0, 3]).view(1, 1, 1, 2))
    with pytest.raises(ValueError, match="shape"):
        ConfidenceMap()(pred, torch.zeros(1, 1, 1, 3))


def test_higher_temperature_is_less_sure_and_never_changes_the_order():
    pred = scores([1], [0.0, 0, 0], [-2, 1, 3])
    cold, warm = (ConfidenceMap(t)(pred).flatten() for t in (0.3, 3.0))
    assert (cold > warm).all()
    assert (warm >= 0.5).all()


def test_dictionary_version_writes_whole_percent_under_its_own_key():
    pred = scores([7, 2], [0, 0, 5, 1], [1, -1, 4, 1], [0, 3, 4, 1])
    data = {"pred": pred, "label_map": LabelMap()(pred)}
    out = ConfidenceMapd("pred", "confidence", "label_map", temperature=2.0)(data)
    assert out["pred"] is pred
    assert set(data) == {"pred", "label_map"}
    assert out["confidence"].dtype == torch.uint8
    expected = (100 * ConfidenceMap(2.0)(pred).as_subclass(torch.Tensor)).round().to(torch.uint8)
    torch.testing.assert_close(out["confidence"].as_subclass(torch.Tensor), expected)
    assert ConfidenceMapd("pred")({"pred": pred})["pred"].shape == (1, 1, 1, 4)
    assert ConfidenceMapd("pred", allow_missing_keys=True)({"other": 1}) == {"other": 1}


def test_bad_settings_and_scores_are_named():
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            ConfidenceMap(bad)
    with pytest.raises(ValueError, match="outside must lie"):
        ConfidenceMap(outside=1.5)
    with pytest.raises(KeyError, match="meta data lack label_values"):
        ConfidenceMap()(volume(np.zeros((2, 2, 2))))
    with pytest.raises(ValueError, match=r"4 channels for the label values \[0, 1, 2\]"):
        ConfidenceMap()(scores([1, 2], [0.0], [0], [0], [0]))


@pytest.mark.parametrize("channels", [([0.0, 3, 0, 0], [2, 1, 1, 0], [1, 0, 3, 0]), ([2.0, -1, 1, 0], [1, 2, 3, 0])])
def test_mean_confidence_is_that_of_the_map_over_each_label(channels):
    pred = scores([7, 2], *channels)
    labels = torch.tensor([7, 7, 2, 0]).view(1, 1, 1, 4)
    found = MeanConfidence(0.5)(pred, MetaTensor(labels)).meta["label_confidence"]
    whole = ConfidenceMapd(label_key="label", temperature=0.5)({"pred": pred, "label": labels})["pred"]
    expected = torch.stack([whole.as_subclass(torch.Tensor)[labels == value].float().mean() for value in (7, 2)])
    torch.testing.assert_close(found, expected)
    nowhere = MeanConfidence(0.5)(pred, MetaTensor(torch.full_like(labels, 7))).meta["label_confidence"]
    assert nowhere.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1, 3\) for scores of"):
        MeanConfidence()(pred, MetaTensor(labels[..., 1:]))


def test_scores_are_kept_for_the_confidence_without_a_copy():
    pred = scores([1], [0.0, 0, 0], [-2, 1, 3])
    kept = LabelMapd("pred", scores_key="scores")({"pred": pred})
    assert kept["scores"] is pred
    found = MeanConfidenced("scores", "pred")(kept)
    assert found["pred"].meta["label_confidence"].shape == (1,)
    assert "label_confidence" not in kept["pred"].meta
    assert LabelMapd("pred")({"pred": pred}).keys() == {"pred"}
