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
        found = torch.zeros(len(values), dtype=torch.bool, device=scores.device)
        ends = torch.cat([scores[:1], scores[-1:]]).max(dim=1).indices.unique().tolist()
        for channel in ends:
            if channel == 0:
                continue
            shown = [volume for scan in scans if (volume := scan.volume(values[channel - 1], len(scores) * spacing_mm))]
            usual = sum(shown) / max(len(shown), 1) / spacing_mm * scores[0, 0].numel()
            size, total = 0, 0.0
            for part in scores.split(batch_size):
                own = part[:, channel]
                won = part.max(dim=1).indices == channel
                others = torch.cat([part[:, :channel], part[:, channel + 1 :]], dim=1).amax(dim=1)
                size, total = size + won.sum(), total + (own - others)[won].sum()
            found[channel - 1] = (size < self.share * usual) & (total < self.margin * size)
        return found
