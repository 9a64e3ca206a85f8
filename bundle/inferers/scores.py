"""Scores of competing classes ``(D, n, h, w)``: smoothed along the slices, compared, left out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1e4  # score of a class that cannot appear in a slice


def smooth_slices(scores: Tensor, possible: Tensor, sigma: Tensor | float) -> Tensor:
    """Smooth scores along the slices, among those where a class can appear; elsewhere it cannot win.

    Args:
        scores: ``(D, n, h, w)``.
        possible: boolean ``(D, n)``.
        sigma: standard deviation of a Gaussian in slices, one for all classes or one each ``(n,)``; 0 for none.
    """
    widths = torch.as_tensor(sigma, dtype=scores.dtype)
    if bool((widths > 0).any()):
        widths = widths.to(scores.device).clamp(min=1e-3)  # of no width: each slice by itself
        steps = torch.arange(len(scores), dtype=scores.dtype, device=scores.device)
        kernel = torch.exp(-0.5 * ((steps[:, None] - steps[None])[..., None] / widths) ** 2) * possible[None]
        kernel = kernel / kernel.sum(dim=1, keepdim=True).clamp(min=1e-12)  # (D, D, n)
        scores = torch.einsum("tsn,snhw->tnhw", kernel, scores)
    return torch.where(possible[..., None, None], scores, ABSENT)


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
    best, winner = scores.max(dim=1, keepdim=True)
    second = scores.scatter(1, winner, -torch.inf).amax(dim=1, keepdim=True)  # on a CPU much faster than topk
    return torch.where(scores == best, best - second, scores - best)
