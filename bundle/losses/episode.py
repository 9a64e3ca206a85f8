"""The loss of an episode: weighted cross-entropy on the query, and prototype alignment on the support."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boundary import boundary_term
from .processes import mean_of_processes


class EpisodeLoss(nn.Module):
    """Sum of the query's weighted cross-entropy and the support's cross-entropy (TMI eq. 7-9), and a boundary term.

    The query's term may be computed on a coarser grid than the target's, such as the network's feature grid: the
    target of a cell is then each class's share of it.

    Args:
        background_weight: weight of the background in the query's term (0.05 in the official code); that of the
            classes is 1.
        balance: exponent by which a class's weight falls with its area in the episode, relative to the others'; 0
            weighs every pixel alike, as published, 1 every class.
        alignment_weight: factor of the alignment term (1). The term is absent where the network appends no
            aligned logits.
        boundary_weight: factor of :func:`boundary_term` of the query, our own formulation of the TMI version's
            boundary prior; 0 leaves it out.

    Raises:
        ValueError: when the channels of prediction and target do not fit.
    """

    def __init__(
        self,
        background_weight: float = 0.05,
        balance: float = 0.0,
        alignment_weight: float = 1.0,
        boundary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.background_weight = background_weight
        self.balance = balance
        self.alignment_weight = alignment_weight
        self.boundary_weight = boundary_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch of episodes.

        Args:
            pred: the network's logits ``(B, 1 + way, h, w)``, with alignment ``(B, 1 + way + 2 * way * shot, h, w)``.
            target: the query's label map ``(B, 1, H, W)``, 0 background, 1..way; with alignment followed by the
                binary mask of each support image, way by way, ``(B, 1 + way * shot, H, W)``.
        """
        masks = target.shape[1] - 1
        aligned = 0 < masks < pred.shape[1] - 1  # 1 + way + 2 * masks channels, against 1 + way
        channels = pred.shape[1] - 2 * masks if aligned else pred.shape[1]
        if channels < 2 or masks % (channels - 1) != 0:
            raise ValueError(f"pred of {pred.shape[1]} channels does not fit a target of {target.shape[1]} channels")
        query, labels = pred[:, :channels].float(), target[:, 0].long()
        loss = self.query_term(query, labels)
        if self.boundary_weight > 0:
            shares = class_shares(labels, channels, query.shape[-2:])
            loss = loss + self.boundary_weight * boundary_term(F.softmax(query, dim=1), shares)
        if aligned:
            support = pred[:, channels:].float().reshape(-1, 2, pred.shape[2], pred.shape[3])
            shares = class_shares(target[:, 1:].flatten(0, 1).long(), 2, support.shape[-2:])
            likelihood = (shares * F.log_softmax(support, dim=1)).sum(dim=1)
            loss = loss - self.alignment_weight * likelihood.mean()
        return loss

    def query_term(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy of logits ``(B, N, h, w)`` and a label map ``(B, H, W)``."""
        shares = class_shares(labels, logits.shape[1], logits.shape[-2:])
        weight = torch.ones(logits.shape[:2], device=logits.device)
        if self.balance > 0:
            area = shares.flatten(2).sum(dim=2)
            weight = torch.where(area > 0, (area + 1) ** -self.balance, torch.zeros_like(area))
            weight = weight * (area > 0).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        weight[:, 0] = weight[:, 0] * self.background_weight
        weighted = shares * weight[:, :, None, None]
        return -(weighted * F.log_softmax(logits, dim=1)).sum() / mean_of_processes(weighted.sum()).clamp(min=1e-8)


def class_shares(labels: Tensor, classes: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """Share of each class in each cell of a grid, counted: label maps ``(B, H, W)`` to ``(B, classes, h, w)``.

    Values beyond the classes have no share.

    Args:
        labels: integer label maps; ``h`` divides ``H``, ``w`` divides ``W``.
        classes: number of classes, the background being 0.
        size: ``(h, w)``.
    """
    (batch, height, width), (rows, columns) = labels.shape, size
    cells = labels.reshape(batch, rows, height // rows, columns, width // columns).permute(0, 2, 4, 1, 3)
    cells = cells.reshape(batch, -1, rows * columns).clamp(max=classes)
    counts = torch.zeros(batch, classes + 1, rows * columns, device=labels.device)
    counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=counts.dtype))
    return counts[:, :classes].reshape(batch, classes, rows, columns) / cells.shape[1]
