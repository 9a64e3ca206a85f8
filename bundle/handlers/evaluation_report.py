"""Writes what an evaluation measured: a table of cases and labels, and a summary."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from ignite.engine import Engine, Events

from ..atomic import replacing, write_json
from ..commands import next_command
from ..keys import PRED
from ..metrics import ScanDice
from ..terminal import format_table, table_logger
from .cases import is_first, scan_name
from .finished import FinishedCases

logger = logging.getLogger(__name__)


class EvaluationReport:
    """Writes ``metrics.csv`` after every case and ``summary.json`` at the end.

    ``metrics.csv`` has one row per case and label: case, label value, name, Dice in percent (empty where the scan
    does not show the label), protocol. ``summary.json`` holds ``{"mean": …, "per_label": {name: …}, "protocol": …}``,
    the mean over scans first and over labels last, in percent.

    Args:
        output_dir: folder of both files.
        labels: label values, in the order of the masks.
        names: name of each value.
        protocol: name of the protocol.
        metric: the evaluator's, which measures each case before this handler is asked.
        details: further entries of the summary, such as fold and support.
        finished: cases that an interrupted run finished; their rows are taken from its table.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        labels: Sequence[int],
        names: Mapping[int, str],
        protocol: str,
        metric: ScanDice,
        details: Mapping[str, Any] | None = None,
        finished: FinishedCases | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.labels = list(labels)
        self.names = {value: names.get(value, f"label {value}") for value in self.labels}
        self.protocol = protocol
        self.metric = metric
        self.details = dict(details or {})
        self.finished = finished
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine | None = None) -> None:
        """Begin with the rows of the cases that are finished already."""
        self.rows = []
        if self.finished is None or not self.finished.cases or not is_first():
            return
        with open(self.output_dir / "metrics.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["case"] in self.finished.cases:
                    dice = float(row["dice"]) if row["dice"] else ""
                    self.rows.append({**row, "label": int(row["label"]), "dice": dice})

    def add(self, engine: Engine) -> None:
        """Add the cases of an iteration and write the table; of several processes, the first writes its own."""
        cases = engine.state.output
        for output, dice in zip(cases, self.metric.measured[-len(cases) :]):
            case = scan_name(output[PRED])
            scores = []
            for value, score in zip(self.labels, dice.tolist()):
                percent = "" if np.isnan(score) else round(100 * score, 3)
                scores.append(percent)
                row = {"case": case, "label": value, "name": self.names[value], "dice": percent}
                self.rows.append({**row, "protocol": self.protocol})
            logger.info("%d/%d %s: Dice %s %%", engine.state.iteration, engine.state.epoch_length, case, _mean(scores))
        if is_first():
            self._write_table()

    def _write_table(self) -> None:
        with (
            replacing(self.output_dir / "metrics.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, ["case", "label", "name", "dice", "protocol"])
            writer.writeheader()
            writer.writerows(self.rows)

    def finish(self, engine: Engine | None = None) -> None:
        """Write the summary and log it as a table; the first of several processes does so for all.

        Without an engine, of the cases that are finished already.
        """
        if engine is None:
            self.start()
        if dist.is_available() and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.rows)
            order = {value: index for index, value in enumerate(self.labels)}
            gathered = [row for part in parts for row in part]
            self.rows = sorted(gathered, key=lambda row: (row["case"], order[row["label"]]))
            if not is_first():
                return
            self._write_table()
        per_label = {}
        for value in self.labels:
            scores = [row["dice"] for row in self.rows if row["label"] == value and row["dice"] != ""]
            per_label[self.names[value]] = round(float(np.mean(scores)), 2) if scores else None
        known = [score for score in per_label.values() if score is not None]
        summary = {
            "mean": round(float(np.mean(known)), 2) if known else None,
            "per_label": per_label,
            "protocol": self.protocol,
            "cases": len({row["case"] for row in self.rows}),
            **self.details,
        }
        write_json(self.output_dir / "summary.json", summary)
        if self.rows:
            table_logger.info("\n%s\n\n%s", self.format(summary), "\n".join(self._notes()))

    def format(self, summary: Mapping[str, Any]) -> str:
        """The table of the Dice of each case and label, in percent, and their means."""
        cases: dict[str, list[Any]] = {}
        for row in self.rows:
            cases.setdefault(row["case"], []).append(row["dice"])
        rows = [[case, *map(_cell, scores), _mean(scores)] for case, scores in cases.items()]
        by_label = list(zip(*cases.values()))
        mean = ["mean", *map(_cell, summary["per_label"].values()), _cell(summary["mean"])]
        spread = ["sd", *(_spread(scores) for scores in by_label), ""]
        return format_table([f"Dice in %, {self.protocol}", *self.names.values(), "mean"], [*rows, mean, spread])

    def _notes(self) -> list[str]:
        page = next_command("report", str(self.output_dir))
        notes = [f"table    {self.output_dir}/metrics.csv, summary {self.output_dir}/summary.json", f"pictures {page}"]
        before = 0 if self.finished is None else len(self.finished.cases)
        if before:
            left = len({row["case"] for row in self.rows}) - before
            done = "nothing to do" if left == 0 else f"{left} were left"
            notes.append(f"{before} cases were finished before: {done}; --resume False makes them anew")
        return notes


def _known(scores: Sequence[Any]) -> list[float]:
    return [float(score) for score in scores if score not in ("", None)]


def _cell(score: Any) -> str:
    return "-" if score in ("", None) else f"{float(score):.1f}"


def _mean(scores: Sequence[Any]) -> str:
    return _cell(np.mean(_known(scores)) if _known(scores) else None)


def _spread(scores: Sequence[Any]) -> str:
    return _cell(np.std(_known(scores)) if _known(scores) else None)
