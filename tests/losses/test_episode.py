from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.losses import EpisodeLoss
from bundle.losses.episode import class_shares


def test_query_and_alignment_terms_are_the_published_ones():
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(2, 4, 5, 5, generator=generator)
    target = (torch.rand(2, 2, 5, 5, generator=generator) > 0.6).float()
    query = F.log_softmax(pred[:, :2], dim=1)
    chosen = target[:, 0]
    weight = torch.where(chosen > 0, 1.0, 0.05)
    log_likelihood = torch.where(chosen > 0, query[:, 1], query[:, 0])
    expected = -(weight * log_likelihood).sum() / weight.sum()
    support = F.log_softmax(pred[:, 2:], dim=1)
    expected = expected - torch.where(target[:, 1] > 0, support[:, 1], support[:, 0]).mean()
    torch.testing.assert_close(EpisodeLoss()(pred, target), expected)


@pytest.mark.parametrize(("way", "shot"), [(1, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("align", [False, True])
def test_channels_are_told_apart(way, shot, align):
    channels = 1 + way + (2 * way * shot if align else 0)
    pred = torch.zeros(1, channels, 4, 4, requires_grad=True)
    target = torch.zeros(1, 1 + way * shot, 4, 4)
    EpisodeLoss()(pred, target).backward()
    assert (pred.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_misfit_is_named():
    with pytest.raises(ValueError, match="pred of 3 channels does not fit a target of 2 channels"):
        EpisodeLoss()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4))


def test_counted_shares_are_the_averages_of_the_masks():
    labels = torch.randint(0, 5, (2, 12, 24), generator=torch.Generator().manual_seed(0))
    masks = torch.stack([labels == value for value in range(4)], dim=1).float()  # 4 is beyond the classes
    torch.testing.assert_close(class_shares(labels, 4, (3, 8)), F.adaptive_avg_pool2d(masks, (3, 8)), atol=0, rtol=0)
    assert torch.equal(class_shares(labels, 5, (12, 24)), F.one_hot(labels, 5).permute(0, 3, 1, 2).float())
