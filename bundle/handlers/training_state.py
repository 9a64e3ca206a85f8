"""Interrupt a training and go on as if nothing had happened."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.nn.parallel import DistributedDataParallel


class TrainingState:
    """Saves the whole state of a training after every epoch and restores it when the same training starts again.

    The file holds tensors and plain values only and is written in one step, so that a run that is killed at any
    moment leaves the last complete epoch. It is removed when the training completes: the next run is a new one.
    Put this handler last, so that validation and schedules of an epoch are over when it saves.

    Args:
        path: the file, outside of ``models``, whose weights consumers list.
        objects: everything with a ``state_dict``: network, optimizer, scheduler, …
        evaluator: engine whose best metric is kept, so that a resumed run does not overwrite better weights.
        resume: restore the file if it exists; otherwise it is ignored and overwritten.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        objects: Mapping[str, Any],
        evaluator: Engine | None = None,
        resume: bool = True,
    ) -> None:
        self.path = Path(path)
        self.objects = {
            name: item.module if isinstance(item, DistributedDataParallel) else item for name, item in objects.items()
        }
        self.evaluator = evaluator
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.remove)

    def restore(self, engine: Engine) -> None:
        """Load the file into the objects and the trainer's counters."""
        if not self.resume or not self.path.is_file():
            return
        state = torch.load(self.path, map_location=engine.state.device, weights_only=True)
        for name, item in self.objects.items():
            item.load_state_dict(state[name])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        logging.getLogger(__name__).info("resumed %s after epoch %d", self.path, state["epoch"])

    def save(self, engine: Engine) -> None:
        """Write the file, on the first process alone."""
        if engine.state.rank != 0:
            return
        state: dict[str, Any] = {name: item.state_dict() for name, item in self.objects.items()}
        state["epoch"], state["iteration"] = engine.state.epoch, engine.state.iteration
        if self.evaluator is not None:
            state["best_metric"] = float(self.evaluator.state.best_metric)
            state["best_metric_epoch"] = int(self.evaluator.state.best_metric_epoch)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def remove(self, engine: Engine) -> None:
        """Delete the file of a completed training."""
        if engine.state.rank == 0:
            self.path.unlink(missing_ok=True)
