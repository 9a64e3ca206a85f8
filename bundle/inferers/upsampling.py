"""Scores that follow the edges of the image, which are finer than the feature grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scores import ABSENT, margins


@dataclass(frozen=True)
class GuidedUpsampling:
    """Fits scores to the image by a guided filter, whose window follows the width of each label.

    A window much wider than a structure wipes it out.

    Args:
        radius_px: largest half side of a window.
        share: half side as a share of the label's width on the support, see :func:`label_widths`.
        epsilon: see :func:`guided_filter`.
        score_reach: scores beyond it are as certain as scores can be, and must not outweigh an edge.

    Raises:
        ValueError: for a negative radius or share, or an epsilon or reach that is not positive.
    """

    radius_px: int = 12
    share: float = 0.4
    epsilon: float = 0.01
    score_reach: float = 2.0

    def __post_init__(self) -> None:
        if min(self.radius_px, self.share) < 0 or min(self.epsilon, self.score_reach) <= 0:
            raise ValueError(
                "radius_px and share must be at least 0, epsilon and score_reach positive, got "
                f"{self.radius_px}, {self.share}, {self.epsilon} and {self.score_reach}"
            )

    def radius(self, width: float) -> int:
        """Half side of the window in pixels for a label of such a width."""
        return min(self.radius_px, round(self.share * width))

    def __call__(self, scores: Tensor, images: Tensor, exclusive: bool, widths: Sequence[float]) -> Tensor:
        """Filter.

        Args:
            scores: of the images' size ``(D, n, H, W)``.
            images: slices ``(D, C, H, W)`` of zero mean and unit variance; their first channel guides.
            exclusive: whether the channels are exclusive classes, the background first, so that margins are filtered,
                or each stands against 0.
            widths: of each label in pixels; scores of one of radius 0 stay as they are.

        Returns:
            ``(D, n, H, W)``.
        """
        radii = [self.radius(width) for width in widths]
        if not any(radii):
            return scores
        guide = (images[:, :1] / 2).clamp(-1, 2)  # bright outliers must not flatten what lies below them
        margin = margins(scores) if exclusive else scores
        absent = margin < ABSENT / 2
        filtered = margin.clamp(-self.score_reach, self.score_reach)
        each = torch.tensor([max(radii), *radii] if exclusive else radii)
        for radius in each[each > 0].unique().tolist():
            rows = each == radius
            filtered[:, rows] = guided_filter(filtered[:, rows], guide, radius, self.epsilon)
        filtered = torch.where(absent, torch.full_like(filtered, ABSENT), filtered)
        if exclusive:  # a wide window leaves too much background where a small structure is
            filtered[:, 0] = torch.minimum(filtered[:, 0], -filtered[:, 1:].amax(dim=1))
        return filtered


def guided_filter(values: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Fit values to a guide by a local linear model, so that their edges follow the guide's.

    Args:
        values: ``(D, n, H, W)``.
        guide: ``(D, 1, H, W)``.
        radius: half the side of the window in pixels.
        epsilon: variance of the guide below which a window counts as flat and is averaged.

    Returns:
        ``(D, n, H, W)``.

    Reference: He, Sun and Tang, IEEE TPAMI 35(6), 2013, https://doi.org/10.1109/TPAMI.2012.213.
    """
    down, across = (_window(size, radius, values) for size in values.shape[-2:])

    def mean(x: Tensor) -> Tensor:
        return down @ x @ across.T  # several times faster than pooling with a window as wide

    guide_mean, value_mean = mean(guide), mean(values)
    slope = (mean(guide * values) - guide_mean * value_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    return mean(slope) * guide + mean(value_mean - slope * guide_mean)


def _window(size: int, radius: int, like: Tensor) -> Tensor:
    """Matrix ``(size, size)`` whose product with a vector is its mean over a window, which is cut at the ends."""
    steps = torch.arange(size, device=like.device)
    inside = ((steps[:, None] - steps).abs() <= radius).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
