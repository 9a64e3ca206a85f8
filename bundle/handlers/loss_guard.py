"""Stop a training whose loss is no number, and keep what caused it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents

from ..networks.weights import save_tensors, unwrapped


class LossGuard:
    """Stops at the first loss that is NaN or infinite, before it reaches a weight, and saves the step for inspection.

    A CUDA device is asked after its forward pass, and the answer waited for once its backward pass is started, so that
    it never runs out of work; what changes the weights is started after the answer.

    ``torch.load(path, weights_only=True)`` gives ``batch``, the episodes as the data loader drew them; ``episodes``,
    the images and masks that the network got; ``prediction`` and ``loss``; ``network``, the flat state dict
    before the step; ``epoch`` and ``iteration``. The training state of the last complete epoch stays, so that the same
    command goes on from there, with a lower learning rate for example.

    Args:
        path: the file; ``rank`` and suffix are added on further processes.

    Raises:
        FloatingPointError: naming the step, the file and the remedy.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._finite = torch.tensor(True)
        self._answered: torch.cuda.Event | None = None

    def attach(self, engine: Engine) -> None:
        """Listen to a ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.ask)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.check)

    def ask(self, engine: Engine) -> None:
        """Ask the device whether the loss of this step is finite."""
        loss = engine.state.output["loss"].detach()
        self._finite, self._answered = torch.isfinite(loss).all().to("cpu", non_blocking=True), None
        if loss.is_cuda:
            self._answered = torch.cuda.Event()
            self._answered.record()

    def check(self, engine: Engine) -> None:
        """Wait for the answer, and raise if it is no."""
        if self._answered is not None:
            self._answered.synchronize()
        if bool(self._finite):
            return
        loss = engine.state.output["loss"].detach()
        rank = getattr(engine.state, "rank", 0)
        path = self.path if rank == 0 else self.path.with_name(f"{self.path.stem}_rank{rank}{self.path.suffix}")
        content = {
            "batch": _plain(engine.state.batch),
            "episodes": _plain(engine.prepare_batch(engine.state.batch, engine.state.device)),
            "prediction": _plain(engine.state.output["pred"]),
            "loss": _plain(loss),
            "network": _plain(unwrapped(engine.network).state_dict()),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
        }
        save_tensors(content, path)
        raise FloatingPointError(
            f"the loss is {float(loss.float().mean())} in step {engine.state.iteration} of epoch {engine.state.epoch}; "
            f"its episodes are in {path}, lower learning_rate or look at their images"
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
