"""Labels between the labelled slices of a support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .cell_registration import CellRegistration
from .matching import match_slices
from .scans import EncodedSupport, Registration
from .scores import margins, smooth_slices
from .slice_registration import nearest_slices


@dataclass(frozen=True)
class SliceCompletion:
    """Labels the slices between annotated ones by the nearest on each side, where the match is sure.

    Neighboring slices of one scan are much alike, so that few annotated slices make a whole support.

    Args:
        margin: by how much a class must win in a cell for the cell to be labelled.
        discount: what a support adds to the confidence discount of its labels if nearly all of its slices are
            completed, see ``reverse_dice_discount`` of :class:`FewShotInferer`.

    Raises:
        ValueError: for a negative number.
    """

    margin: float = 1.0
    discount: float = 0.15

    def __post_init__(self) -> None:
        if min(self.margin, self.discount) < 0:
            raise ValueError(f"margin and discount must be at least 0, got {self.margin} and {self.discount}")

    @torch.no_grad()
    def __call__(
        self, network: nn.Module, scan: EncodedSupport, registration: CellRegistration | None, batch_size: int
    ) -> EncodedSupport:
        """Complete a scan, of which some slices are annotated.

        Args:
            network: the network that matches.
            scan: the scan.
            registration: finds where cells lie on the annotated slices; ``None`` leaves them in their places.
            batch_size: slices a pass.
        """
        every = torch.arange(len(scan.features))
        nearest = nearest_slices(every.float(), scan.slices, 2)
        todo = every[(nearest[:, 0] >= 0) & ~torch.isin(every, scan.slices)]
        if not len(todo):
            return scan
        nearest, features = nearest[todo], scan.features[todo]
        total = features.new_zeros(len(todo), len(scan.values), *features.shape[-2:])
        weight = features.new_zeros(len(todo), len(scan.values))
        closeness = (nearest >= 0) / (todo[:, None] - nearest).abs()
        closeness = (closeness / closeness.sum(dim=1, keepdim=True)).to(features)
        for column, chosen in enumerate(nearest.unbind(dim=1)):
            coordinates = None
            if registration is not None:
                coordinates = registration(
                    features, scan.features, chosen.float(), scan.spacing_mm, scan.spacing_mm, reach=0
                )
            registered = Registration(chosen[:, None], coordinates, 1.0, chosen.float())
            scores, shown = match_slices(network, features, scan, scan.values, registered, batch_size)
            share = closeness[:, column, None] * shown
            total += share[..., None, None] * (scores[:, 1:] - scores[:, :1])
            weight += share
        scores = F.pad(total / weight.clamp(min=1e-12)[..., None, None], (0, 0, 0, 0, 1, 0))
        possible = F.pad(weight >= 0.5, (1, 0), value=True)
        sure = (margins(smooth_slices(scores, possible, 0.0)) > self.margin).to(features)
        return scan.completed(todo, sure[:, 1:], sure[:, 0])
