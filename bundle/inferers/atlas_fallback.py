"""Labels by their place, where their look misleads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cell_registration import sample_coordinates
from .matching import match_own_cells
from .scans import EncodedSupport

_TRACE = 1e-4  # share of a label in a cell that interpolation may leave where there is none


@dataclass(frozen=True)
class AtlasFallback:
    """Finds an organ that is known to be there and looks unlike the support's, by where it must lie.

    The brightness of an organ can change from one patient to the next so much that another one resembles it more. Few
    of the cells to which the registration carries the support's label, as in atlas segmentation, are then matched to
    it. The organ is matched anew to the query's own cells: those to which the label was carried, against those that are
    far enough from them. A Dice of both would be low for a thin ring, too, of which little is carried.

    Args:
        below: share of the carried label that must be matched to it, in 0..1; with less, it is matched anew.
        band: cells of the feature grid around carried labels that are taken for neither.
        reach: neighboring slices on each side whose cells answer too.
        discount: scores of what is found so by all supports are divided by one more than this: it counts as less sure.

    Raises:
        ValueError: for a negative number.
    """

    below: float = 0.4
    band: int = 2
    reach: int = 3
    discount: float = 1.0

    def __post_init__(self) -> None:
        if min(self.below, self.band, self.reach, self.discount) < 0:
            raise ValueError(
                "below, band, reach and discount must be at least 0, got "
                f"{self.below}, {self.band}, {self.reach} and {self.discount}"
            )

    def __call__(
        self,
        network: nn.Module,
        features: Tensor,
        scores: Tensor,
        scan: EncodedSupport,
        coordinates: Tensor,
        batch_size: int,
    ) -> Tensor | None:
        """Match one label anew where it is matched elsewhere than it was carried to.

        Args:
            network: the network that matches.
            features: slices that show the label ``(D, channels, h, w)``.
            scores: what was matched, less the background ``(D, h, w)``.
            scan: the support with this label alone.
            coordinates: where the query's cells lie on it ``(D, 3, h, w)``, see :class:`CellRegistration`.
            batch_size: slices a pass.

        Returns:
            Scores ``(D, h, w)``; ``None`` if the label is matched where it must lie, or too little of it is known.
        """
        carried = sample_coordinates(scan.foreground, coordinates, scan.spacing_mm)  # (D, 1, h, w)
        there = carried > 0.5
        if not there.any() or (scores[:, None] > 0)[there].float().mean() >= self.below:
            return None
        near = F.max_pool2d(carried, 2 * self.band + 1, stride=1, padding=self.band)
        every = torch.arange(len(features), device=features.device)
        rest = (near[:, 0] < _TRACE).to(features.dtype)
        size = max(1, batch_size // (2 * self.reach + 1))
        found, answering = match_own_cells(network, features, there.to(features.dtype), rest, every, self.reach, size)
        enough = (answering > 0).all(dim=2)[..., None]
        return torch.where(enough, found[:, 1] - found[:, 0], scores) if enough.any() else None
