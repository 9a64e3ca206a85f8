"""Stop a training whose loss is no number, and keep what caused it."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from ..networks.weights import save_tensors


class LossGuard:
    """Stops at the first loss that is NaN or infinite, before it reaches a weight, and saves the step for inspection.

    A CUDA device is not waited for: there the answer comes a few steps later, at the latest at the end of the epoch,
    before anything of that epoch is saved. Put this handler before those that save.

    ``torch.load(path, weights_only=True)`` gives ``batch``, the episodes as the data loader drew them; ``episodes``,
    the images and masks that the network got; ``prediction`` (None if later steps have overwritten it) and ``loss``;
    ``network``, the state dict; ``epoch`` and ``iteration``. The training state of the last complete epoch stays, so
    that the same command goes on from there, with a lower learning rate for example.

    Args:
        path: the file; ``rank`` and suffix are added on further processes.

    Raises:
        FloatingPointError: naming the step, the file and the remedy.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._pending: deque[tuple[torch.Tensor, torch.cuda.Event | None, dict[str, Any]]] = deque()

    def attach(self, engine: Engine) -> None:
        """Listen to a ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def check(self, engine: Engine) -> None:
        """Ask whether the loss of this step is finite, and raise if that of a step with an answer is not."""
        loss = engine.state.output["loss"].detach()
        step = {"batch": engine.state.batch, "epoch": engine.state.epoch, "iteration": engine.state.iteration}
        finite, asked = torch.isfinite(loss).all(), None
        if loss.is_cuda:
            finite, asked = finite.to("cpu", non_blocking=True), torch.cuda.Event()
            asked.record()
        self._pending.append((finite, asked, {**step, "loss": loss}))
        while self._pending and (self._pending[0][1] is None or self._pending[0][1].query()):
            self._judge(engine)

    def finish(self, engine: Engine) -> None:
        """Wait for the answers that are missing."""
        while self._pending:
            if self._pending[0][1] is not None:
                self._pending[0][1].synchronize()
            self._judge(engine)

    def _judge(self, engine: Engine) -> None:
        finite, _, step = self._pending.popleft()
        if bool(finite):
            return
        self._pending.clear()
        rank = getattr(engine.state, "rank", 0)
        path = self.path if rank == 0 else self.path.with_name(f"{self.path.stem}_rank{rank}{self.path.suffix}")
        now = step["iteration"] == engine.state.iteration and isinstance(engine.state.output, dict)
        content = {
            **{key: _plain(value) for key, value in step.items()},
            "episodes": _plain(engine.prepare_batch(step["batch"], engine.state.device)),
            "prediction": _plain(engine.state.output["pred"]) if now else None,
            "network": _plain(engine.network.state_dict()),
        }
        save_tensors(content, path)
        raise FloatingPointError(
            f"the loss is {float(step['loss'].float().mean())} in step {step['iteration']} of epoch {step['epoch']}; "
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
