from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.transforms import LargeComponents, LargeComponentsd


@pytest.fixture
def islands():
    """Label 1 in pieces of 8, 4 and 1 voxels, label 5 in one piece of 2: (1, 12, 4, 2)."""
    labels = torch.zeros(1, 12, 4, 2, dtype=torch.uint8)
    labels[0, :2, :2] = 1
    labels[0, 4:6, :2, 0] = 1
    labels[0, 8, 0, 0] = 1
    labels[0, 10:, 3, 0] = 5
    return labels


@pytest.mark.parametrize(("share", "kept"), [(0.0, 13), (0.1, 13), (0.3, 12), (0.5, 12), (0.6, 8), (1.0, 8)])
def test_components_stay_by_their_share_of_the_largest(islands, share, kept):
    cleaned = LargeComponents(share)(islands)
    assert (cleaned == 1).sum() == kept
    assert (cleaned == 5).sum() == 2
    assert cleaned.dtype == torch.uint8


def test_channels_are_cleaned_one_by_one(islands):
    masks = torch.cat([islands == 1, islands == 5]).to(torch.uint8)
    cleaned = LargeComponentsd("pred", min_share=0.6)({"pred": masks})["pred"]
    assert cleaned.flatten(1).sum(dim=1).tolist() == [8, 2]
    assert masks[0].sum() == 13


def test_empty_maps_pass():
    assert LargeComponents()(np.zeros((1, 3, 3, 3), np.uint8)).sum() == 0


def test_share_outside_is_named():
    with pytest.raises(ValueError, match=r"min_share must be in \[0, 1\], got 2"):
        LargeComponents(2)
