"""How far an engine is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ignite.engine import Engine, Events

from ..terminal import bar


class Progress:
    """A progress bar of each epoch on a terminal, which lines of the log do not break; nothing elsewhere.

    Put it before handlers that validate.

    Args:
        what: what an iteration does, as in "segment"; the number of the epoch is added where there are several.
        unit: what an iteration is.
    """

    def __init__(self, what: str, unit: str = "scan") -> None:
        self.what = what
        self.unit = unit
        self._shown: Any = None
        self._stack = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer or an evaluator."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end)

    def start(self, engine: Engine) -> None:
        """Draw the bar when the first data of an epoch are there: before, those who read them draw their own."""
        if self._shown is None:
            epochs = engine.state.max_epochs or 1
            what = f"{self.what} {engine.state.epoch}/{epochs}" if epochs > 1 else self.what
            self._shown = self._stack.enter_context(bar(engine.state.epoch_length or 0, what, self.unit))

    def update(self, engine: Engine) -> None:
        """One iteration more."""
        self._shown.update()

    def end(self, engine: Engine) -> None:
        """Take the bar away."""
        self._stack.close()
        self._shown = None
