"""Which slices of a support scan lie at the height of a query's slices, found from the images alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.blocks.prototypes import normalize
from .cell_registration import CellRegistration, registered_similarities
from .scans import EncodedSupport, Registration, SupportSummary, annotation_reach

ALIGNMENT = {  # arguments of align_scans
    "scales": [0.8, 0.9, 1.0, 1.1, 1.25],
    "scale_penalty": 0.05,
    "min_overlap": 0.5,
    "overlap_penalty": 0.3,
    "flip_margin": 0.1,
    "flip_within": 0.2,
    "candidates": 6,
    "apart": 1.5,
}


class SliceRegistration:
    """Where a query's slices, and then its cells, lie on a support scan.

    Of the likely maps along z, the one counts whose registered cells are the most similar to the support's.

    Args:
        num_slices: support slices that answer for a query slice.
        descriptor_cells: side of the grid over which a slice's features are averaged for the alignment.
        alignment: arguments of :func:`align_scans`, which has a default for what is not given; ``None`` for
            :data:`ALIGNMENT`.
        trial_slices: slices of the query, evenly spread, on which several maps are tried.
        flip_penalty: by how much more similar its cells must be for a query to count as upside down.
        cells: finds where each query cell lies on the support; ``None`` to leave every cell in its place.

    Raises:
        ValueError: for ``trial_slices`` below 1.
    """

    def __init__(
        self,
        num_slices: int = 7,
        descriptor_cells: int = 8,
        alignment: Mapping[str, Any] | None = None,
        trial_slices: int = 12,
        flip_penalty: float = 0.02,
        cells: CellRegistration | None = CellRegistration(),  # noqa: B008, has no state
    ) -> None:
        if trial_slices < 1:
            raise ValueError(f"trial_slices must be at least 1, got {trial_slices}")
        self.num_slices = num_slices
        self.descriptor_cells = descriptor_cells
        self.alignment = dict(ALIGNMENT if alignment is None else alignment)
        self.trial_slices = trial_slices
        self.flip_penalty = flip_penalty
        self.cells = cells

    def describe(self, features: Tensor) -> Tensor:
        """One vector a slice ``(D, F)``, see :func:`describe_slices`."""
        return describe_slices(features, self.descriptor_cells)

    def similarity(self, descriptor: Tensor, spacing_mm: float, scan: SupportSummary) -> float:
        """How similar slices are to those of a scan that lie at their height.

        Args:
            descriptor: of the slices ``(D, F)``.
            spacing_mm: their distance.
            scan: the scan.
        """
        alignment = {**self.alignment, "candidates": 1}
        return align_scans(descriptor, scan.descriptor, spacing_mm, scan.spacing_mm, **alignment)[0][1]

    def __call__(self, features: Tensor, scan: EncodedSupport, spacing_mm: float) -> Registration:
        """Register slices on a support scan.

        Args:
            features: ``(D, channels, h, w)``.
            scan: the support scan.
            spacing_mm: distance of the slices.
        """
        slice_maps = align_scans(
            self.describe(features), scan.descriptor, spacing_mm, scan.spacing_mm, **self.alignment
        )
        if self.cells is None:
            slice_map, similarity = slice_maps[0]
            return self.on_maps(features, scan, slice_map[None], spacing_mm)[0]._replace(similarity=similarity)
        maps = torch.stack([slice_map for slice_map, _ in slice_maps])
        step = math.ceil(len(features) / self.trial_slices) if len(maps) > 1 else 1
        tried = self.on_maps(features[::step], scan, maps[:, ::step], spacing_mm * step)
        rated = [
            found.similarity - self.flip_penalty * float(slice_map[-1] < slice_map[0])
            for found, slice_map in zip(tried, maps)
        ]
        best = rated.index(max(rated))
        return tried[best] if step == 1 else self.on_maps(features, scan, maps[best : best + 1], spacing_mm)[0]

    def on_maps(
        self, features: Tensor, scan: EncodedSupport, maps: Tensor, spacing_mm: float, rate: bool = True
    ) -> list[Registration]:
        """Where slices lie on a scan by each of several maps ``(L, D)`` of their rough positions along z.

        Without ``rate``, how similar they are is left open.
        """
        if self.cells is None:
            return [Registration(self.nearest(positions, scan), None, 0.0, positions) for positions in maps]
        placed = self.cells(features, scan.features, maps, spacing_mm, scan.spacing_mm)
        heights = (placed[:, :, 2].flatten(2).mean(dim=2) / (scan.spacing_mm / 10)).cpu()
        similarities = [0.0] * len(maps)
        if rate:
            similarities = registered_similarities(features, normalize(scan.features, 1), placed, scan.spacing_mm)
        return [
            Registration(self.nearest(positions, scan), coordinates, similarity, positions)
            for coordinates, positions, similarity in zip(placed, heights, similarities)
        ]

    def nearest(self, positions: Tensor, scan: EncodedSupport) -> Tensor:
        """Slices of a scan that answer at positions ``(D,)``: ``(D, num_slices)``."""
        return nearest_slices(positions, scan.answering, self.num_slices, scan.bounds)


def describe_slices(features: Tensor, cells: int = 4) -> Tensor:
    """One vector a slice: the directions of its features, averaged over a coarse grid.

    Args:
        features: ``(S, D, h, w)``.
        cells: side of the coarse grid.

    Returns:
        ``(S, D * cells * cells)``.
    """
    return F.adaptive_avg_pool2d(F.normalize(features, dim=1), cells).flatten(1)


def align_scans(
    query: Tensor,
    support: Tensor,
    query_spacing: float,
    support_spacing: float,
    scales: Sequence[float] = (0.8, 0.9, 1.0, 1.1, 1.25),
    scale_penalty: float = 0.05,
    min_overlap: float = 0.5,
    overlap_penalty: float = 0.3,
    flip_margin: float = 0.1,
    flip_within: float = 0.2,
    candidates: int = 1,
    apart: float = 2.0,
) -> list[tuple[Tensor, float]]:
    """Place of each query slice on the support scan: the affine maps along z with the most similar slices.

    Slices of a map are compared by the cosine of their descriptors, less the mean of the slices that overlap by this
    map: what a part of a body shares must not tell where it lies in a whole one.

    Args:
        query: descriptors ``(Dq, F)`` of the query's slices.
        support: descriptors ``(Ds, F)`` of the support's.
        query_spacing: distance of the query's slices in mm.
        support_spacing: distance of the support's slices in mm.
        scales: body heights of the support relative to the query's that are tried.
        scale_penalty: what a map loses by the absolute logarithm of its scale.
        min_overlap: smallest share of the shorter scan that has to overlap.
        overlap_penalty: what a map loses if the scans do not overlap at all, in proportion to what does not.
        flip_margin: by how much more similar the slices must be in reverse order for the query to count as upside
            down; a header that lies about the direction of z does that.
        flip_within: by how much the slices may be less similar, all penalties counted, on a map of the other way for it
            to be added.
        candidates: how many maps are wanted. If all of several go the same way along z, the best of the other way is
            added, unless it is much worse: the few slices that such a map may leave in the overlap can be as similar as
            any, though they lie upside down.
        apart: by how many of the support's slices they differ at least, on average.

    Returns:
        The maps, the best first, at least one: positions ``(Dq,)`` in units of the support's slices, beyond
        ``[0, Ds - 1]`` where the support does not reach, and the mean similarity of the overlapping slices.
    """
    queries, supports = len(query), len(support)
    steps = torch.arange(queries, dtype=torch.float64)
    slice_maps, largest, penalties = [], [], []
    for scale in scales:
        slope = scale * query_spacing / support_spacing
        offsets = torch.arange(-(int((queries - 1) * slope) + 1), supports, 0.5, dtype=torch.float64)
        slice_maps.append(steps * slope + offsets[:, None])
        largest.append(torch.full_like(offsets, max(1.0, min(queries, supports / slope))))
        penalties.append(torch.full_like(offsets, scale_penalty * abs(math.log(scale))))
    upright = torch.cat(slice_maps)
    positions, possible = torch.cat([upright, upright.flip(1)]), torch.cat(largest * 2)
    penalty = torch.cat([torch.cat(penalties), torch.cat(penalties) + flip_margin])
    overlap = (positions > -0.5) & (positions < supports - 0.5)
    similar = _similarity_in_overlap(query, support, positions.round().clamp(0, supports - 1).long(), overlap)
    count = overlap.sum(dim=1)
    means = (similar * overlap).sum(dim=1) / count.clamp(min=1)
    scores = means - overlap_penalty * (1 - count / possible).clamp(min=0) - penalty
    scores[count < (min_overlap * possible).clamp(min=1)] = -math.inf
    upwards = torch.arange(len(positions)) < len(upright)
    found: list[int] = []
    worst = float(scores.amax()) - flip_within

    def add_best_of(among: Tensor) -> None:
        found.append(int(among.argmax()))
        scores[(positions - positions[found[-1]]).abs().mean(dim=1) < apart] = -math.inf

    while len(found) < candidates and (not found or scores.amax() > -math.inf):
        add_best_of(scores)
    for way in (upwards, ~upwards):
        others = scores.where(way, scores.new_tensor(-math.inf))
        if candidates > 1 and not way[found].any() and others.amax() >= worst:
            add_best_of(others)
    return [(positions[index].float(), float(means[index])) for index in found]


def _similarity_in_overlap(query: Tensor, support: Tensor, nearest: Tensor, overlap: Tensor) -> Tensor:
    """Cosine of each slice and its nearest one by each map ``(L, Dq)``, less the means of what overlaps by it.

    The mean of the whole support counts as one more slice of both means, so that a single slice is compared too.

    Args:
        query: descriptors ``(Dq, F)``.
        support: descriptors ``(Ds, F)``.
        nearest: the support's slice that is nearest to each of the query's by each map ``(L, Dq)``.
        overlap: whether it counts ``(L, Dq)``.
    """
    own = len(query)
    both = torch.cat([query, support]).cpu().double()  # differences of large numbers
    products = both @ both.T
    usual = torch.cat([products.new_zeros(own), products.new_full((len(support),), 1 / len(support))])
    nearest, counted = nearest + own, overlap.double()
    total = 1 + counted.sum(dim=1, keepdim=True)
    of_query = (F.pad(counted, (0, len(support))) + usual) / total  # (L, Dq + Ds): weights of the means
    of_support = (torch.zeros_like(of_query).scatter_add_(1, nearest, counted) + usual) / total
    from_query, from_support = of_query @ products, of_support @ products  # the means' products with each slice
    mean_product = (of_query * from_support).sum(dim=1, keepdim=True)
    pairs = products[torch.arange(own), nearest] - from_support[:, :own] - from_query.gather(1, nearest) + mean_product
    squares = products.diagonal()
    query_norm = squares[:own] - 2 * from_query[:, :own] + (of_query * from_query).sum(dim=1, keepdim=True)
    support_norm = squares[nearest] - 2 * from_support.gather(1, nearest)
    support_norm = support_norm + (of_support * from_support).sum(dim=1, keepdim=True)
    return pairs / (query_norm.clamp(min=1e-9) * support_norm.clamp(min=1e-9)).sqrt()


def invert_slice_map(positions: Tensor, count: int, slope: float) -> Tensor:
    """Turn positions of a query's slices on a support around: where the support's slices lie on the query.

    Args:
        positions: ``(Dq,)`` in units of the support's slices; the straight line nearest to them is inverted.
        count: how many slices the support has.
        slope: the support's slices a slice of the query, by their distances; for a query of one slice, and the least
            that is believed is half of it.

    Returns:
        ``(count,)`` in units of the query's slices.
    """
    steps = torch.arange(len(positions), dtype=torch.float64)
    offsets, middle = steps - steps.mean(), positions.double().mean()
    found = float((offsets * (positions.double() - middle)).sum() / offsets.square().sum().clamp(min=0.5))
    if abs(found) < slope / 2:
        found = slope if len(positions) == 1 else math.copysign(slope / 2, found)
    return ((torch.arange(count, dtype=torch.float64) - middle) / found + steps.mean()).float()


def nearest_slices(positions: Tensor, annotated: Tensor, count: int, bounds: Tensor | None = None) -> Tensor:
    """The ``count`` annotated slices nearest to each position, nearest first; -1 where none is in reach.

    The annotation reaches beyond its outermost slices by half the largest distance of neighboring ones, at least by
    a slice, and as far as its labels.

    Args:
        positions: ``(Dq,)`` in units of slices.
        annotated: numbers of the support's annotated slices ``(A,)``, ascending.
        count: how many of them answer for a query slice.
        bounds: where each label can lie ``(V, 2)``, see :func:`label_bounds`.

    Returns:
        ``(Dq, count)``.
    """
    distance = (positions[:, None] - annotated[None]).abs()
    order = annotated[distance.argsort(dim=1, stable=True)[:, :count]]
    if order.shape[1] < count:
        order = F.pad(order, (0, count - order.shape[1]), value=-1)
    reach = annotation_reach(annotated)
    low, high = float(annotated[0]) - reach, float(annotated[-1]) + reach
    if bounds is not None:
        low, high = min(low, float(bounds.min())), max(high, float(bounds.max()))
    reached = (positions > low) & (positions < high)
    return torch.where(reached[:, None], order, torch.full_like(order, -1))
