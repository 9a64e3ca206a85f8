"""What a training keeps on its device, known before the first step."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..data.bank import SliceBank

MB = 1e6


class DeviceMemory:
    """Logs at the start what a training will keep on its device, and at the end the most that it used there.

    The first process speaks for all, each of which keeps the same.

    The activations of a step come on top; they grow with ``batch_size`` and are seen only in the second line.

    Args:
        network: the network.
        optimizer: its optimizer; Adam and its relatives keep two numbers a weight, SGD with momentum one.
        bank: the slices, which are read and brought to the device here; ``None`` for none.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, bank: SliceBank | None = None) -> None:
        self.network = network
        self.optimizer = optimizer
        self.bank = bank

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer."""
        engine.add_event_handler(Events.STARTED, self.plan)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def parts(self) -> dict[str, int]:
        """Bytes of weights, gradients, optimizer and slices on the device."""
        trained = sum(p.nbytes for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        return {
            "weights": sum(item.nbytes for item in (*self.network.parameters(), *self.network.buffers())),
            "gradients": trained,
            "optimizer": trained * _numbers_a_weight(self.optimizer.defaults),
            "slices": self.bank.num_bytes if self.bank is not None else 0,
        }

    def plan(self, engine: Engine) -> None:
        """Place the slices and log the parts."""
        if self.bank is not None:
            self.bank.place(engine.state.device)
        if getattr(engine.state, "rank", 0) != 0:
            return
        parts = self.parts()
        text = ", ".join(f"{name} {size / MB:.0f} MB" for name, size in parts.items())
        _log("training state on %s: %.0f MB (%s)", engine.state.device, sum(parts.values()) / MB, text)

    def report(self, engine: Engine) -> None:
        """Log the peak."""
        if engine.state.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(engine.state.device)
            _log("most memory used on %s: %.0f MB", engine.state.device, peak / MB)


def _numbers_a_weight(defaults: dict[str, Any]) -> int:
    if "betas" in defaults:
        return 3 if defaults.get("amsgrad") else 2
    return 1 if defaults.get("momentum") else 0


def _log(text: str, *values: Any) -> None:
    logging.getLogger(__name__).info(text, *values)
