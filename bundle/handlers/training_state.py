"""Interrupt a training and go on as if nothing had happened."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from ..networks.weights import save_tensors, unwrapped


class TrainingState:
    """Saves the whole state of a training after every epoch and restores it when the same training starts again.

    The file holds tensors and plain values only: the given objects, the counters, from which episodes follow, the best
    metric, and the random states of PyTorch, NumPy and Python in each process. The first process reads and writes it
    for all, so that the others may run on machines that do not see it. It is written in one step, so that a run that
    is killed at any moment leaves the last complete epoch. It is removed when the training completes: the next run is a
    new one. Put this handler last, so that validation and schedules of an epoch are over when it saves.

    Args:
        path: the file, outside of ``models``, whose weights consumers list.
        objects: everything with a ``state_dict``: network, optimizer, scheduler, …
        evaluator: engine whose best metric is kept, so that a resumed run does not overwrite better weights.
        resume: restore the file if it exists; otherwise it is ignored and overwritten.
    """

    def __init__(
        self, path: str | os.PathLike, objects: Mapping[str, Any], evaluator: Engine | None = None, resume: bool = True
    ) -> None:
        self.path = Path(path)
        self.objects = {name: unwrapped(item) for name, item in objects.items()}
        self.evaluator = evaluator
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.remove)

    def restore(self, engine: Engine) -> None:
        """Load the file into the objects and the trainer's counters."""
        if not self.resume:
            return
        found = engine.state.rank == 0 and self.path.is_file()
        state = _from_first(torch.load(self.path, map_location="cpu", weights_only=True) if found else None)
        if state is None:
            return
        for name, item in self.objects.items():
            item.load_state_dict(state[name])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        same = len(state["random"]) == _num_processes()
        _set_random_state(state["random"][engine.state.rank if same else 0], engine.state.device)
        logging.getLogger(__name__).info("resumed %s after epoch %d", self.path, state["epoch"])

    def save(self, engine: Engine) -> None:
        """Write the file, on the first process alone."""
        randoms = _from_all(_random_state(engine.state.device))
        if engine.state.rank != 0:
            return
        state: dict[str, Any] = {name: item.state_dict() for name, item in self.objects.items()}
        state["epoch"], state["iteration"] = engine.state.epoch, engine.state.iteration
        state["random"] = randoms
        if self.evaluator is not None:
            state["best_metric"] = float(self.evaluator.state.best_metric)
            state["best_metric_epoch"] = int(self.evaluator.state.best_metric_epoch)
        save_tensors(state, self.path)

    def remove(self, engine: Engine) -> None:
        """Delete the file of a completed training."""
        if engine.state.rank == 0:
            self.path.unlink(missing_ok=True)


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _from_first(item: Any) -> Any:
    """What the first process has."""
    items = [item]
    if _num_processes() > 1:
        dist.broadcast_object_list(items)
    return items[0]


def _from_all(item: Any) -> list[Any]:
    """What each process has."""
    items = [item] * _num_processes()
    if len(items) > 1:
        dist.all_gather_object(items, item)
    return items


def _random_state(device: torch.device) -> dict[str, Any]:
    """States of the global random generators of this process, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the global one, which MONAI seeds
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), gauss],
        "python": random.getstate(),
    }


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:  # on another kind of device it means nothing
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
