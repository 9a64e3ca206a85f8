"""The output of a training step as MONAI's handlers of scalars read it."""

from __future__ import annotations

from ignite.engine import Engine, Events


class ListOutput:
    """Puts the output of a trainer that does not take its batches apart into a list of one.

    ``from_engine(..., first=True)``, which MONAI's own settings of its handlers use, reads a list. To take batches
    apart makes one as well, but it turns the loss into a number in every step, and so waits for the device. Put this
    handler first.
    """

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer with ``decollate=False``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.wrap)

    def wrap(self, engine: Engine) -> None:
        """Wrap the output of this step."""
        if not isinstance(engine.state.output, list):
            engine.state.output = [engine.state.output]
