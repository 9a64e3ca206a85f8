"""Scores that follow the edges of the image, which are finer than the feature grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .scores import ABSENT


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
        if exclusive:
            return self._filter_margins(scores, guide, radii)
        absent = scores < ABSENT / 2
        filtered = scores.clamp(-self.score_reach, self.score_reach)
        for radius in sorted(set(radii) - {0}):
            same = [row for row, own in enumerate(radii) if own == radius]
            filtered[:, same] = guided_filter(filtered[:, same], guide, radius, self.epsilon)
        return filtered.masked_fill_(absent, ABSENT)

    def _filter_margins(self, scores: Tensor, guide: Tensor, radii: Sequence[int]) -> Tensor:
        """Filter what each class wins by, the background's with the widest window, each where it is not clear."""
        best, winner = scores.max(dim=1)
        second = scores.scatter(1, winner[:, None], -torch.inf).amax(dim=1)
        absent = scores[:, :, :1, :1] < ABSENT / 2  # a class can appear in a slice or not
        out = torch.where(absent, ABSENT, -self.score_reach).repeat(1, 1, *scores.shape[2:])
        top = torch.full_like(best, -self.score_reach)
        near = (scores[:, 1:] > scores[:, :1] - self.score_reach).any(dim=0)  # (n, H, W)
        around = [3 * radius for radius in (max(radii), *radii)]
        boxes = _boxes(torch.cat([near.any(dim=0, keepdim=True), near]), around)
        for channel in [*range(1, scores.shape[1]), 0]:
            radius = radii[channel - 1] if channel else max(radii)
            box = boxes[channel]
            own, won = scores[:, channel][box], winner[box] == channel
            margin = torch.where(won, own - second[box], own - best[box])
            lost = margin < ABSENT / 2
            found = margin.clamp(-self.score_reach, self.score_reach)
            if radius > 0:
                found = guided_filter(found[:, None], guide[:, 0][box][:, None], radius, self.epsilon)[:, 0]
            if channel:
                top[box] = torch.maximum(top[box], found)
                out[:, channel][box] = found.masked_fill(lost, ABSENT)
            else:  # a wide window leaves too much background where a small structure is
                out[:, 0] = self.score_reach
                out[:, 0][box] = torch.minimum(found, -top[box])
        return out


def _boxes(shown: Tensor, around: Sequence[int]) -> list[tuple[slice, slice, slice]]:
    """Of each mask ``(n, H, W)`` all slices, and the rows and columns that it reaches with so many pixels around."""
    spans = []
    for profile, size in ((shown.any(dim=2), shown.shape[1]), (shown.any(dim=1), shown.shape[2])):
        steps = torch.arange(size, device=shown.device)
        low = torch.where(profile, steps, size).amin(dim=1)
        spans.append(torch.stack([low, torch.where(profile, steps, -1).amax(dim=1)], dim=1))
    every = slice(None)
    boxes = []
    for (top, bottom, left, right), pixels in zip(torch.cat(spans, dim=1).tolist(), around):
        rows = slice(max(0, top - pixels), bottom + 1 + pixels)
        columns = slice(max(0, left - pixels), right + 1 + pixels)
        boxes.append((every, rows, columns) if bottom >= 0 else (every, slice(0, 1), slice(0, 1)))
    return boxes


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
        batch_size: slices at a time, or fewer, see :func:`slices_a_pass`.

    Returns:
        ``(D, n, H, W)``.
    """
    batch_size = slices_a_pass(scores.shape[1], images, batch_size)
    out = scores.new_empty(*scores.shape[:2], *images.shape[-2:])
    for part, below, place in zip(scores.split(batch_size), images.split(batch_size), out.split(batch_size)):
        fine = F.interpolate(part, size=below.shape[-2:], mode="bilinear", align_corners=False)
        place.copy_(fine if guided is None else guided(fine, below, exclusive, widths))
    return out


def slices_a_pass(channels: int, images: Tensor, batch_size: int, numbers: int = 2**25) -> int:
    """How many slices are worked on at once, so that memory does not grow with the labels either.

    Args:
        channels: scores a pixel.
        images: slices ``(D, C, H, W)``.
        batch_size: at most so many.
        numbers: scores at once.
    """
    return max(1, min(batch_size, numbers // (channels * images.shape[-2] * images.shape[-1])))


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
        For each strip of the axis what its windows reach, and the matrix by which that is multiplied. A GPU takes the
        axis as one strip: it multiplies by zeros sooner than it starts more kernels.
    """
    strip = size if like.is_cuda else strip
    steps = torch.arange(size, device=like.device)
    inside = ((steps[:, None] - steps).abs() <= radius).to(like.dtype)
    windows = inside / inside.sum(dim=1, keepdim=True)
    found = []
    for first in range(0, size, strip):
        reached = slice(max(0, first - radius), first + strip + radius)
        found.append((reached, windows[first : first + strip, reached]))
    return found
