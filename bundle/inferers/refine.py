"""Finer scores than the feature grid gives: smoothed along the slices, sharpened along the image's edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1e4  # score of a class that cannot appear in a slice


def smooth_slices(scores: Tensor, possible: Tensor, sigma: float) -> Tensor:
    """Smooth scores along the slices, among those where a class can appear; elsewhere it cannot win.

    Args:
        scores: ``(D, n, h, w)``.
        possible: boolean ``(D, n)``.
        sigma: standard deviation of a Gaussian in slices; 0 for none.
    """
    if sigma > 0:
        steps = torch.arange(len(scores), dtype=scores.dtype, device=scores.device)
        kernel = torch.exp(-0.5 * ((steps[:, None] - steps[None]) / sigma) ** 2)[..., None] * possible[None]
        kernel = kernel / kernel.sum(dim=1, keepdim=True).clamp(min=1e-12)  # (D, D, n)
        scores = torch.einsum("tsn,snhw->tnhw", kernel, scores)
    return torch.where(possible[..., None, None], scores, torch.full_like(scores, ABSENT))


@dataclass(frozen=True)
class Remnants:
    """Labels that lie at an end of a scan, are small there and unsure.

    A scan may cut a structure off, or not show it, and another one beside its end be taken for it.

    Args:
        share: what is less than this share of a label's usual volume is small.
        margin: what wins by less on average is unsure.
    """

    share: float = 0.15
    margin: float = 1.33

    def find(self, scores: Tensor, usual: Sequence[float]) -> Tensor:
        """Find them.

        Args:
            scores: competing scores ``(D, 1 + n, H, W)``, the background first.
            usual: how much of a scan of the same spacing each of the ``n`` labels usually takes, in slices' areas.

        Returns:
            ``(n,)`` booleans.
        """
        winner = scores.argmax(dim=1)
        found = torch.zeros(len(usual), dtype=torch.bool, device=scores.device)
        for row, volume in enumerate(usual):
            won = winner == row + 1
            if (won[0].any() or won[-1].any()) and won.sum() / winner[0].numel() < self.share * volume:
                found[row] = margins(scores)[:, row + 1][won].mean() < self.margin
        return found


def leave_out(scores: Tensor, kept: Tensor) -> Tensor:
    """Take labels out of competing scores ``(D, 1 + n, h, w)``, those not ``kept`` ``(n,)``.

    What looked like one of them is background, and no other label either.
    """
    kept = F.pad(kept, (1, 0), value=True)
    won, winner = scores.max(dim=1)
    scores = smooth_slices(scores, kept.expand(len(scores), -1), 0.0)
    scores[:, 0] = torch.where(kept[winner], scores[:, 0], won)
    return scores


def margins(scores: Tensor) -> Tensor:
    """Score of each class less the best of the others: ``(D, n, h, w)``, positive where the class wins.

    A single channel is its own margin against a background of 0.
    """
    if scores.shape[1] == 1:
        return scores
    best, second = scores.topk(2, dim=1).values.split(1, dim=1)
    return torch.where(scores == best, best - second, scores - best)


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

    def mean(x: Tensor) -> Tensor:
        rows = F.avg_pool2d(x, (2 * radius + 1, 1), stride=1, padding=(radius, 0), count_include_pad=False)
        return F.avg_pool2d(rows, (1, 2 * radius + 1), stride=1, padding=(0, radius), count_include_pad=False)

    guide_mean, value_mean = mean(guide), mean(values)
    slope = (mean(guide * values) - guide_mean * value_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    return mean(slope) * guide + mean(value_mean - slope * guide_mean)


def upsample_scores(
    scores: Tensor, images: Tensor, compete: bool, radii: Sequence[int], epsilon: float = 0.02, reach: float = 2.0
) -> Tensor:
    """Bring scores from the feature grid to the image, bilinearly and, with radii, along the image's edges.

    Args:
        scores: ``(D, n, h, w)``.
        images: slices ``(D, C, H, W)`` of zero mean and unit variance; their first channel guides.
        compete: whether the channels compete, the background first, so that margins are filtered, or each stands
            against 0.
        radii: for each label, half the side of the guided filter's window in pixels; 0 leaves its scores as they
            are. A window much wider than a structure wipes it out.
        epsilon: see :func:`guided_filter`.
        reach: scores beyond it are as certain as scores can be, and must not outweigh an edge.

    Returns:
        ``(D, n, H, W)``.
    """
    fine = F.interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=False)
    if not any(radii):
        return fine
    guide = (images[:, :1] / 2).clamp(-1, 2)  # bright outliers must not flatten what lies below them
    margin = margins(fine) if compete else fine
    absent = margin < ABSENT / 2
    filtered = margin.clamp(-reach, reach)
    each = torch.tensor([max(radii), *radii] if compete else list(radii))
    for radius in each[each > 0].unique().tolist():
        rows = each == radius
        filtered[:, rows] = guided_filter(filtered[:, rows], guide, radius, epsilon)
    filtered = torch.where(absent, torch.full_like(filtered, ABSENT), filtered)
    if compete:  # a wide window leaves too much background where a small structure is
        filtered[:, 0] = torch.minimum(filtered[:, 0], -filtered[:, 1:].amax(dim=1))
    return filtered
