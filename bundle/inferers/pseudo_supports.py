"""Unlabelled scans that pass the support's labels on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..keys import IMAGE
from .encoded import EncodedSupport
from .scores import margins


@dataclass(frozen=True)
class PseudoSupports:
    """Unlabelled scans between the support and the query: segmented by the support, they answer as further supports.

    What looks unlike the one labelled scan often looks like one of several others. Only what is found surely on a
    pseudo-support counts, in both classes; the rest is unknown.

    Args:
        images: ``[{"image": path}, …]``; a query is no pseudo-support to itself.
        count: how many of them are used, the first ones.
        min_reverse_dice: a label with less reverse Dice on a pseudo-support is not passed on by it.
        margin: by how much a class must win in a cell for the cell to count.

    Raises:
        ValueError: for a negative number.
    """

    images: Sequence[Mapping[str, Any]] = ()
    count: int = 3
    min_reverse_dice: float = 0.5
    margin: float = 1.0

    def __post_init__(self) -> None:
        if min(self.count, self.min_reverse_dice, self.margin) < 0:
            raise ValueError(
                "count, min_reverse_dice and margin must be at least 0, got "
                f"{self.count}, {self.min_reverse_dice} and {self.margin}"
            )

    def choose(self, query: str) -> list[str]:
        """Files of the pseudo-supports of a query that lies in a file."""
        files = [os.fspath(entry[IMAGE]) for entry in self.images]
        return [file for file in files if os.path.realpath(file) != os.path.realpath(query)][: self.count]

    def encode(
        self,
        features: Tensor,
        spacing_mm: float,
        values: Sequence[int],
        scores: Tensor,
        reverse_dice: Tensor,
        descriptor: Tensor,
    ) -> EncodedSupport | None:
        """Take what is sure on a pseudo-support as its labels.

        Args:
            features: of the pseudo-support ``(D, channels, h, w)``.
            spacing_mm: distance of its slices.
            values: the ``n`` labels.
            scores: found by the support ``(D, 1 + n, h, w)``.
            reverse_dice: of the labels ``(n,)``.
            descriptor: see :func:`describe_slices`.

        Returns:
            The pseudo-support; ``None`` if it passes nothing on.
        """
        sure = (margins(scores) > self.margin).to(features.dtype)
        rows = [
            row for row in range(len(values)) if reverse_dice[row] >= self.min_reverse_dice and sure[:, 1 + row].any()
        ]
        if not rows:
            return None
        kept, foreground = [values[row] for row in rows], sure[:, 1:][:, rows]
        shows, every = foreground.flatten(2).any(dim=2), range(len(features))
        # where a label that is not passed on is sure, neither it nor the background is known
        return EncodedSupport(
            features,
            spacing_mm,
            kept,
            kept.__contains__,
            foreground,
            sure[:, 0],
            shows,
            every,
            descriptor,
            labelled=False,
        )
