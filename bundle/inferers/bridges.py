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
class Bridges:
    """Unlabelled scans between the support and the query: segmented by the support, they answer as further supports.

    What looks unlike the one labelled scan often looks like one of several others. Only what is found surely on a
    bridge counts, in both classes; the rest is unknown.

    Args:
        images: ``[{"image": path}, …]``; a query is no bridge to itself.
        count: how many of them are used, the first ones.
        min_agreement: a label with less agreement on a bridge is not passed on by it.
        margin: by how much a class must win in a cell for the cell to count.

    Raises:
        ValueError: for a negative number.
    """

    images: Sequence[Mapping[str, Any]] = ()
    count: int = 3
    min_agreement: float = 0.5
    margin: float = 1.0

    def __post_init__(self) -> None:
        if min(self.count, self.min_agreement, self.margin) < 0:
            raise ValueError(
                "count, min_agreement and margin must be at least 0, got "
                f"{self.count}, {self.min_agreement} and {self.margin}"
            )

    def choose(self, query: str) -> list[str]:
        """Files of the bridges of a query that lies in a file."""
        files = [os.fspath(entry[IMAGE]) for entry in self.images]
        return [file for file in files if os.path.abspath(file) != os.path.abspath(query)][: self.count]

    def encode(
        self,
        features: Tensor,
        spacing_mm: float,
        values: Sequence[int],
        scores: Tensor,
        agreement: Tensor,
        description: Tensor,
    ) -> EncodedSupport | None:
        """Take what is sure on a bridge as its labels.

        Args:
            features: of the bridge ``(D, channels, h, w)``.
            spacing_mm: distance of its slices.
            values: the ``n`` labels.
            scores: found by the support ``(D, 1 + n, h, w)``.
            agreement: of the labels ``(n,)``.
            description: see :func:`describe_slices`.

        Returns:
            The bridge; ``None`` if it passes nothing on.
        """
        sure = (margins(scores) > self.margin).to(features.dtype)
        rows = [row for row in range(len(values)) if agreement[row] >= self.min_agreement and sure[:, 1 + row].any()]
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
            description,
            labelled=False,
        )
