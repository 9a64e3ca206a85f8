"""The method as it is usually programmed, to measure the bundle against: one episode, slice and class at a time.

Training takes one pair of views a step, made by CPU transforms. Inference goes slice by slice and class by class, and
encodes query and support anew each time. Prototypes are picked by
boolean indices. The numbers are those of the bundle's network; only the order of the work differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.inferers.slice_registration import align_scans, describe_slices, nearest_slices
from bundle.networks import ALPNet


def unit(vectors: Tensor) -> Tensor:
    """Vectors ``(P, D)`` at length 1."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-4)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Centers of the cells of a grid, ``(h * w, 2)``, in units of the image."""
    rows, columns = (torch.arange(n, device=device).add(0.5) / n for n in (height, width))
    return torch.cartesian_prod(rows, columns)


def score(network: ALPNet, query: Tensor, prototypes: Tensor, positions: Tensor) -> Tensor:
    """Softmax-weighted similarity ``(h, w)`` of query features ``(D, h, w)`` to prototypes ``(P, D)``."""
    _, height, width = query.shape
    similar = network.temperature * unit(prototypes) @ unit(query.flatten(1).T).T
    if network.position_weight:
        squared = torch.cdist(positions, places(height, width, query.device)).square()
        similar = similar - network.position_weight * squared
    return (torch.softmax(similar, dim=0) * similar).sum(dim=0).reshape(height, width)


def segment(network: ALPNet, query: Tensor, support: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Scores of background and one class ``(2, h, w)``, by adaptive local prototypes of one support slice.

    Args:
        network: whose windows, thresholds and weights count.
        query: features ``(D, h, w)``.
        support: features ``(D, h, w)``.
        foreground: mask ``(H, W)`` of the class.
        background: mask ``(H, W)`` of what is no class.
    """
    window = network.training_window if network.training else network.testing_window
    grid = places(support.shape[1] // window, support.shape[2] // window, query.device)
    vectors = F.avg_pool2d(support[None], window)[0].flatten(1).T  # (P, D)
    cells = places(support.shape[1], support.shape[2], query.device)
    side = network.training_window if network.official_gate else window

    def coarse(mask: Tensor) -> Tensor:  # (1, h, w), the share of each cell
        return F.interpolate(mask[None, None].float(), size=support.shape[1:], mode="bilinear", align_corners=False)[0]

    scores = []
    for share, threshold, is_class in (
        (coarse(background), network.background_threshold, False),
        (coarse(foreground), network.foreground_threshold, True),
    ):
        covered = F.avg_pool2d(share, window)[0].flatten() > threshold
        level = (support * share).sum(dim=(1, 2)) / (share.sum() + 1e-5)
        center = share.flatten() @ cells / (share.sum() + 1e-5)
        if is_class and F.avg_pool2d(share, side).max() < threshold:
            covered = torch.zeros_like(covered)
        prototypes, positions = vectors[covered], grid[covered]
        if is_class or len(prototypes) == 0:
            prototypes, positions = torch.cat([prototypes, level[None]]), torch.cat([positions, center[None]])
        scores.append(score(network, query, prototypes, positions))
    return torch.stack(scores)


def upsample(scores: Tensor, image: Tensor) -> Tensor:
    """Scores ``(n, h, w)`` at the size of an image."""
    return F.interpolate(scores[None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


def encode(network: ALPNet, images: Tensor) -> Tensor:
    """Features ``(B, D, h, w)`` of slices ``(B, C, H, W)``."""
    return network.encoder(images.expand(-1, network.in_channels, -1, -1))


def episode_loss(network: ALPNet, episode: Mapping[str, Tensor], background_weight: float) -> Tensor:
    """The published loss of one one-way episode: weighted query term and prototype alignment."""
    query, support = encode(network, torch.stack([episode["image"], episode["support_image"]]))
    mask = episode["support_label"][0] == 1
    scores = segment(network, query, support, mask, ~mask)
    weight = torch.tensor([background_weight, 1.0], device=query.device)
    target = (episode["label"] == 1).long()
    loss = F.cross_entropy(upsample(scores, episode["image"])[None], target, weight)
    won = scores.argmax(dim=0) == 1
    aligned = segment(network, support, query, won.float(), (~won).float())
    return loss + F.cross_entropy(upsample(aligned, episode["image"])[None], mask.long()[None])


def train_steps(
    network: ALPNet,
    episodes: Iterator[Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    background_weight: float,
    steps: int,
) -> list[float]:
    """Take steps of one episode each; the losses."""
    losses = []
    network.train()
    for _ in range(steps):
        episode = {key: value.to(device) for key, value in next(episodes).items()}
        optimizer.zero_grad()
        loss = episode_loss(network, episode, background_weight)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def segment_volume(network: ALPNet, image: Tensor, support: Any, values: list[int], spacing_mm: float) -> Tensor:
    """Label map ``(H, W, D)`` of a scan by one support scan, aligned along z as the bundle does it.

    Args:
        network: in evaluation mode.
        image: ``(C, H, W, D)``.
        support: image ``(C, H, W, Ds)``, label ``(H, W, Ds)`` and distance of the slices.
        values: labels to segment.
        spacing_mm: distance of the query's slices.
    """
    slices, references = image.movedim(-1, 0), support.image.movedim(-1, 0).to(image.device)
    labels = support.label.movedim(-1, 0).to(image.device)
    query, known = (describe_slices(torch.cat([encode(network, one[None]) for one in s])) for s in (slices, references))
    (positions, _), *_ = align_scans(query, known, spacing_mm, support.spacing_mm)
    nearest = nearest_slices(positions.cpu(), torch.arange(len(references)), 1)[:, 0].tolist()
    out = torch.zeros(len(slices), *image.shape[1:3], dtype=torch.uint8)
    for z, index in enumerate(nearest):
        best = None
        for value in values:
            if index < 0 or not (labels[index] == value).any():
                continue
            query, reference = encode(network, torch.stack([slices[z], references[index]]))
            scores = segment(network, query, reference, labels[index] == value, labels[index] == 0)
            background, found = upsample(scores, slices[z]).cpu()
            best = background if best is None else best
            out[z][found > best] = value
            best = torch.maximum(best, found)
    return out.movedim(0, -1)
