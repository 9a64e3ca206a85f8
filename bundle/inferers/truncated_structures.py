"""Labels that are left out at the ends of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scans import EncodedSupport


@dataclass(frozen=True)
class TruncatedStructures:
    """Labels that lie at an end of a scan, are small there and unsure.

    A scan may cut a structure off, or not show it, and another one beside its end be taken for it.

    Args:
        share: what is less than this share of a label's usual volume is small.
        margin: what wins by less on average is unsure.
    """

    share: float = 0.15
    margin: float = 1.4

    def find(
        self,
        scores: Tensor,
        scans: Sequence[EncodedSupport],
        values: Sequence[int],
        spacing_mm: float,
        batch_size: int = 8,
    ) -> Tensor:
        """Find them.

        Args:
            scores: competing scores ``(D, 1 + n, H, W)``, the background first.
            scans: the support, on which the usual volume is measured, of what as many slices can show.
            values: the ``n`` labels.
            spacing_mm: distance of the slices of the scores.
            batch_size: slices that are looked at together.

        Returns:
            ``(n,)`` booleans.
        """
        count = 1 + len(values)
        ends = torch.cat([scores[:1], scores[-1:]]).max(dim=1).indices.flatten().bincount(minlength=count)[1:] > 0
        if not ends.any():
            return ends
        sizes, totals = scores.new_zeros(count), scores.new_zeros(count)
        for part in scores.split(batch_size):
            best, winner = part.max(dim=1)
            second = part.scatter(1, winner[:, None], -torch.inf).amax(dim=1)
            sizes += winner.flatten().bincount(minlength=count)
            totals += winner.flatten().bincount((best - second).flatten(), minlength=count)
        length_mm, pixels = len(scores) * spacing_mm, scores[0, 0].numel()
        usual = []
        for value in values:
            shown = [volume for scan in scans if (volume := scan.volume(value, length_mm)) > 0]
            usual.append(sum(shown) / max(len(shown), 1) / spacing_mm * pixels)
        small = sizes[1:] < self.share * torch.tensor(usual).to(sizes)
        return ends & small & (totals[1:] < self.margin * sizes[1:])
