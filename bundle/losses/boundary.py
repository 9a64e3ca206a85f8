"""How far the edges of a soft prediction are from those of its target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .processes import mean_of_processes

# the Laplacian over the eight neighbors: 1 on a single pixel of a class, 0 where all nine are alike
LAPLACIAN = ((-1.0, -1.0, -1.0), (-1.0, 8.0, -1.0), (-1.0, -1.0, -1.0))


def edges(maps: Tensor) -> Tensor:
    """Edges of maps ``(B, N, h, w)`` by one fixed kernel, the same shape; the border of the image is none."""
    kernel = torch.tensor(LAPLACIAN, device=maps.device, dtype=maps.dtype) / 8
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).reshape(maps.shape)


def boundary_term(probabilities: Tensor, shares: Tensor) -> Tensor:
    r"""Difference of the edges of prediction and target, relative to the edges of the target.

    .. math::
        L_b = \frac{\sum_{c, x} | (K * p_c)(x) - (K * y_c)(x) |}{\sum_{c, x} | (K * y_c)(x) |},
        \quad K = \frac{1}{8} \begin{pmatrix} -1 & -1 & -1 \\ -1 & 8 & -1 \\ -1 & -1 & -1 \end{pmatrix}

    over the classes ``c``, the background among them, and the cells ``x`` of the whole batch. It is 0 where the
    prediction is the target, 1 for a prediction without any edge, and above 1 for edges in wrong places. Since ``K``
    sums to 0, it asks nothing of the inside of a class, and most of a class's cells lie there.

    The published method (TMI version) has a boundary prior, of which its author says that it is a fixed kernel; neither
    its code nor its numbers were released. This formulation is our own.

    Args:
        probabilities: ``p``, ``(B, N, h, w)``.
        shares: ``y``, each class's share of a cell, of the same shape.
    """
    wanted = edges(shares)
    return (edges(probabilities) - wanted).abs().sum() / mean_of_processes(wanted.abs().sum()).clamp(min=1e-8)
