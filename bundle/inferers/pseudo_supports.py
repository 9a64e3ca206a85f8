"""Unlabelled scans that pass the support's labels on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..identity import file_state
from ..keys import IMAGE
from .scans import EncodedSupport
from .scores import margins
from .support_encoder import Cache


class PseudoSupports:
    """Unlabelled scans between the support and the query: segmented by the support, they answer as further supports.

    What looks unlike the one labelled scan often looks like one of several others. Only what is found surely on a
    pseudo-support counts, in both classes; the rest is unknown.

    Args:
        images: ``[{"image": path}, …]``; a query is no pseudo-support to itself.
        count: how many of them are used, the first ones.
        min_reverse_dice: a label with less reverse Dice on a pseudo-support is not passed on by it.
        margin: by how much a class must win in a cell for the cell to count.
        cache_size: how many are kept, at least those of a query.

    Raises:
        ValueError: for a negative number.
    """

    def __init__(
        self,
        images: Sequence[Mapping[str, Any]] = (),
        count: int = 3,
        min_reverse_dice: float = 0.5,
        margin: float = 1.0,
        cache_size: int = 8,
    ) -> None:
        if min(count, min_reverse_dice, margin) < 0:
            raise ValueError(
                f"count, min_reverse_dice and margin must be at least 0, got {count}, {min_reverse_dice} and {margin}"
            )
        self.images = images  # of which bad ones are taken out
        self.count = count
        self.min_reverse_dice = min_reverse_dice
        self.margin = margin
        self._given: list[Tensor] = []
        self._kept = Cache(cache_size)

    def set_images(self, images: Sequence[Tensor]) -> None:
        """Use scans in memory, ``(C, H, W, D)`` in the network's frame; an empty sequence goes back to the files."""
        self._given = list(images)
        self._kept.clear()

    def __call__(
        self,
        query: str,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
        frame: Callable | None,
        segment: Callable[[Tensor], EncodedSupport | None],
    ) -> list[EncodedSupport]:
        """Pseudo-supports of a query, segmented once by the support.

        Args:
            query: file of the query.
            encoded: the support; encoded anew for other weights, so that it stands for the network, too.
            values: the ``n`` labels.
            frame: transform of a file into the network's frame; ``None`` without files.
            segment: makes a pseudo-support of a scan in the network's frame.
        """
        sources: dict[tuple, Any] = {}
        if self._given:
            sources = {("given", index): image for index, image in enumerate(self._given[: self.count])}
        elif frame is not None:
            sources = {(file, *file_state(file)): file for file in self.choose(query)}
        found = []
        for source, image in sources.items():

            def make(image: Any = image) -> EncodedSupport | None:
                return segment(frame({IMAGE: image})[IMAGE] if frame and isinstance(image, str) else image)

            # the key holds the supports themselves, so that their numbers are nobody else's
            found.append(self._kept.get((source, *encoded, *values), make, len(sources)))
        return [pseudo_support for pseudo_support in found if pseudo_support is not None]

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
