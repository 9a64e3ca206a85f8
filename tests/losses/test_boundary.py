"""The boundary term: worked out by hand, and what it is meant to be blind to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.losses import EpisodeLoss, boundary_term
from bundle.losses.boundary import edges


def two_classes(foreground: torch.Tensor) -> torch.Tensor:
    """Maps ``(1, 2, h, w)`` of a foreground and what it leaves."""
    return torch.stack([1 - foreground, foreground])[None]


def spot(row: int, column: int, side: int = 7) -> torch.Tensor:
    """One pixel of foreground."""
    mask = torch.zeros(side, side)
    mask[row, column] = 1
    return mask


def test_edges_of_a_single_pixel():
    expected = torch.zeros(7, 7)
    expected[2:5, 2:5] = -1 / 8
    expected[3, 3] = 1
    torch.testing.assert_close(edges(spot(3, 3)[None, None])[0, 0], expected)


def test_edges_of_a_straight_line_and_none_at_the_image_border():
    half = torch.zeros(1, 1, 4, 6)
    half[..., 3:] = 1  # three neighbors of eight are of the other class, on either side
    expected = torch.tensor([0, 0, -3 / 8, 3 / 8, 0, 0]).expand(4, 6)
    torch.testing.assert_close(edges(half)[0, 0], expected)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (spot(3, 3), 0.0),
        (torch.full((7, 7), 0.5), 1.0),  # no edge at all
        (torch.zeros(7, 7), 1.0),
        (0.25 * spot(3, 3), 0.75),  # three quarters of each edge are missing
        (1 - spot(3, 3), 2.0),  # every edge the wrong way around
        (spot(3, 4), 1.5),  # a pixel further: 2 * 9/8 on the two pixels, 6 * 1/8 beside them, over 1 + 8 * 1/8
        (spot(3, 0), 1.875),  # apart: 2 there, 14/8 at the border, where pixels have their own copies beside them
    ],
    ids=["target", "flat", "nothing", "faint", "inverse", "shifted", "apart"],
)
def test_value_by_hand(predicted, expected):
    torch.testing.assert_close(boundary_term(two_classes(predicted), two_classes(spot(3, 3))), torch.tensor(expected))


def test_the_inside_of_a_class_does_not_count():
    target = torch.zeros(9, 9)
    target[:, 4:] = 1
    predicted = target.clone()
    predicted[:, :2] = 0.3  # wrong on the far side, but its edge lies elsewhere
    near = boundary_term(two_classes(predicted), two_classes(target))
    torch.testing.assert_close(near, torch.tensor(0.3))  # the edge of 0.3 against one of 1, on as many cells


def test_episode_loss_adds_it_with_its_factor_on_any_grid_and_number_of_ways():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 1, 16, 16), generator=generator)
    pred = torch.randn(2, 4, 8, 8, generator=generator)
    shares = F.avg_pool2d(F.one_hot(labels[:, 0], 4).permute(0, 3, 1, 2).float(), 2)
    plain, prior = EpisodeLoss()(pred, labels), boundary_term(pred.softmax(dim=1), shares)
    torch.testing.assert_close(EpisodeLoss(boundary_weight=0.5)(pred, labels), plain + 0.5 * prior)
    assert EpisodeLoss(boundary_weight=0.0)(pred, labels) == plain


def test_an_episode_without_edges_gives_a_finite_loss_and_gradient():
    pred = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = EpisodeLoss(boundary_weight=1.0)(pred, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(pred.grad).all()


def test_it_pulls_a_shifted_edge_back():
    target = torch.zeros(8, 8)
    target[:, 4:] = 1
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        boundary_term(logits.softmax(dim=1), two_classes(target)).backward()
        optimizer.step()
    assert boundary_term(logits.softmax(dim=1), two_classes(target)) < 0.1
