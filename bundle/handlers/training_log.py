"""What a training tells while it runs, and when it has ended."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from ignite.engine import Engine, Events

from ..commands import run_command
from ..terminal import table_logger

logger = logging.getLogger(__name__)


class TrainingLog:
    """Logs the loss of single steps, the Dice of each validation, and at the end what came out and what comes next.

    Put it behind the handlers that validate and save.

    Args:
        evaluator: engine of the validation, whose key metric is a Dice in 0..1.
        best: file with the weights of the best epoch.
        final: file with those of the last one.
        interval: steps from one loss to the next.
        dataset_dir: folder of the data set, for the command that comes next.
    """

    def __init__(
        self,
        evaluator: Engine,
        best: str | os.PathLike,
        final: str | os.PathLike,
        interval: int = 50,
        dataset_dir: str | os.PathLike | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.best = Path(best)
        self.final = Path(final)
        self.interval = interval
        self.dataset_dir = dataset_dir
        self._started = self._epoch_started = 0.0
        self._before = 0

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer whose output is a list, see :class:`ListOutput`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.tell_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.tell_epoch)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Remember when the training started."""
        self._started = time.monotonic()
        self._before = -1

    def start_epoch(self, engine: Engine) -> None:
        """Remember when the epoch started, and how many an earlier run had done."""
        self._epoch_started = time.monotonic()
        if self._before < 0:
            self._before = engine.state.epoch - 1

    def tell_loss(self, engine: Engine) -> None:
        """Log the loss of this step."""
        state = engine.state
        step = (state.iteration - 1) % state.epoch_length + 1
        loss = float(state.output[0]["loss"])
        logger.info("epoch %d/%d, step %d/%d: loss %.4f", state.epoch, state.max_epochs, step, state.epoch_length, loss)

    def tell_epoch(self, engine: Engine) -> None:
        """Log how long the epoch took, and the Dice if it was validated."""
        state, validation = engine.state, self.evaluator.state
        text = f"epoch {state.epoch}/{state.max_epochs}: {time.monotonic() - self._epoch_started:.0f} s"
        found = validation.metrics.get(validation.key_metric_name) if validation.epoch == state.epoch else None
        if found is not None:
            best = ", the best so far" if validation.best_metric_epoch == state.epoch else ""
            text += f", validation Dice {100 * found:.1f} %{best}"
        logger.info(text)

    def finish(self, engine: Engine) -> None:
        """Tell what the training has made."""
        validation = self.evaluator.state
        epochs = engine.state.epoch - max(self._before, 0)
        lines = [f"trained {epochs} epochs in {time.monotonic() - self._started:.0f} s"]
        if self._before > 0:
            lines[0] += f", after {self._before} of an earlier run"
        weights = self.final
        if validation.best_metric_epoch > 0:
            weights = self.best
            best = f"{100 * validation.best_metric:.1f} % (epoch {validation.best_metric_epoch})"
            lines[0] += f"; best validation Dice {best}"
            lines.append(f"weights  {self.best} (best epoch)")
        lines.append(f"weights  {self.final} (last epoch)")
        lines.append(f"next     {self._next(str(weights))}")
        table_logger.info("\n%s", "\n".join(lines))

    def _next(self, weights: str) -> str:
        return run_command("segment", str(self.dataset_dir or "DATASET"), ckpt_path=weights, output_dir="results")
