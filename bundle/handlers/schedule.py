"""Learning rate over a training that may run on."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


class OneCycle(OneCycleLR):
    """One cycle of the learning rate that stays at its end when the training goes on, and fits any number of steps.

    PyTorch's class raises there; the rounds of a federated training, and a trainer whose epochs are extended, go on.

    Args:
        optimizer: whose rate it sets.
        max_lr: highest rate.
        total_steps: steps of the cycle.
        pct_start: share of the steps in which the rate rises; what is shorter than a step is left out.
        **kwargs: see :class:`torch.optim.lr_scheduler.OneCycleLR`.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: float, total_steps: int, pct_start: float = 0.3, **kwargs: Any
    ) -> None:
        # PyTorch divides by the length of the rise, pct_start * total_steps - 1
        pct_start = 0.0 if pct_start * total_steps == 1 else pct_start
        super().__init__(optimizer, max_lr, total_steps, pct_start=pct_start, **kwargs)

    def step(self, epoch: int | None = None) -> None:
        """Take the next learning rate, or keep the last one."""
        if self.last_epoch + 1 < self.total_steps:
            super().step(epoch)
