"""Where the slices and cells of a query lie on a support scan, found from the images alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.blocks.prototypes import add_places, grid_positions, normalize
from ..networks.precision import in_single_precision


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
        candidates: how many maps are wanted. If all of several go the same way along z, the best of the other way is
            added.
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

    def add_best_of(among: Tensor) -> None:
        found.append(int(among.argmax()))
        scores[(positions - positions[found[-1]]).abs().mean(dim=1) < apart] = -math.inf

    while len(found) < candidates and (not found or scores.amax() > -math.inf):
        add_best_of(scores)
    for way in (upwards, ~upwards):
        others = scores.where(way, scores.new_tensor(-math.inf))
        if candidates > 1 and not way[found].any() and others.amax() > -math.inf:
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


class CellRegistration:
    """Finds where each cell of a query lies on a support scan: a smooth displacement field of matching features.

    Organs do not move together from one body to the next, so that one map along z places no slice right for all of
    them. Starting from it, each cell of a coarse grid is moved to the mean place of the support's cells around it,
    weighted by their similarity and nearness; the displacements are smoothed, and it is done again from there, each
    time with less smoothing: first whole bodies find each other, then organs.

    Args:
        smoothing: standard deviations of the Gaussian in the plane, in units of the image's side, one a round; none
            leaves the cells where the slices lie.
        smoothing_mm: its standard deviations along z, one a round.
        reach: support slices above and below that are looked at.
        temperature: factor of the cosine similarity.
        position_weight: factor of the squared distance in the plane, in units of the image's side.
        depth_weight: factor of the squared distance along z, in cm.
        pooling: cells of the feature grid a cell of the coarse grid, along each side.

    Raises:
        ValueError: for lists of different length, or a negative number.
    """

    def __init__(
        self,
        smoothing: Sequence[float] = (0.2, 0.1, 0.05, 0.03, 0.02),
        smoothing_mm: Sequence[float] = (24.0, 16.0, 12.0, 8.0, 8.0),
        reach: int = 3,
        temperature: float = 40.0,
        position_weight: float = 100.0,
        depth_weight: float = 0.3,
        pooling: int = 2,
    ) -> None:
        if len(smoothing) != len(smoothing_mm):
            raise ValueError(
                "smoothing and smoothing_mm must have one number a round each, "
                f"got {len(smoothing)} and {len(smoothing_mm)}"
            )
        if reach < 0 or pooling < 1 or min([*smoothing, *smoothing_mm], default=0) < 0:
            raise ValueError(
                f"reach and smoothing must be at least 0 and pooling 1, got {reach}, {list(smoothing)}, "
                f"{list(smoothing_mm)} and {pooling}"
            )
        self.smoothing = tuple(smoothing)
        self.smoothing_mm = tuple(smoothing_mm)
        self.reach = reach
        self.temperature = temperature
        self.position_weight = position_weight
        self.depth_weight = depth_weight
        self.pooling = pooling

    @in_single_precision
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
        depths = (positions.to(query, non_blocking=True) * slice_cm)[:, None, None]
        side = min(self.pooling, *size)
        cells = normalize(F.avg_pool2d(query, side), 1)
        height, width = cells.shape[-2:]
        cells = cells.flatten(2)  # (Dq, D, P)
        targets = self.temperature * normalize(F.avg_pool2d(support, side), 1)
        targets = targets.flatten(2).transpose(1, 2).contiguous()  # (Ds, P, D)
        centers = grid_positions(height, width, query)
        start = _at_depth(centers, depths)  # (Dq, 3, P)
        planes = torch.arange(len(support), device=query.device)[:, None, None] * slice_cm
        spots = _at_depth(centers, planes).transpose(1, 2)  # (Ds, P, 3)
        weight = torch.tensor([self.position_weight, self.position_weight, self.depth_weight]).sqrt()
        weight = weight.to(query, non_blocking=True)
        steps = torch.arange(-reach, reach + 1, device=query.device)
        moved = torch.zeros_like(start)
        shape = (len(query), 3, height, width)
        sigmas = [sigma_mm / query_spacing for sigma_mm in self.smoothing_mm]
        along = _gaussians(len(query), sigmas, query)
        down, across = (_gaussians(size, [sigma * size for sigma in self.smoothing], query) for size in (height, width))
        every = torch.arange(len(query), device=query.device)
        for slices, rows, columns in zip(along, down, across):
            here = (start + moved).transpose(1, 2)  # (Dq, P, 3)
            around = (here[..., 2].mean(dim=1) / slice_cm).round().long()[:, None] + steps
            known = (around >= 0) & (around < len(support))
            reached = known.any(dim=1)
            # a GPU is not waited for and gets large passes; a processor gets what is needed, as it fits into its cache
            passes = every.split(64) if query.is_cuda else every[reached].split(2)
            moved = moved.clone()
            for part in passes:
                index = around[part].clamp(0, len(support) - 1)
                near = spots[index].flatten(1, 2)  # (b, K * P, 3)
                vectors = targets[index].flatten(1, 2)
                left, right, far = add_places(vectors, cells[part], near * weight, here[part] * weight)
                similar = torch.baddbmm(-far, left, right)
                absent = ~known[part].repeat_interleave(len(centers), dim=1)
                share = similar.masked_fill_(absent[..., None], -math.inf).softmax(dim=1)
                middle = here[part].mean(dim=1, keepdim=True)  # see add_places
                pulled = torch.bmm((near - middle).transpose(1, 2), share) + middle.transpose(1, 2) - start[part]
                moved[part] = torch.where(reached[part, None, None], pulled, moved[part])
            field = rows @ moved.reshape(shape) @ columns.T
            moved = (slices @ field.flatten(1)).reshape(shape).flatten(2)
        field = F.interpolate(moved.reshape(shape), size=size, mode="bilinear", align_corners=False)
        return _at_depth(grid_positions(size[0], size[1], query), depths).reshape(len(query), 3, *size) + field


@dataclass(frozen=True)
class InPlaneOrientation:
    """When a query is tried in turns in the plane, and which of them is believed.

    Args:
        turns: quarter turns that are tried, out of 1, 2 and 3.
        below: similarity of the query as it is, below which they are tried.
        margin: a turned query must be more similar by this. If it is more or less similar by less, it stays as it is,
            or with a similarity below ``reverse_dice_below`` the positions are told apart by their reverse Dice as
            well: the similarity alone mistakes one side of the heart for the other, the reverse Dice alone turns what
                is symmetric.
        reverse_dice_below: see ``margin``.

    Raises:
        ValueError: for another turn.
    """

    turns: Sequence[int] = (1, 2, 3)
    below: float = 0.6
    margin: float = 0.06
    reverse_dice_below: float = 0.5

    def __post_init__(self) -> None:
        if not set(self.turns) <= {1, 2, 3}:
            raise ValueError(f"turns must be among 1, 2 and 3, got {list(self.turns)}")

    def choose(self, upright: float, similarities: Mapping[int, float], reverse_dice: Callable[[int], float]) -> int:
        """The turn that is believed.

        Args:
            upright: similarity of the whole query as it is.
            similarities: of the tried slices after each turn, 0 among them.
            reverse_dice: gives the reverse Dice after a turn, in 0..1; asked for only where it is needed.

        Returns:
            One of the turns, 0 for the query as it is.
        """
        best = max(similarities.values())
        ratings = dict(similarities)
        if best < similarities[0] + self.margin:
            if upright >= self.reverse_dice_below:
                return 0
            ratings = {
                turn: found + reverse_dice(turn) for turn, found in similarities.items() if found > best - self.margin
            }
        return max(sorted(ratings), key=lambda turn: ratings[turn])


@dataclass(frozen=True)
class MirrorCheck:
    """When a query counts as mirrored against the support: its voxels lie against what its header says.

    Bodies are nearly the same left and right, so that a mirrored scan still registers well, and each organ is looked
    for on the other side. One whose slices are clearly more similar to the support's after a reflection is mirrored.

    Args:
        margin: by how much more similar.
        slices: slices of the query, evenly spread, that are compared.
        unmirror: whether such a query is reflected before it is segmented, and the result back. A person may be
            mirrored, too (situs inversus), so that this is not done unasked.

    Raises:
        ValueError: for a negative margin, or no slice.
    """

    margin: float = 0.005
    slices: int = 6
    unmirror: bool = False

    def __post_init__(self) -> None:
        if self.margin < 0 or self.slices < 1:
            raise ValueError(f"margin must be at least 0 and slices 1, got {self.margin} and {self.slices}")

    def choose(self, similarities: Mapping[int, float]) -> int | None:
        """The axis along which a query is mirrored; ``None`` if it is not.

        Args:
            similarities: after a reflection along each axis; of the query as it is, under -1.
        """
        best = max(sorted(similarities), key=lambda axis: similarities[axis])
        return best if similarities[best] > similarities[-1] + self.margin else None


def registered_similarity(query: Tensor, support: Tensor, coordinates: Tensor, support_spacing: float) -> float:
    """How similar a query's cells are to what lies at their coordinates on the support.

    Args:
        query: features ``(Dq, D, h, w)``.
        support: features ``(Ds, D, h, w)``.
        coordinates: ``(Dq, 3, h, w)``, see :class:`CellRegistration`.
        support_spacing: distance of the support's slices in mm.

    Returns:
        Mean cosine, in -1..1, of the cells that lie on the support; -1 if none does.
    """
    count = len(support)
    depths = coordinates[:, 2] / (support_spacing / 10)
    on_support = (depths > -0.5) & (depths < count - 0.5)
    found = sample_coordinates(normalize(support, 1), coordinates, support_spacing)
    cosine = F.cosine_similarity(query, found, dim=1)
    total, number = torch.stack([torch.where(on_support, cosine, 0.0).sum(), on_support.sum()]).tolist()
    return total / number if number else -1.0


def sample_coordinates(support: Tensor, coordinates: Tensor, support_spacing: float) -> Tensor:
    """What a support has at the coordinates of a query's cells, linearly interpolated.

    Args:
        support: ``(Ds, C, h, w)``.
        coordinates: ``(Dq, 3, h, w)``, see :class:`CellRegistration`; beyond the support, its border counts.
        support_spacing: distance of the support's slices in mm.

    Returns:
        ``(Dq, C, h, w)``.
    """
    depths = coordinates[:, 2] / (support_spacing / 10)
    spots = torch.stack(
        [2 * coordinates[:, 1] - 1, 2 * coordinates[:, 0] - 1, (2 * depths + 1) / len(support) - 1], dim=-1
    )
    volume = support.movedim(0, 1)[None]
    return F.grid_sample(volume, spots[None], padding_mode="border", align_corners=False)[0].movedim(1, 0)


def _at_depth(grid: Tensor, depths: Tensor) -> Tensor:
    """Places ``(S, 3, P)`` of the cells ``(P, 2)`` of slices at depths ``(S, 1, 1)``."""
    return torch.cat([grid.T.expand(len(depths), -1, -1), depths.to(grid).expand(-1, 1, len(grid))], dim=1)


def _gaussians(size: int, sigmas: Sequence[float], like: Tensor) -> Tensor:
    """Matrices ``(R, size, size)`` that smooth along an axis, normalized at its ends; a sigma of 0 smooths nothing."""
    steps = torch.arange(size, dtype=like.dtype, device=like.device)
    widths = torch.tensor(sigmas, dtype=like.dtype).clamp(min=1e-3).to(like.device, non_blocking=True)
    kernels = torch.exp(-0.5 * ((steps[:, None] - steps[None]) / widths[:, None, None]) ** 2)
    return kernels / kernels.sum(dim=2, keepdim=True)


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
