"""Dice of whole scans, as the protocols define it."""

from __future__ import annotations

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor


def scan_dice(pred: Tensor, truth: Tensor, within_extent: bool = False) -> Tensor:
    """Dice of each label over a scan.

    Args:
        pred: masks ``(n, H, W, D)``, 0 or 1, slices along the last axis.
        truth: masks of the same shape, on any device.
        within_extent: count only the slices from the label's first to its last in ``truth``, as the published
            protocols do.

    Returns:
        ``(n,)`` in [0, 1]; NaN for a label that ``truth`` does not show.

    Raises:
        ValueError: if the shapes differ.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"pred of shape {tuple(pred.shape)} does not fit truth of shape {tuple(truth.shape)}")
    pred, truth = pred > 0, truth.to(pred.device) > 0
    shown = truth.flatten(1, 2).any(dim=1)  # (n, D)
    if within_extent:
        extent = (shown.cumsum(dim=1) > 0) & (shown.flip(1).cumsum(dim=1).flip(1) > 0)
        pred = pred & extent[:, None, None]
    overlap = (pred & truth).flatten(1).sum(dim=1).double()
    size = pred.flatten(1).sum(dim=1) + truth.flatten(1).sum(dim=1)
    return torch.where(shown.any(dim=1), 2 * overlap / size.clamp(min=1), torch.full_like(overlap, float("nan")))


class ScanDice(CumulativeIterationMetric):
    """Mean Dice: of each label over the scans that show it, then over the labels.

    Args:
        within_extent: see :func:`scan_dice`.

    Attributes:
        measured: what :func:`scan_dice` gave for each scan since the last :meth:`reset`; of several processes,
            this one's.
    """

    def __init__(self, within_extent: bool = False) -> None:
        super().__init__()
        self.within_extent = within_extent
        self.measured: list[Tensor] = []

    def reset(self) -> None:
        """Forget what was measured."""
        super().reset()
        self.measured = []

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs) -> Tensor:
        if y is None:
            raise ValueError("ScanDice needs the true masks")
        scans = zip(y_pred.as_subclass(Tensor), y.as_subclass(Tensor))
        dice = torch.stack([scan_dice(pred, truth, self.within_extent) for pred, truth in scans])
        self.measured += dice.unbind()
        return dice

    def aggregate(self) -> Tensor:
        """Mean over scans, then labels; a scalar tensor."""
        return self.get_buffer().nanmean(dim=0).nanmean()
