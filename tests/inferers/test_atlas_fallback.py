from __future__ import annotations

import pytest
import torch

from bundle.inferers import AtlasFallback
from bundle.inferers.scans import EncodedSupport
from bundle.networks.blocks.prototypes import grid_positions

from .test_few_shot import CountingNetwork

DEPTH, SIDE, CHANNELS = 4, 16, 6


def boxed(rows, columns):
    """Cells (D, 1, h, w) of a box, 1 inside."""
    cells = torch.zeros(DEPTH, 1, SIDE, SIDE)
    cells[:, :, slice(*rows), slice(*columns)] = 1.0
    return cells


ORGAN, OTHER = boxed((4, 8), (4, 8)), boxed((10, 14), (10, 14))


def features_of(organ):
    """Query features (D, channels, h, w): two tissues, and a little noise."""
    noise = 0.05 * torch.randn(DEPTH, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    noise[:, 0] += 1 - organ[:, 0]
    noise[:, 1] += organ[:, 0]
    return noise


def support_of(label):
    shows = torch.ones(DEPTH, 1, dtype=torch.bool)
    features = torch.zeros(DEPTH, CHANNELS, SIDE, SIDE)
    return EncodedSupport(features, 10.0, [1], lambda _: True, label, 1 - label[:, 0], shows, range(DEPTH))


def in_place():
    """Places (D, 3, h, w) of cells that all lie where they are."""
    grid = grid_positions(SIDE, SIDE, torch.zeros(1)).T.expand(DEPTH, -1, -1)
    depths = torch.arange(float(DEPTH))[:, None, None].expand(-1, 1, SIDE * SIDE)
    return torch.cat([grid, depths], dim=1).reshape(DEPTH, 3, SIDE, SIDE)


def propagate(matched, label, **arguments):
    scores = 2 * matched[:, 0] - 1
    with torch.no_grad():
        call = AtlasFallback(**{"band": 1, "reach": 1, **arguments})
        return call(CountingNetwork(), features_of(ORGAN), scores, support_of(label), in_place(), 8)


@pytest.mark.parametrize("matched", [OTHER, torch.zeros_like(OTHER)], ids=["elsewhere", "nowhere"])
def test_a_label_that_is_matched_elsewhere_is_found_by_its_place(matched):
    label = boxed((5, 8), (4, 7))  # carried over, it covers a part of the organ
    found = propagate(matched, label)
    assert torch.equal(found > 0, ORGAN[:, 0] > 0)


def test_a_label_that_is_matched_in_its_place_stays():
    half, label = boxed((4, 8), (4, 6)), boxed((4, 8), (4, 8))
    assert propagate(ORGAN, boxed((5, 8), (4, 7))) is None
    assert propagate(half, label) is None
    assert propagate(half, label, below=0.6) is not None


@pytest.mark.parametrize(
    ("label", "arguments"), [(torch.zeros_like(ORGAN), {}), (ORGAN, {"band": SIDE})], ids=["no label", "no background"]
)
def test_without_cells_of_both_kinds_the_scores_stay(label, arguments):
    assert propagate(OTHER, label, **arguments) is None


@pytest.mark.parametrize("name", ["below", "band", "reach", "discount"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match="at least 0"):
        AtlasFallback(**{name: -1})
