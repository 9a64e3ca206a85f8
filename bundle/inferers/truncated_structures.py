"""Labels that are left out at the ends of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoded import EncodedSupport
from .scores import margins


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

    def find(self, scores: Tensor, scans: Sequence[EncodedSupport], values: Sequence[int], spacing_mm: float) -> Tensor:
        """Find them.

        Args:
            scores: competing scores ``(D, 1 + n, H, W)``, the background first.
            scans: the support, on which the usual volume is measured, of what as many slices can show.
            values: the ``n`` labels.
            spacing_mm: distance of the slices of the scores.

        Returns:
            ``(n,)`` booleans.
        """
        winner = scores.max(dim=1).indices
        found = torch.zeros(len(values), dtype=torch.bool, device=scores.device)
        for row, value in enumerate(values):
            shown = [volume for scan in scans if (volume := scan.volume(value, len(scores) * spacing_mm)) > 0]
            usual = sum(shown) / max(len(shown), 1) / spacing_mm
            won = winner == row + 1
            if (won[0].any() or won[-1].any()) and won.sum() / winner[0].numel() < self.share * usual:
                found[row] = margins(scores)[:, row + 1][won].mean() < self.margin
        return found
