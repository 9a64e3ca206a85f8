"""Where each cell of a query lies on a support scan: a smooth displacement field of matching features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.blocks.prototypes import grid_positions, normalize
from ..networks.precision import in_single_precision

LARGEST_EXPONENT = 80.0  # exp of it, and of its negative, is a number of single precision


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

        Slices much closer to each other than the field is smooth along z tell nothing new: it is then computed in some
        of them, and interpolated.

        Args:
            query: features ``(Dq, D, h, w)``.
            support: features ``(Ds, D, h, w)``.
            positions: first guess of the query slices' positions ``(Dq,)``, in units of the support's slices, or
                several guesses ``(L, Dq)``, which cost little more than one.
            query_spacing: distance of the query's slices in mm.
            support_spacing: distance of the support's slices in mm.
            reach: in place of the one given at first; 0 keeps each slice where it is and moves cells within it.

        Returns:
            ``(Dq, 3, h, w)`` or ``(L, Dq, 3, h, w)``: row and column in units of the image's side, depth in cm from the
            support's first slice.
        """
        reach = self.reach if reach is None else reach
        guesses = positions.reshape(-1, len(query))
        size = query.shape[-2:]
        depths = (guesses.flatten().to(query, non_blocking=True) * support_spacing / 10)[:, None, None]
        start = _at_depth(grid_positions(size[0], size[1], query), depths).unflatten(2, size)
        step = self._step(query_spacing)
        theirs = self._step(support_spacing) if reach else 1
        moved = self._move(
            query[::step],
            support[::theirs],
            guesses[:, ::step] / theirs,
            query_spacing * step,
            support_spacing * theirs,
            reach,
        )
        moved = F.interpolate(moved.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
        if step > 1:
            moved = moved.unflatten(0, (len(guesses), -1))
            every = torch.arange(len(query), device=query.device) / step
            below = every.long()
            above = (below + 1).clamp(max=moved.shape[1] - 1)
            moved = torch.lerp(moved[:, below], moved[:, above], (every - below).to(moved)[:, None, None, None])
            moved = moved.flatten(0, 1)
        return (start + moved).reshape(*positions.shape, 3, *size)

    def _step(self, spacing_mm: float) -> int:
        """Every which slice is looked at: four in the smallest standard deviation of the smoothing along z."""
        return max(1, int(min(self.smoothing_mm, default=0.0) / 4 / spacing_mm))

    def _move(
        self, query: Tensor, support: Tensor, guesses: Tensor, query_spacing: float, support_spacing: float, reach: int
    ) -> Tensor:
        """Displacements ``(L, Dq, 3, h', w')`` of the coarse grid's cells from ``(L, Dq)`` guesses of the slices."""
        slice_cm = support_spacing / 10
        side = min(self.pooling, *query.shape[-2:])
        pooled = normalize(F.avg_pool2d(query, side), 1)
        height, width = pooled.shape[-2:]
        likeness = _Likeness(pooled.flatten(2), normalize(F.avg_pool2d(support, side), 1).flatten(2), self.temperature)
        centers = grid_positions(height, width, query)
        moments = torch.cat([torch.ones_like(centers[:, :1]), centers], dim=1).T.contiguous()  # (3, P)
        axes = (centers[::width, 0], centers[:width, 1])
        depths = (guesses.flatten().to(query, non_blocking=True) * slice_cm)[:, None, None]
        start = _at_depth(centers, depths)  # (L * Dq, 3, P)
        moved = torch.zeros_like(start)
        own = torch.arange(len(query), device=query.device).repeat(len(guesses))
        every = torch.arange(len(own), device=query.device)
        shape = (len(guesses), len(query), 3, height, width)
        along = _gaussians(len(query), [sigma_mm / query_spacing for sigma_mm in self.smoothing_mm], query)
        down, across = (_gaussians(size, [sigma * size for sigma in self.smoothing], query) for size in (height, width))
        steps = torch.arange(-reach, reach + 1, device=query.device)
        for slices, rows, columns in zip(along, down, across):
            here = start + moved
            around = (here[:, 2].mean(dim=1) / slice_cm).round().long()[:, None] + steps  # (L * Dq, K)
            known = (around >= 0) & (around < len(support))
            reached = known.any(dim=1)
            moved = moved.clone()
            # a GPU is not waited for, and compares what is nowhere on the support too
            for part in (every if query.is_cuda else every[reached]).split(likeness.slices_a_pass(len(steps))):
                index = around[part].clamp(0, len(support) - 1)
                depth = (index * slice_cm).to(query)
                if likeness.shared:
                    alike = likeness(own[part], index)  # (b, K, P', P)
                    pulled = self._pull(alike, here[part], axes, moments, depth, known[part].to(query))
                else:
                    alike = likeness.cosines(own[part], index)
                    pulled = self._pull_by_softmax(alike, here[part], axes, moments, depth, known[part])
                pulled = pulled - start[part]
                moved[part] = torch.where(reached[part, None, None], pulled, moved[part])
            field = rows @ moved.reshape(shape) @ columns.T
            moved = torch.einsum("st,ltchw->lschw", slices, field).flatten(0, 1).flatten(2)
        return moved.reshape(shape)

    def _pull(
        self, alike: Tensor, here: Tensor, axes: Sequence[Tensor], moments: Tensor, depth: Tensor, known: Tensor
    ) -> Tensor:
        """Mean places ``(b, 3, P)`` of the cells around, weighted by likeness and nearness.

        A Gaussian of the distance is a product of one along each axis, so that exponentials are taken of few numbers.

        Args:
            alike: see :class:`_Likeness` ``(b, K, P', P)``; is overwritten.
            here: places of the cells ``(b, 3, P)``.
            axes: where the support's rows and columns lie.
            moments: 1 and the centers of the support's cells ``(3, P')``.
            depth: of the support's slices ``(b, K)``.
            known: 1 for slices that there are, else 0 ``(b, K)``.
        """
        row, column = (_remoteness(here[:, axis], spots[None], self.position_weight) for axis, spots in enumerate(axes))
        near = (row.neg().exp()[:, :, None] * column.neg().exp()[:, None]).flatten(1, 2)  # (b, P', P)
        sums = moments @ alike.mul_(near[:, None])  # (b, K, 3, P)
        sums = sums * (known[..., None] * _remoteness(here[:, 2], depth, self.depth_weight).neg().exp())[:, :, None]
        mass, rows, columns = sums.sum(dim=1).unbind(dim=1)
        heights = (sums[:, :, 0] * depth[..., None]).sum(dim=1)
        return torch.stack([rows, columns, heights], dim=1) / mass[:, None]

    def _pull_by_softmax(
        self, cosines: Tensor, here: Tensor, axes: Sequence[Tensor], moments: Tensor, depth: Tensor, known: Tensor
    ) -> Tensor:
        """The same of cosines ``(b, K, P', P)``, which are overwritten; ``known`` is boolean."""
        row, column = (_remoteness(here[:, axis], spots[None], self.position_weight) for axis, spots in enumerate(axes))
        remote = (row[:, :, None] + column[:, None]).flatten(1, 2)[:, None]  # (b, 1, P', P)
        far = _remoteness(here[:, 2], depth, self.depth_weight).masked_fill(~known[..., None], math.inf)  # (b, K, P)
        scores = cosines.mul_(self.temperature).sub_(remote).sub_(far[:, :, None])
        weights = scores.sub_(scores.amax(dim=(1, 2), keepdim=True)).exp_()  # divided at the end, of few numbers
        sums = moments @ weights  # (b, K, 3, P)
        mass, rows, columns = sums.sum(dim=1).unbind(dim=1)
        heights = (sums[:, :, 0] * depth[..., None]).sum(dim=1)
        return torch.stack([rows, columns, heights], dim=1) / mass[:, None]


class _Likeness:
    """Exponentials of the cosines of all cells of two slices, kept as long as there is room.

    Each of the query's cells has a factor of its own, by its most similar cell in the slices that were asked for first.
    They are shared where that pays and is exact: not on a GPU, which would have to be waited for to know what is there,
    and not at a temperature of which single precision holds no exponentials of all cosines with one factor.

    Args:
        cells: unit features ``(Dq, D, P)`` of the query.
        targets: the support's ``(Ds, D, P)``.
        temperature: factor of the cosines.
        room: numbers that are kept at most.
    """

    def __init__(self, cells: Tensor, targets: Tensor, temperature: float, room: int = 2**26) -> None:
        self.cells, self.targets, self.temperature = cells, targets.transpose(1, 2).contiguous(), temperature
        self.shared = not cells.is_cuda and 2 * temperature <= LARGEST_EXPONENT
        self._room = max(1, min(len(cells) * len(targets), room // cells.shape[2] ** 2))
        self._kept = self._given = cells.new_empty(0)
        self._rows: dict[tuple[int, int], int] = {}
        self._seen: set[int] = set()
        self._peaks = cells.new_full((len(cells), cells.shape[2]), -math.inf)

    def slices_a_pass(self, count: int) -> int:
        """How many of the query's slices are compared to ``count`` slices at once: as a processor's cache can hold."""
        self._room = max(self._room, count)
        return 64 if self.cells.is_cuda else 1

    def cosines(self, slices: Tensor, index: Tensor) -> Tensor:
        """Cosines of ``b`` slices of the query and ``K`` of the support each: ``(b, K, P', P)``."""
        return self.targets[index] @ self.cells[slices][:, None]

    def __call__(self, slices: Tensor, index: Tensor) -> Tensor:
        """What belongs to ``b`` slices of the query and ``K`` of the support each: ``(b, K, P', P)``.

        The next call overwrites it.

        Args:
            slices: ``(b,)``.
            index: ``(b, K)``.
        """
        pairs = [(i, j) for i, row in zip(slices.tolist(), index.tolist()) for j in row]
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._rows]
        if len(self._rows) + len(missing) > self._room:
            self._rows.clear()
            missing = list(dict.fromkeys(pairs))
        if not len(self._kept):
            cells = self.cells.shape[2]
            self._kept = self.cells.new_empty(self._room, cells, cells)
            self._given = self.cells.new_empty(len(pairs), cells, cells)
        if missing:
            self._add(missing)
        rows = torch.tensor([self._rows[pair] for pair in pairs])
        given = self._given[: len(pairs)]  # fresh memory takes longer than the copy
        return torch.index_select(self._kept, 0, rows, out=given).unflatten(0, (len(slices), -1))

    def _add(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Compute what belongs to pairs of slices."""
        mine, theirs = (torch.tensor(side) for side in zip(*pairs))
        first = len(self._rows)
        part = self._kept[first : first + len(pairs)]
        torch.bmm(self.targets[theirs], self.cells[mine], out=part)
        fresh = [number for number, (i, _) in enumerate(pairs) if i not in self._seen]
        if fresh:
            self._seen.update(pairs[number][0] for number in fresh)
            new = torch.tensor(fresh)
            best = part[new].amax(dim=1)
            self._peaks.scatter_reduce_(0, mine[new, None].expand_as(best), best, "amax")
        part.sub_(self._peaks[mine][:, None]).mul_(self.temperature).clamp_(
            -LARGEST_EXPONENT, LARGEST_EXPONENT
        ).exp_()  # as floats can hold
        self._rows.update({pair: first + number for number, pair in enumerate(pairs)})


def registered_similarities(query: Tensor, support: Tensor, coordinates: Tensor, support_spacing: float) -> list[float]:
    """How similar a query's cells are to what lies at their coordinates on the support.

    Args:
        query: features ``(Dq, D, h, w)``.
        support: unit features ``(Ds, D, h, w)``.
        coordinates: by each of several registrations ``(L, Dq, 3, h, w)``, see :class:`CellRegistration`.
        support_spacing: distance of the support's slices in mm.

    Returns:
        Mean cosine, in -1..1, of the cells that lie on the support; -1 if none does.
    """
    sums = [_cosines(query, support, each, support_spacing) for each in coordinates]
    return [total / number if number else -1.0 for total, number in torch.stack(sums).tolist()]


def _cosines(query: Tensor, support: Tensor, coordinates: Tensor, support_spacing: float) -> Tensor:
    """Sum of the cosines of the cells on the support, and their number ``(2,)``."""
    count = len(support)
    depths = coordinates[:, 2] / (support_spacing / 10)
    on_support = (depths > -0.5) & (depths < count - 0.5)
    found = sample_coordinates(support, coordinates, support_spacing)
    cosine = F.cosine_similarity(query, found, dim=1)
    return torch.stack([torch.where(on_support, cosine, 0.0).sum(), on_support.sum()])


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


def _remoteness(here: Tensor, spots: Tensor, weight: float) -> Tensor:
    """Weighted squared distances ``(b, S, P)`` of places ``(b, P)`` to spots ``(b or 1, S)``, the nearest's being 0."""
    apart = (here[:, None] - spots[..., None]).square()
    return weight * (apart - apart.amin(dim=1, keepdim=True))


def _gaussians(size: int, sigmas: Sequence[float], like: Tensor) -> Tensor:
    """Matrices ``(R, size, size)`` that smooth along an axis, normalized at its ends; a sigma of 0 smooths nothing."""
    steps = torch.arange(size, dtype=like.dtype, device=like.device)
    widths = torch.tensor(sigmas, dtype=like.dtype).clamp(min=1e-3).to(like.device, non_blocking=True)
    kernels = torch.exp(-0.5 * ((steps[:, None] - steps[None]) / widths[:, None, None]) ** 2)
    return kernels / kernels.sum(dim=2, keepdim=True)
