"""Where the slices and cells of a query lie on a support scan, found from the images alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.blocks.prototypes import grid_positions, normalize


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
    overlap_penalty: float = 0.3,
    flip_margin: float = 0.1,
) -> tuple[Tensor, float]:
    """Place of each query slice on the support scan: the affine map along z with the most similar slices.

    Args:
        query: descriptions ``(Dq, F)`` of the query's slices.
        support: descriptions ``(Ds, F)`` of the support's.
        query_spacing: distance of the query's slices in mm.
        support_spacing: distance of the support's slices in mm.
        scales: body heights of the support relative to the query's that are tried.
        min_overlap: smallest share of the shorter scan that has to overlap.
        overlap_penalty: what a map loses if the scans do not overlap at all, in proportion to what does not.
        flip_margin: by how much more similar the slices must be in reverse order for the query to count as upside
            down; a header that lies about the direction of z does that.

    Returns:
        Positions ``(Dq,)`` in units of the support's slices, beyond ``[0, Ds - 1]`` where the support does not
        reach, and the mean similarity of the overlapping slices.
    """
    similar = query @ support.T  # (Dq, Ds)
    ratio = query_spacing / support_spacing
    slopes = [scale * ratio for scale in scales]
    upright, fit = _best_line(similar, slopes, min_overlap, overlap_penalty)
    reverse, reverse_fit = _best_line(similar.flip(0), slopes, min_overlap, overlap_penalty)
    return (reverse.flip(0), reverse_fit) if reverse_fit > fit + flip_margin else (upright, fit)


def _best_line(
    similar: Tensor, slopes: Sequence[float], min_overlap: float, overlap_penalty: float
) -> tuple[Tensor, float]:
    """The line through a table ``(Dq, Ds)`` of similar slices with the best mean, and that mean."""
    queries, supports = similar.shape
    steps = torch.arange(queries, dtype=torch.float32)
    lines, largest = [], []
    for slope in slopes:  # all candidates at once: (L, Dq)
        offsets = torch.arange(-(int((queries - 1) * slope) + 1), supports, 0.5)
        lines.append(steps * slope + offsets[:, None])
        largest.append(torch.full_like(offsets, max(1.0, min(queries, supports / slope))))
    positions = torch.cat(lines).to(similar.device)
    possible = torch.cat(largest).to(similar.device)
    inside = (positions > -0.5) & (positions < supports - 0.5)
    count = inside.sum(dim=1)
    nearest = positions.round().clamp(0, supports - 1).long()
    found = similar[torch.arange(queries, device=similar.device), nearest]
    means = (found * inside).sum(dim=1) / count.clamp(min=1)
    scores = means - overlap_penalty * (1 - count / possible).clamp(min=0)
    scores = torch.where(count >= (min_overlap * possible).clamp(min=1), scores, torch.full_like(scores, -9.0))
    best = int(scores.argmax())
    return positions[best], float(means[best])


class CellLocator:
    """Finds where each cell of a query lies on a support scan: a smooth displacement field of matching features.

    Organs do not move together from one body to the next, so that one line along z places no slice right for all of
    them. Starting from it, each cell of a coarse grid is moved to the mean place of the support's cells around it,
    weighted by their similarity and nearness; the displacements are smoothed, and it is done again from there.

    Args:
        reach: support slices above and below that are looked at.
        rounds: how often displacements are measured and smoothed; 0 leaves the cells where the slices lie.
        temperature: factor of the cosine similarity.
        position_weight: factor of the squared distance in the plane, in units of the image's side.
        depth_weight: factor of the squared distance along z, in cm.
        pooling: cells of the feature grid a cell of the coarse grid, along each side.
        smoothing: standard deviation of the Gaussian in the plane, in units of the image's side.
        smoothing_mm: its standard deviation along z.
    """

    def __init__(
        self,
        reach: int = 3,
        rounds: int = 3,
        temperature: float = 20.0,
        position_weight: float = 50.0,
        depth_weight: float = 0.3,
        pooling: int = 2,
        smoothing: float = 0.1,
        smoothing_mm: float = 12.0,
    ) -> None:
        if reach < 0 or rounds < 0 or pooling < 1:
            raise ValueError(f"reach and rounds must be at least 0 and pooling 1, got {reach}, {rounds} and {pooling}")
        self.reach = reach
        self.rounds = rounds
        self.temperature = temperature
        self.position_weight = position_weight
        self.depth_weight = depth_weight
        self.pooling = pooling
        self.smoothing = smoothing
        self.smoothing_mm = smoothing_mm

    def __call__(
        self,
        query: Tensor,
        support: Tensor,
        positions: Tensor,
        query_spacing: float,
        support_spacing: float,
        reach: int | None = None,
    ) -> Tensor:
        """Locate the cells.

        Args:
            query: features ``(Dq, D, h, w)``.
            support: features ``(Ds, D, h, w)``.
            positions: first guess of the query slices' positions ``(Dq,)``, in units of the support's slices.
            query_spacing: distance of the query's slices in mm.
            support_spacing: distance of the support's slices in mm.
            reach: in place of the one given at first; 0 keeps each slice where it is and moves cells within it.

        Returns:
            ``(Dq, 3, h, w)``: row and column in units of the image's side, depth in cm from the support's first
            slice.
        """
        reach = self.reach if reach is None else reach
        size = query.shape[-2:]
        slice_cm = support_spacing / 10
        depths = (positions.to(query) * slice_cm)[:, None, None]
        side = min(self.pooling, *size)
        cells = normalize(F.avg_pool2d(query, side), 1)
        targets = normalize(F.avg_pool2d(support, side), 1).flatten(2).transpose(1, 2)  # (Ds, P, D)
        height, width = cells.shape[-2:]
        start = _at_depth(grid_positions(height, width, query), depths)  # (Dq, 3, P)
        moved = torch.zeros_like(start)
        steps = torch.arange(-reach, reach + 1, device=query.device)
        around = positions.to(query.device).round().long()[:, None] + steps
        known = (around >= 0) & (around < len(support))
        centers = grid_positions(height, width, query)
        planes = torch.arange(len(support), device=query.device)[:, None, None] * slice_cm
        spots = _at_depth(centers, planes).transpose(1, 2)  # (Ds, P, 3)
        weight = torch.tensor([self.position_weight, self.position_weight, self.depth_weight]).sqrt().to(query)
        for _ in range(self.rounds):
            for index in range(len(query)):
                near = around[index][known[index]]
                if not len(near):
                    continue  # no support slice is near
                places = spots[near].flatten(0, 1)
                here = (start[index] + moved[index]).T
                similar = self.temperature * targets[near].flatten(0, 1) @ cells[index].flatten(1)
                similar = similar - torch.cdist(places * weight, here * weight).square()
                moved[index] = places.T @ similar.softmax(dim=0) - start[index]
            field = moved.reshape(len(query), 3, height, width)
            field = _blur(_blur(field, 2, self.smoothing * height), 3, self.smoothing * width)
            moved = _blur(field, 0, self.smoothing_mm / query_spacing).flatten(2)
        field = moved.reshape(len(query), 3, height, width)
        field = F.interpolate(field, size=size, mode="bilinear", align_corners=False)
        return _at_depth(grid_positions(size[0], size[1], query), depths).reshape(len(query), 3, *size) + field


def _at_depth(grid: Tensor, depths: Tensor) -> Tensor:
    """Places ``(S, 3, P)`` of the cells ``(P, 2)`` of slices at depths ``(S, 1, 1)``."""
    return torch.cat([grid.T.expand(len(depths), -1, -1), depths.to(grid).expand(-1, 1, len(grid))], dim=1)


def _blur(field: Tensor, dim: int, sigma: float) -> Tensor:
    """Smooth a tensor along an axis by a Gaussian that is normalized at the ends."""
    if sigma <= 0:
        return field
    steps = torch.arange(field.shape[dim], dtype=field.dtype, device=field.device)
    kernel = torch.exp(-0.5 * ((steps[:, None] - steps[None]) / sigma) ** 2)
    return torch.tensordot(field.movedim(dim, -1), (kernel / kernel.sum(dim=1, keepdim=True)).T, 1).movedim(-1, dim)


def nearest_slices(positions: Tensor, annotated: Tensor, count: int) -> Tensor:
    """The ``count`` annotated slices nearest to each position, nearest first; -1 where none is in reach.

    The annotation reaches beyond its outermost slices by half the largest distance of neighboring ones, at least by
    a slice.

    Args:
        positions: ``(Dq,)`` in units of slices.
        annotated: numbers of the support's annotated slices ``(A,)``, ascending.
        count: how many of them answer for a query slice.

    Returns:
        ``(Dq, count)``.
    """
    distance = (positions[:, None] - annotated[None]).abs()
    order = annotated[distance.argsort(dim=1, stable=True)[:, :count]]
    if order.shape[1] < count:
        order = F.pad(order, (0, count - order.shape[1]), value=-1)
    gap = float(annotated.diff().max()) if len(annotated) > 1 else 1.0
    reach = max(1.0, gap / 2)
    reached = (positions > annotated[0] - reach) & (positions < annotated[-1] + reach)
    return torch.where(reached[:, None], order, torch.full_like(order, -1))
