from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.measurements import label_sides
from bundle.quality import Expectation, ExpectedDice

NOWHERE = [math.nan] * 3


def logistic(exponent):
    return 100 / (1 + math.exp(-exponent))


def test_expected_dice_by_hand():
    expect = ExpectedDice(bias=-1.0, reverse_dice=4.0, size=2.0, largest=1.5, spread=0.5)
    same = expect(0.5, [30.0, 20.0, 10.0], [30.0, 20.0, 10.0])
    assert same == pytest.approx((logistic(1.0), logistic(0.5), logistic(1.5)), abs=0.05)
    # two sides are twice or half as long, in whichever order the scans were stored
    other = expect(0.5, [60.0, 20.0, 5.0], [30.0, 20.0, 10.0])
    assert other == pytest.approx([logistic(1.0 - 2 * 2 * math.log(2) / 3 + step) for step in (0, -0.5, 0.5)], abs=0.05)
    assert expect(0.5, [3000.0, 2000.0, 1000.0], [30.0, 20.0, 10.0]).dice == pytest.approx(logistic(-2.0), abs=0.05)
    assert expect(0.0, None, [30.0, 20.0, 10.0]).dice == pytest.approx(logistic(-4.0), abs=0.05)  # not found
    assert expect(0.5, [30.0, 20.0, 10.0], NOWHERE) is None
    assert str(Expectation(84.4, 70.2, 90.0)) == "84 (70-90)"


@pytest.mark.parametrize("name", ["reverse_dice", "size", "largest", "spread"])
def test_a_negative_weight_is_refused(name):
    with pytest.raises(ValueError, match="must be at least 0"):
        ExpectedDice(**{name: -0.1})


def test_expected_dice_of_a_label_map():
    labels = torch.zeros(1, 8, 6, 4, dtype=torch.uint8)
    labels[0, 2:6, 1:3, 1] = 7
    affine = torch.diag(torch.tensor([2.0, -3.0, 5.0, 1.0], dtype=torch.float64))
    meta = {"label_values": torch.tensor([[3, 7, 9]]), "reverse_dice": torch.tensor([[0.2, 0.9, 0.9]])}
    sides = [[8.0, 6.0, 5.0], [8.0, 6.0, 5.0], NOWHERE]
    found = ExpectedDice().of(
        MetaTensor(labels, affine=affine, meta={**meta, "support_sides_mm": torch.tensor([sides])})
    )
    assert list(found) == [3, 7]
    assert found[7] == ExpectedDice()(0.9, sides[1], sides[1])
    assert found[3] == ExpectedDice()(0.2, None, sides[0])
    assert ExpectedDice().of(MetaTensor(labels, affine=affine, meta=meta)) == {}


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_sides_do_not_depend_on_how_a_scan_is_stored(kind):
    labels = np.zeros((9, 7, 5), dtype=kind)
    labels[1:4, 2:7, 0:2] = 3
    labels[0, 0, 0] = labels[5, 1, 4] = 40
    affine = np.diag([2.0, 1.0, 4.0, 1.0])
    expected = {3: [8.0, 6.0, 5.0], 40: [20.0, 12.0, 2.0]}
    assert label_sides(labels, affine) == expected
    turned = affine[:, [2, 0, 1, 3]] @ np.diag([1, -1, 1, 1])
    assert label_sides(labels.transpose(2, 0, 1), turned) == expected
