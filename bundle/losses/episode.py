"""The loss of an episode: weighted cross-entropy on the query, and prototype alignment on the support."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EpisodeLoss(nn.Module):
    """Sum of the query's weighted cross-entropy and the support's cross-entropy (TMI eq. 7-9).

    Args:
        background_weight: class weight of the background in the query's term (0.05 in the official code).
        alignment_weight: factor of the alignment term (1). The term is absent where the network appends no
            aligned logits.

    Raises:
        ValueError: when the channels of prediction and target do not fit.
    """

    def __init__(self, background_weight: float = 0.05, alignment_weight: float = 1.0) -> None:
        super().__init__()
        self.background_weight = background_weight
        self.alignment_weight = alignment_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch of episodes.

        Args:
            pred: the network's logits ``(B, 1 + way, H, W)``, with alignment ``(B, 1 + way + 2 * way * shot, H, W)``.
            target: ``(B, 1 + way * shot, H, W)``: channel 0 the query's label map (0 background, 1..way), then the
                binary mask of each support image, way by way.
        """
        masks = target.shape[1] - 1
        query_labels = target[:, 0].long()
        aligned = (pred.shape[1] - 1) > masks  # 1 + way + 2 * masks channels, against 1 + way
        query_channels = pred.shape[1] - 2 * masks if aligned else pred.shape[1]
        if query_channels < 2 or masks % (query_channels - 1) != 0:
            raise ValueError(f"pred of {pred.shape[1]} channels does not fit a target of {target.shape[1]} channels")
        weight = torch.ones(query_channels, device=pred.device, dtype=torch.float32)
        weight[0] = self.background_weight
        loss = F.cross_entropy(pred[:, :query_channels].float(), query_labels, weight=weight)
        if aligned:
            support = pred[:, query_channels:].float().reshape(-1, 2, pred.shape[2], pred.shape[3])
            support_labels = target[:, 1:].reshape(-1, target.shape[2], target.shape[3]).long()
            loss = loss + self.alignment_weight * F.cross_entropy(support, support_labels)
        return loss
