"""Slices matched to the slices of a scan that answer for them, by prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .scans import EncodedSupport, Registration


class SliceMatching:
    """Matches slices to those of a scan that answer for them, by the network's prototypes.

    Args:
        slice_batch_size: support slices a pass; memory does not depend on the number of slices.
    """

    def __init__(self, slice_batch_size: int = 16) -> None:
        self.slice_batch_size = slice_batch_size

    def __call__(
        self,
        network: nn.Module,
        features: Tensor,
        scan: EncodedSupport,
        values: Sequence[int],
        registered: Registration,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`match_slices`."""
        return match_slices(network, features, scan, values, registered, self.slice_batch_size)


def match_slices(
    network: nn.Module,
    features: Tensor,
    scan: EncodedSupport,
    values: Sequence[int],
    registered: Registration,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Scores by one scan, all of whose labels are exclusive.

    Args:
        network: the network that matches.
        features: ``(D, channels, h, w)``.
        scan: the scan that answers.
        values: the ``n`` labels that are asked for.
        registered: where the slices lie on the scan.
        batch_size: support slices a pass.

    Returns:
        Scores ``(D, 1 + n, h, w)``, and which labels the slices that answer show ``(D, n)``.
    """
    foreground, shows = scan.wanted(values)
    chosen = registered.support_index.to(features.device, non_blocking=True)
    scores, shown = [], []
    slices = max(1, batch_size // chosen.shape[1])
    for first in range(0, len(features), slices):
        part = slice(first, first + slices)
        index = chosen[part].clamp(min=0)  # (b, K)
        known = (chosen[part] >= 0)[..., None, None]
        masks = (foreground[index] * known[..., None]).transpose(1, 2)  # (b, n, K, h, w)
        coordinates = depths = None
        if registered.coordinates is not None:
            coordinates, depths = registered.coordinates[part], index.float() * (scan.spacing_mm / 10)
        background = scan.background[index] * known
        scores.append(
            network.match(features[part], scan.features[index], masks.flatten(1, 2), background, coordinates, depths)
        )
        shown.append((shows[index] & known[..., 0]).any(dim=1))
    visible = torch.cat(shown)
    if scan.bounds is not None:
        visible &= scan.reaches(values, registered.positions.cpu()).to(features.device)
    return torch.cat(scores), visible


def match_own_cells(
    network: nn.Module,
    features: Tensor,
    foreground: Tensor,
    background: Tensor,
    slices: Tensor,
    reach: int,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Scores of a scan's slices by cells of its own that are taken for labelled.

    Args:
        network: the network that matches.
        features: ``(D, channels, h, w)``.
        foreground: cells of each label ``(D, n, h, w)``.
        background: cells without ``(D, h, w)``.
        slices: numbers of the slices that are matched ``(S,)``.
        reach: neighboring slices on each side that answer too.
        batch_size: slices a pass.

    Returns:
        Scores ``(S, 1 + n, h, w)``, and how many cells of each label and of the background answered ``(S, n, 2)``.
    """
    depth, steps = len(features), torch.arange(-reach, reach + 1, device=features.device)
    scores, answering = [], []
    for part in slices.split(batch_size):
        neighbors = part[:, None] + steps  # (b, K)
        known = ((neighbors >= 0) & (neighbors < depth)).to(features.dtype)[..., None, None]
        index = neighbors.clamp(0, depth - 1)
        ways = (foreground[index] * known[:, :, None]).transpose(1, 2)  # (b, n, K, h, w)
        rest = background[index] * known
        scores.append(network.match(features[part], features[index], ways.flatten(1, 2), rest, None, None))
        counts = torch.stack(torch.broadcast_tensors(ways.flatten(2).sum(2), rest.flatten(1).sum(1)[:, None]), dim=2)
        answering.append(counts)
    return torch.cat(scores), torch.cat(answering)
