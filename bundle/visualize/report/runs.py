"""What a run left in its folder."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.datalist import case_name
from ...keys import CONFIDENCE, SIMILARITY
from ..curves import Curves, read_curves


@dataclass
class Run:
    """One folder of results; whatever is absent is empty.

    Attributes:
        name: what the page calls it.
        folder: where it lies.
        scores: case to label name to Dice in percent; NaN where a scan does not show a label.
        protocol: of these scores.
        summary: content of ``summary.json``.
        record: content of ``run.json``: command, settings, versions.
        curves: training curves.
        predictions: case to label map.
        confidences: case to its confidence in percent.
        similarities: case to its similarity to the support in percent.
        quality: case to content of ``<case>_quality.json``.
    """

    name: str
    folder: Path
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    protocol: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    predictions: dict[str, Path] = field(default_factory=dict)
    confidences: dict[str, Path] = field(default_factory=dict)
    similarities: dict[str, Path] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the table."""
        return list(dict.fromkeys(name for row in self.scores.values() for name in row))

    def case_mean(self, case: str) -> float:
        """Mean Dice of a case over its labels; NaN if none was measured."""
        return mean_sd(list(self.scores.get(case, {}).values()))[0]

    def label_scores(self, label: str) -> list[float]:
        """Dice of a label in all cases that show it."""
        scores = [row.get(label, math.nan) for row in self.scores.values()]
        return [score for score in scores if not math.isnan(score)]

    @property
    def mean(self) -> float:
        """Mean over cases first and labels last, as in ``summary.json``."""
        return mean_sd([mean_sd(self.label_scores(label))[0] for label in self.labels])[0]


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of the numbers that are not NaN; NaN where there are too few."""
    known = np.array([v for v in values if not math.isnan(v)], dtype=float)
    mean = float(known.mean()) if known.size else math.nan
    return mean, float(known.std(ddof=1)) if known.size > 1 else math.nan


def read_run(folder: str | os.PathLike, name: str | None = None) -> Run:
    """Read one folder of results.

    Raises:
        ValueError: for a file that is not what its name says.
    """
    root = Path(folder)
    run = Run(name or root.resolve().name, root)
    run.summary, run.record = _read_json(root / "summary.json"), _read_json(root / "run.json")
    run.scores, run.protocol = _read_metrics(root / "metrics.csv")
    run.protocol = run.protocol or str(run.summary.get("protocol", ""))
    events = list(root.glob("events.out.tfevents.*"))
    run.curves = read_curves(root) if events else {}
    files = sorted(root.glob("*/[!.]*.nii.gz"))
    named = [file for file in files if case_name(file).startswith(f"{file.parent.name}_")]
    maps = {kind: _of_kind(named, kind) for kind in (CONFIDENCE, SIMILARITY)}
    run.confidences, run.similarities = maps[CONFIDENCE], maps[SIMILARITY]
    others = [file for found in maps.values() for file in found.values()]
    run.predictions = {file.parent.name: file for file in named if file not in others}
    run.quality = {case: found for case in run.predictions if (found := _read_json(_quality(root, case)))}
    return run


def find_runs(folder: str | os.PathLike, depth: int = 3) -> list[Run]:
    """The run in a folder, or all runs in the folders below it, by name.

    Args:
        folder: folder of a run, or of several: folds, seeds.
        depth: how deep to look.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no run is found.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of results")
    if _is_run(root):
        return [read_run(root)]
    found, layer = [], [root]
    for _ in range(depth):
        layer = [child for parent in layer for child in sorted(parent.iterdir()) if child.is_dir()]
        found += [child for child in layer if _is_run(child)]
        layer = [child for child in layer if child not in found]
    if not found:
        raise ValueError(
            f"{folder}: no results; expected metrics.csv, TensorBoard events or <case>/<case>_seg.nii.gz in it or below"
        )
    return [read_run(child, str(child.relative_to(root))) for child in found]


def _is_run(folder: Path) -> bool:
    if (folder / "metrics.csv").is_file() or any(folder.glob("events.out.tfevents.*")):
        return True
    return any(case_name(file).startswith(f"{file.parent.name}_") for file in folder.glob("*/[!.]*.nii.gz"))


def _of_kind(files: Sequence[Path], kind: str) -> dict[str, Path]:
    """Case to the file ``<case>_<kind>.nii.gz``."""
    return {file.parent.name: file for file in files if file.name.startswith(f"{file.parent.name}_{kind}.")}


def _quality(root: Path, case: str) -> Path:
    return root / case / f"{case}_quality.json"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); remove it or run again") from None
    return dict(content) if isinstance(content, Mapping) else {}


def _read_metrics(path: Path) -> tuple[dict[str, dict[str, float]], str]:
    if not path.is_file():
        return {}, ""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    scores: dict[str, dict[str, float]] = {}
    try:
        for row in rows:
            value = float(row["dice"]) if row["dice"] else math.nan
            scores.setdefault(row["case"], {})[row["name"]] = value
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected the columns case, label, name, dice, protocol ({error})") from None
    return scores, rows[0].get("protocol", "") if rows else ""
