"""Keep the weights that a training makes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from ..networks.weights import save_state_dict, unwrapped


class WeightsSaver:
    """Writes a network's flat state dict in one step: of the best epoch, or of a training that is complete.

    MONAI's ``CheckpointSaver`` writes in place, saves half-trained weights as final ones when a training fails, and
    compares with what it saved itself since the process started, so that the first epoch of a resumed training would
    replace better weights. This one asks the evaluator, whose best metric :class:`TrainingState` restores.

    Args:
        network: the network.
        path: the file.
        best: attached to an evaluator: save each epoch that is the best so far. Otherwise attached to a trainer:
            save when it completes.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike, best: bool = False) -> None:
        self.network = network
        self.path = Path(path)
        self.best = best

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer, or with ``best`` to an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED if self.best else Events.COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Write the file, on the first process alone."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        if self.best and engine.state.best_metric_epoch != engine.state.epoch:
            return
        save_state_dict(unwrapped(self.network).state_dict(), self.path)
        logging.getLogger(__name__).debug("saved %s after epoch %d", self.path, engine.state.epoch)
