"""Prototypes and their matching, as pure functions of fixed shape.

Axes: ``B`` episodes, ``N`` classes, ``S`` support slices, ``P`` prototypes, ``D`` feature channels, ``h, w`` the
feature grid. No function selects cells with a boolean index: cells that do not qualify are masked inside the
softmax, so that every episode of a batch has the same shape and the functions script, export and compile.

Reference: Ouyang et al., "Self-Supervised Learning for Few-Shot Medical Image Segmentation", IEEE TMI 41(7), 2022,
section III-C (adaptive local prototype pooling, similarity-based segmentation).
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_mask(mask: Tensor, size: List[int]) -> Tensor:
    """Bring masks to the feature grid bilinearly, as the published method does.

    Args:
        mask: ``(B, N, H, W)`` with values in [0, 1].
        size: ``[h, w]`` of the feature grid.

    Returns:
        ``(B, N, h, w)``, the share of the class near each cell's center.
    """
    return F.interpolate(mask, size=size, mode="bilinear", align_corners=False)


def central_pixels(masks: Tensor, stride: int) -> Tensor:
    """The two by two pixels around each cell's center, the only ones that :func:`resize_mask` reads.

    What is made of masks between here and there then costs a fraction, and the result is the same.

    Args:
        masks: ``(..., H, W)``, sides multiples of ``stride``.
        stride: pixels a cell. An odd stride, or one below 4, leaves the masks as they are.

    Returns:
        ``(..., 2 * H / stride, 2 * W / stride)``.
    """
    if stride < 4 or stride % 2 != 0:
        return masks
    height, width, first = masks.shape[-2] // stride, masks.shape[-1] // stride, stride // 2 - 1
    cells = masks.unflatten(-1, [width, stride]).unflatten(-3, [height, stride])
    return cells[..., first : first + 2, :, first : first + 2].flatten(-2).flatten(-3, -2)


def grid_positions(height: int, width: int, like: Tensor) -> Tensor:
    """Centers of the cells of a grid in units of the image: ``(height * width, 2)``, (row, column) in (0, 1)."""
    rows = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    columns = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return torch.stack(
        [rows[:, None].expand(height, width).flatten(), columns[None, :].expand(height, width).flatten()], dim=1
    )


def local_prototypes(features: Tensor, masks: Tensor, window: int) -> Tuple[Tensor, Tensor]:
    """Average-pool support features and masks over windows: one candidate prototype a window (TMI eq. 3).

    Args:
        features: ``(B, S, D, h, w)`` support features.
        masks: ``(B, N, S, h, w)`` share of each class in each cell.
        window: side of the pooling window in cells; reduced where the grid is smaller.

    Returns:
        Prototypes ``(B, P, D)`` and each class's share of their windows ``(B, N, P)``, with
        ``P = S * (h // window) * (w // window)``.
    """
    batch, shots, depth, height, width = features.shape
    side = min(window, height, width)
    pooled = F.avg_pool2d(features.reshape(batch * shots, depth, height, width), side)
    vectors = pooled.flatten(2).reshape(batch, shots, depth, -1).permute(0, 1, 3, 2).reshape(batch, -1, depth)
    coverage = F.avg_pool2d(masks.reshape(-1, 1, height, width), side).reshape(batch, masks.shape[1], -1)
    return vectors, coverage


def class_prototypes(features: Tensor, masks: Tensor) -> Tuple[Tensor, Tensor]:
    """Average the support features under each class's mask: class-level prototypes (TMI eq. 4).

    Args:
        features: ``(B, S, D, h, w)`` support features.
        masks: ``(B, N, S, h, w)`` share of each class in each cell. An empty mask gives a zero vector, whose
            similarity to everything is 0.

    Returns:
        Prototypes ``(B, N, S, D)`` and the masks' centers ``(B, N, S, 2)``, (row, column) in units of the image.
    """
    height, width = features.shape[-2], features.shape[-1]
    mass = masks.sum(dim=(-2, -1))[..., None] + 1e-5
    vectors = torch.einsum("bnshw,bsdhw->bnsd", masks, features) / mass
    centers = masks.flatten(3) @ grid_positions(height, width, masks) / mass
    return vectors, centers


def normalize(vectors: Tensor, dim: int, floor: float = 1e-4) -> Tensor:
    """Divide by the Euclidean norm along ``dim``, the norm clipped from below as in the official code."""
    return vectors / torch.linalg.vector_norm(vectors, 2.0, [dim], True).clamp(min=floor)


def similarity(
    query: Tensor, vectors: Tensor, temperature: float, places: Optional[Tensor] = None, cells: Optional[Tensor] = None
) -> Tensor:
    """Scaled cosine similarity of prototypes to query cells, less the squared distance of their places, if given.

    Args:
        query: ``(B, D, h, w)`` query features.
        vectors: ``(B, P, D)`` prototypes.
        temperature: factor of the cosine (20 in the paper).
        places: ``(B or 1, P, K)`` places of the prototypes, in coordinates that carry their weight.
        cells: ``(B or 1, h * w, K)`` places of the query's cells in the same coordinates.

    Returns:
        ``(B, P, h * w)``.
    """
    left, right, far = similarity_factors(query, vectors, temperature, places, cells)
    return torch.bmm(left, right) - far


def similarity_factors(
    query: Tensor, vectors: Tensor, temperature: float, places: Optional[Tensor] = None, cells: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor, Tensor]:
    """What :func:`similarity` multiplies, ``(B, P, D + E)`` and ``(B, D + E, C)``, and subtracts ``(B or 1, 1, C)``."""
    vectors, features = temperature * normalize(vectors, 2), normalize(query, 1).flatten(2)
    if places is None or cells is None:
        return vectors, features, torch.zeros_like(features[:, :1])
    return add_places(vectors, features, places, cells)


def add_places(vectors: Tensor, features: Tensor, places: Tensor, cells: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Let squared distances ride along in a product, ``|a - b|^2 = |a|^2 - 2 ab + |b|^2``.

    Its terms are large and cancel: places are centered first, and taken apart so that matrix units which round what
    they multiply (TensorFloat-32) have nothing to round.

    Args:
        vectors: left side of the product ``(B, P, D)``.
        features: right side ``(B, D, C)``.
        places: ``(B or 1, P, K)``.
        cells: ``(B or 1, C, K)``.

    Returns:
        Both sides with ``E`` more columns, ``(B, P, D + E)`` and ``(B, D + E, C)``, and what is to be subtracted from
        their product ``(B or 1, 1, C)``.
    """
    middle = cells.mean(dim=1, keepdim=True)
    places = (places - middle).expand(vectors.shape[0], -1, -1)
    cells = cells - middle
    high, low = split_digits(2 * places)
    norm_high, norm_low = split_digits(-places.square().sum(dim=2, keepdim=True))
    cell_high, cell_low = split_digits(cells)
    one = torch.ones_like(cells[..., :1])
    left = torch.cat([vectors, high, high, low, low, norm_high, norm_low], dim=2)
    right = torch.cat([cell_high, cell_low, cell_high, cell_low, one, one], dim=2).transpose(1, 2)
    right = torch.cat([features, right.expand(features.shape[0], -1, -1)], dim=1)
    return left, right, cells.square().sum(dim=2)[:, None]


def split_digits(values: Tensor) -> Tuple[Tensor, Tensor]:
    """Two tensors with the sum of single-precision values, the first of 11 binary digits, the second of the other 13.

    TensorFloat-32 keeps 11 digits (Dekker, Numerische Mathematik 18, 1971).
    """
    shifted = values * 8193.0
    high = shifted - (shifted - values)
    return high, values - high


def match_prototypes(similar: Tensor, valid: Tensor, reach: float = 80.0) -> Tensor:
    """Score of each class: the softmax-weighted sum of the similarities to its prototypes (TMI eq. 5-6).

    All classes share one exponential, so that memory does not grow with their number.

    Args:
        similar: ``(B, P, h * w)`` similarities.
        valid: ``(B, N, P)`` boolean, which prototypes speak for which class.
        reach: prototypes that are less similar than a cell's most similar one by more than this weigh alike, which
            keeps their exponentials above the smallest number of single precision. Cosines never get there.

    Returns:
        ``(B, N, h * w)`` scores; 0 where a class has no prototype at all.
    """
    weights = torch.exp((similar - similar.amax(dim=1, keepdim=True).detach()).clamp(min=-reach))
    spoken = valid.to(similar.dtype)
    return torch.bmm(spoken, weights * similar) / torch.bmm(spoken, weights).clamp(min=1e-37)


def match_cells(
    query: Tensor,
    vectors: Tensor,
    valid: Tensor,
    temperature: float,
    places: Optional[Tensor] = None,
    cells: Optional[Tensor] = None,
    cells_a_pass: int = 128,
) -> Tensor:
    """:func:`match_prototypes` of :func:`similarity`, a few cells at a time: the same numbers.

    Where no gradient is wanted, what lies between then stays in a processor's cache, and memory does not grow with the
    grid. Arguments as there; ``cells_a_pass`` cells at a time.

    Returns:
        ``(B, N, h * w)`` scores; 0 where a class has no prototype at all.
    """
    left, right, far = similarity_factors(query, vectors, temperature, places, cells)
    scores: List[Tensor] = []
    for first in range(0, right.shape[2], cells_a_pass):
        part = slice(first, first + cells_a_pass)
        scores.append(match_prototypes(torch.bmm(left, right[:, :, part]) - far[:, :, part], valid))
    return torch.cat(scores, dim=2)
