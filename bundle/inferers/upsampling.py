"""Scores that follow the edges of the image, which are finer than the feature grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
        rows, columns = self._unsure(scores, 3 * max(radii)) if exclusive else (slice(None), slice(None))
        inside, reach = scores[..., rows, columns], self.score_reach
        guide = (images[:, :1, rows, columns] / 2).clamp(-1, 2)  # bright outliers must not flatten what lies below them
        margin = margins(inside) if exclusive else inside
        absent = margin < ABSENT / 2
        filtered = margin.clamp(-reach, reach)
        each = [max(radii), *radii] if exclusive else radii
        for radius in sorted(set(each) - {0}):
            same = [row for row, own in enumerate(each) if own == radius]
            filtered[:, same] = guided_filter(filtered[:, same], guide, radius, self.epsilon)
        filtered.masked_fill_(absent, ABSENT)
        if not exclusive:
            return filtered
        # a wide window leaves too much background where a small structure is
        filtered[:, 0] = torch.minimum(filtered[:, 0], -filtered[:, 1:].amax(dim=1))
        if inside.shape == scores.shape:
            return filtered
        out = torch.where(scores[..., :1, :1] < ABSENT / 2, ABSENT, -reach).repeat(1, 1, *scores.shape[2:])
        out[:, 0] = reach
        out[..., rows, columns] = filtered
        return out

    def _unsure(self, scores: Tensor, around: int) -> tuple[slice, slice]:
        """Rows and columns beyond which the background wins by so much that a filter changes nothing.

        Args:
            scores: competing scores ``(D, n, H, W)``, the background first.
            around: pixels that a filter reaches.
        """
        found = (scores[:, 1:].amax(dim=1) > scores[:, 0] - self.score_reach).any(dim=0)
        box = []
        for shown in (found.any(dim=1).cpu(), found.any(dim=0).cpu()):
            inside = shown.nonzero()[:, 0].tolist() or [0]
            box.append(slice(max(0, inside[0] - around), inside[-1] + 1 + around))
        return box[0], box[1]


def upsample(
    scores: Tensor,
    images: Tensor,
    guided: GuidedUpsampling | None,
    exclusive: bool,
    widths: Sequence[float],
    batch_size: int,
) -> Tensor:
    """Bring scores from the feature grid to the image, a few slices at a time.

    Args:
        scores: ``(D, n, h, w)``.
        images: slices ``(D, C, H, W)``.
        guided: fits them to the images; ``None`` for nothing.
        exclusive: see :class:`GuidedUpsampling`.
        widths: see there.
        batch_size: slices at a time.

    Returns:
        ``(D, n, H, W)``.
    """
    out = scores.new_empty(*scores.shape[:2], *images.shape[-2:])
    for part, below, place in zip(scores.split(batch_size), images.split(batch_size), out.split(batch_size)):
        fine = F.interpolate(part, size=below.shape[-2:], mode="bilinear", align_corners=False)
        place.copy_(fine if guided is None else guided(fine, below, exclusive, widths))
    return out


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
    down, across = (_windows(size, radius, values) for size in values.shape[-2:])

    def mean(x: Tensor) -> Tensor:  # products are several times faster than pooling with a window as wide
        x = torch.cat([window @ x[..., reached, :] for reached, window in down], dim=-2)
        return torch.cat([x[..., reached] @ window.T for reached, window in across], dim=-1)

    guide_mean, value_mean = mean(guide), mean(values)
    slope = (mean(guide * values) - guide_mean * value_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    return mean(slope) * guide + mean(value_mean - slope * guide_mean)


def _windows(size: int, radius: int, like: Tensor, strip: int = 64) -> list[tuple[slice, Tensor]]:
    """Means over a window, which is cut at the ends, as products of matrices.

    Returns:
        For each strip of the axis what its windows reach, and the matrix by which that is multiplied.
    """
    steps = torch.arange(size, device=like.device)
    inside = ((steps[:, None] - steps).abs() <= radius).to(like.dtype)
    windows = inside / inside.sum(dim=1, keepdim=True)
    found = []
    for first in range(0, size, strip):
        reached = slice(max(0, first - radius), first + strip + radius)
        found.append((reached, windows[first : first + strip, reached]))
    return found
