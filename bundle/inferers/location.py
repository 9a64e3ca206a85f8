"""Which support slices answer for which query slice, found from the images alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def describe_slices(features: Tensor, cells: int = 4) -> Tensor:
    """One unit vector a slice: its features averaged over a coarse grid.

    Args:
        features: ``(S, D, h, w)``.
        cells: side of the coarse grid.

    Returns:
        ``(S, D * cells * cells)``, centered over the slices of the scan so that what they share does not count.
    """
    pooled = F.adaptive_avg_pool2d(F.normalize(features, dim=1), cells).flatten(1)
    return F.normalize(pooled - pooled.mean(dim=0, keepdim=True), dim=1)


def align_scans(
    query: Tensor,
    support: Tensor,
    query_spacing: float,
    support_spacing: float,
    scales: Sequence[float] = (0.8, 0.9, 1.0, 1.1, 1.25),
    min_overlap: float = 0.5,
) -> tuple[Tensor, float]:
    """Place of each query slice on the support scan: the affine map along z with the most similar slices.

    Args:
        query: descriptions ``(Dq, F)`` of the query's slices.
        support: descriptions ``(Ds, F)`` of the support's.
        query_spacing: distance of the query's slices in mm.
        support_spacing: distance of the support's slices in mm.
        scales: body heights of the support relative to the query's that are tried.
        min_overlap: smallest share of the shorter scan that has to overlap.

    Returns:
        Positions ``(Dq,)`` in units of the support's slices, beyond ``[0, Ds - 1]`` where the support does not
        reach, and the mean similarity of the overlapping slices.
    """
    similar = query @ support.T  # (Dq, Ds)
    queries, supports = similar.shape
    steps = torch.arange(queries, dtype=torch.float32, device=similar.device)
    best_score, best = -2.0, steps
    for scale in scales:
        slope = scale * query_spacing / support_spacing
        reach = int((queries - 1) * slope) + 1
        for offset in torch.arange(-reach, supports, 0.5).tolist():
            positions = steps * slope + offset
            inside = (positions > -0.5) & (positions < supports - 0.5)
            count = int(inside.sum())
            if count < max(1.0, min_overlap * min(queries, supports / slope)):
                continue
            nearest = positions[inside].round().clamp(0, supports - 1).long()
            score = float(similar[inside, nearest].mean())
            if score > best_score:
                best_score, best = score, positions
    return best, best_score


def nearest_slices(positions: Tensor, num_slices: int, count: int) -> Tensor:
    """The ``count`` slices nearest to each position, nearest first; -1 where the support does not reach.

    Args:
        positions: ``(Dq,)`` in units of slices.
        num_slices: slices of the support scan.
        count: how many of them answer for a query slice.

    Returns:
        ``(Dq, count)``.
    """
    distance = (positions[:, None] - torch.arange(num_slices, device=positions.device)[None]).abs()
    order = distance.argsort(dim=1, stable=True)[:, :count]
    if order.shape[1] < count:
        order = F.pad(order, (0, count - order.shape[1]), value=-1)
    reached = (positions > -1) & (positions < num_slices)
    return torch.where(reached[:, None], order, torch.full_like(order, -1))
