"""Queries that lie turned or mirrored in the plane, compared with the support."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .scans import EncodedQuery, EncodedSupport, Registration
from .slice_registration import SliceRegistration


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

    def __call__(
        self,
        query: EncodedQuery,
        scan: EncodedSupport,
        registration: SliceRegistration,
        reverse_dice: Callable[[EncodedQuery, Registration], float],
    ) -> Registration:
        """Where a query lies on a support scan, turned in the plane if it is more similar and agrees better so.

        Args:
            query: the query.
            scan: the support scan.
            registration: finds where slices lie on it.
            reverse_dice: mean of the labels of a part of the query that lies so on the scan, see :class:`Quality`.
        """
        upright = registration(query.features(), scan, query.spacing_mm)
        if registration.cells is None or upright.similarity >= self.below:
            return upright
        height, width = query.volume.shape[-2:]
        step = math.ceil(len(query.volume) / registration.trial_slices)
        turns = [0, *(turn for turn in self.turns if height == width or turn % 2 == 0)]
        parts = {turn: query.part(turn, step) for turn in turns}
        tried = {turn: registration(part.features(), scan, part.spacing_mm) for turn, part in parts.items()}
        similarities = {turn: found.similarity for turn, found in tried.items()}
        turn = self.choose(upright.similarity, similarities, lambda turn: reverse_dice(parts[turn], tried[turn]))
        if turn == 0:
            return upright
        return registration(query.features(turn), scan, query.spacing_mm)._replace(turn=turn)

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

    def __call__(
        self,
        query: EncodedQuery,
        placed: Sequence[tuple[EncodedSupport, Registration]],
        registration: SliceRegistration,
    ) -> int | None:
        """Axis of the plane along which a query is mirrored against the most similar scan; ``None`` if it is not.

        Args:
            query: the query.
            placed: the support scans and where the query lies on them.
            registration: finds where slices lie on a scan.
        """
        if registration.cells is None:
            return None
        scan, registered = max(placed, key=lambda one: one[1].similarity)
        step = math.ceil(len(query.volume) / self.slices)
        slice_map, spacing_mm = registered.positions[None, ::step], query.spacing_mm * step
        features = {
            -1: query.features(registered.turn)[::step],
            **{axis: query.part(registered.turn, step, axis).features() for axis in (0, 1)},
        }
        return self.choose(
            {
                axis: registration.on_maps(own, scan, slice_map, spacing_mm)[0].similarity
                for axis, own in features.items()
            }
        )

    def choose(self, similarities: Mapping[int, float]) -> int | None:
        """The axis along which a query is mirrored; ``None`` if it is not.

        Args:
            similarities: after a reflection along each axis; of the query as it is, under -1.
        """
        best = max(sorted(similarities), key=lambda axis: similarities[axis])
        return best if similarities[best] > similarities[-1] + self.margin else None
