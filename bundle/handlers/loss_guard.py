"""Stop a training whose loss is no number, and keep what caused it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents

from ..atomic import replacing


class LossGuard:
    """Stops at the first loss that is NaN or infinite, before it reaches a weight, and saves the step for inspection.

    ``torch.load(path, weights_only=True)`` gives ``batch``, the episodes as the data loader made them; ``prediction``
    and ``loss``; ``network``, the state dict that gave them; ``epoch`` and ``iteration``. The training state of the
    last complete epoch stays, so that the same command goes on from there, with a lower learning rate for example.

    Args:
        path: the file; ``rank`` and suffix are added on further processes.

    Raises:
        FloatingPointError: naming the step, the file and the remedy.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Listen to a ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check)

    def check(self, engine: Engine) -> None:
        """Raise unless the loss of this step is finite."""
        loss = engine.state.output["loss"]
        if torch.isfinite(loss).all():
            return
        rank = getattr(engine.state, "rank", 0)
        path = self.path if rank == 0 else self.path.with_name(f"{self.path.stem}_rank{rank}{self.path.suffix}")
        content = {
            "batch": _plain(engine.state.batch),
            "prediction": _plain(engine.state.output["pred"]),
            "loss": _plain(loss),
            "network": _plain(engine.network.state_dict()),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
        }
        with replacing(path) as temporary:
            torch.save(content, temporary)
        raise FloatingPointError(
            f"the loss is {float(loss.detach().float().mean())} in step {engine.state.iteration} of epoch "
            f"{engine.state.epoch}; its episodes are in {path}, lower learning_rate or look at their images"
        )


def _plain(value: Any) -> Any:
    """A copy of nested tensors and numbers on the CPU, which loads without running code."""
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor).cpu()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
