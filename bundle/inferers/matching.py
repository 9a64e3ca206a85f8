"""Slices matched to the slices of a scan that answer for them, by prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoded import EncodedSupport, Placement
from .location import CellLocator, nearest_slices
from .refine import margins, smooth_slices


def match_slices(
    network: nn.Module,
    features: Tensor,
    scan: EncodedSupport,
    values: Sequence[int],
    placement: Placement,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Scores by one scan, all of whose labels compete.

    Args:
        network: the network that matches.
        features: ``(D, channels, h, w)``.
        scan: the scan that answers.
        values: the ``n`` labels that are asked for.
        placement: where the slices lie on the scan.
        batch_size: support slices a pass.

    Returns:
        Scores ``(D, 1 + n, h, w)``, and which labels the slices that answer show ``(D, n)``.
    """
    foreground, shows = scan.wanted(values)
    chosen = placement.chosen.to(features.device)
    scores, shown = [], []
    for part in torch.arange(len(features)).split(max(1, batch_size // chosen.shape[1])):
        index = chosen[part].clamp(min=0)  # (b, K)
        known = (chosen[part] >= 0)[..., None, None]
        masks = (foreground[index] * known[..., None]).transpose(1, 2)  # (b, n, K, h, w)
        places = depths = None
        if placement.places is not None:
            places, depths = placement.places[part], index.float() * (scan.spacing_mm / 10)
        background = scan.background[index] * known
        scores.append(
            network.match(features[part], scan.features[index], masks.flatten(1, 2), background, places, depths)
        )
        shown.append((shows[index] & known[..., 0]).any(dim=1))
    return torch.cat(scores), torch.cat(shown)


@torch.no_grad()
def fill_slices(
    network: nn.Module, scan: EncodedSupport, locator: CellLocator | None, confident_margin: float, batch_size: int
) -> EncodedSupport:
    """Label the slices between annotated ones by the nearest on each side, where the match is sure.

    Neighboring slices of one scan are much alike, so that few annotated slices make a whole support.

    Args:
        network: the network that matches.
        scan: a scan of which some slices are annotated.
        locator: finds where cells lie on the annotated slices; ``None`` leaves them in their places.
        confident_margin: by how much a class must win in a cell for the cell to be labelled.
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
        places = None
        if locator is not None:
            places = locator(features, scan.features, chosen.float(), scan.spacing_mm, scan.spacing_mm, reach=0)
        placement = Placement(chosen[:, None], places, 1.0, chosen.float())
        scores, shown = match_slices(network, features, scan, scan.values, placement, batch_size)
        share = closeness[:, column, None] * shown
        total += share[..., None, None] * (scores[:, 1:] - scores[:, :1])
        weight += share
    scores = F.pad(total / weight.clamp(min=1e-12)[..., None, None], (0, 0, 0, 0, 1, 0))
    possible = F.pad(weight >= 0.5, (1, 0), value=True)
    sure = (margins(smooth_slices(scores, possible, 0.0)) > confident_margin).to(features)
    return scan.filled(todo, sure[:, 1:], sure[:, 0])


def match_itself(
    network: nn.Module,
    features: Tensor,
    scores: Tensor,
    possible: Tensor,
    compete: bool,
    confident_margin: float,
    fewest_cells: int,
    reach: int,
    batch_size: int,
) -> Tensor:
    """Scores by the query's own confident cells, as support of the same and the neighboring slices.

    Args:
        network: the network that matches.
        features: ``(D, channels, h, w)``.
        scores: ``(D, n, h, w)``, see ``compete``.
        possible: where each class can appear ``(D, n)``.
        compete: whether the channels are classes, the background first, or each label stands against 0.
        confident_margin: by how much a class must win in a cell for the cell to count as confident.
        fewest_cells: a class with fewer confident cells keeps its scores.
        reach: neighboring slices on each side.
        batch_size: slices a pass.

    Returns:
        Scores of the same kind and shape.
    """
    sure = margins(scores) > confident_margin if compete else scores > confident_margin
    sure_background = None if compete else scores < -confident_margin
    out = scores.clone()
    rows = [slice(1, None)] if compete else [slice(row, row + 1) for row in range(scores.shape[1])]
    for row in rows:
        can = possible[:, row].to(scores.dtype)[..., None, None]
        ways = sure[:, row] * can
        rest = sure[:, 0] if sure_background is None else sure_background[:, row.start] * can[:, 0]
        where = can.flatten(1).any(dim=1).nonzero()[:, 0]
        if not len(where):
            continue
        found, answering = match_own_cells(network, features, ways, rest, where, reach, batch_size)
        enough = (answering >= fewest_cells).all(dim=2)
        if compete:
            enough = torch.cat([enough.any(dim=1, keepdim=True), enough], dim=1)
            out[where] = torch.where(enough[..., None, None], found, out[where])
        else:
            own = found[:, 1:] - found[:, :1]
            out[where, row.start] = torch.where(enough[..., None, None], own, out[where, row])[:, 0]
    return out


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
