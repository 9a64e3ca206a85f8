"""Curves of a training from what it left on disk."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
from monai.utils import optional_import

EventAccumulator, has_tensorboard = optional_import(
    "tensorboard.backend.event_processing.event_accumulator", name="EventAccumulator"
)

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(source: str | os.PathLike) -> Curves:
    """Scalar curves of a training: name to steps and values.

    Args:
        source: a folder with TensorBoard event files, at any depth, or a csv file with a header, whose first column
            holds the steps and whose others hold one curve each; empty cells are left out.

    Returns:
        Curves sorted by name, each sorted by step; empty if the folder holds no scalar. A step that was written twice,
        as after an interruption, keeps its last value.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for a csv file without a header and numbers.
    """
    path = Path(source)
    if path.is_file():
        return _read_csv(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder or csv file of training curves")
    return _read_events(path)


def _read_csv(path: Path) -> Curves:
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ValueError(f"{path}: expected a header and rows of numbers, the first column being the step")
    curves: Curves = {}
    try:
        for column, name in enumerate(rows[0][1:], start=1):
            points = [(float(row[0]), float(row[column])) for row in rows[1:] if column < len(row) and row[column]]
            if points:
                curves[name] = _in_order(points)
    except ValueError as error:
        raise ValueError(f"{path}: curves must be numbers ({error})") from None
    return dict(sorted(curves.items()))


def _read_events(folder: Path) -> Curves:
    if not has_tensorboard:
        return {}
    points: dict[str, list[tuple[float, float, float]]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 1, "histograms": 1})
        events.Reload()
        for tag in events.Tags().get("scalars", []):
            points.setdefault(tag, []).extend((e.wall_time, e.step, e.value) for e in events.Scalars(tag))
    return {tag: _in_order([(step, value) for _, step, value in sorted(points[tag])]) for tag in sorted(points)}


def _in_order(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values in order of the steps; of several values of a step, the last."""
    by_step = dict(points)
    steps = sorted(by_step)
    return np.array(steps, dtype=float), np.array([by_step[step] for step in steps], dtype=float)
