"""Learning rate over a training that may run on."""

from __future__ import annotations

from torch.optim.lr_scheduler import OneCycleLR


class OneCycle(OneCycleLR):
    """One cycle of the learning rate that stays at its end when the training goes on.

    PyTorch's class raises there; the rounds of a federated training, and a trainer whose epochs are extended, go on.
    Arguments as for :class:`torch.optim.lr_scheduler.OneCycleLR`.
    """

    def step(self, epoch: int | None = None) -> None:
        """Take the next learning rate, or keep the last one."""
        if self.last_epoch + 1 < self.total_steps:
            super().step(epoch)
