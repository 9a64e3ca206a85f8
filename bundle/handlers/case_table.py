"""The table that ends a run: what was found in each case, how sure it is, and where the files are."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events

from ..atomic import replacing
from ..commands import next_command
from ..keys import NEXT_SLICE, PRED
from ..measurements import COLUMNS, table_row
from ..quality import format_ml
from ..terminal import format_table, table_logger
from .cases import check_keys, is_first, iteration_cases, scan_name
from .finished import FinishedCases

logger = logging.getLogger(__name__)


class CaseTable:
    """Logs a line for each case and, at the end, a table of all: seconds, mL and confidence of each label, warnings.

    What it tells is read from the files that :class:`CaseQuality` writes, so that cases which an earlier run finished
    are in the table as well. ``output_dir/measurements.csv`` has all that is measured, a row for each case and label.

    Args:
        output_dir: folder of the results.
        finished: cases that an earlier run finished.
        pred_key: key of the label map.
        postfix: end of the label maps' names.
        quality_postfix: end of the names of what :class:`CaseQuality` writes.
        max_rows: cases in the table; what is left out is in the file.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        finished: FinishedCases,
        pred_key: str = PRED,
        postfix: str = "seg",
        quality_postfix: str = "quality",
        max_rows: int = 40,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.finished = finished
        self.pred_key = pred_key
        self.postfix = postfix
        self.quality_postfix = quality_postfix
        self.max_rows = max_rows
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator, after :class:`CaseQuality`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Begin to count."""
        self.seconds = {}
        self._last = time.monotonic()

    def add(self, engine: Engine) -> None:
        """Log a line for each case of an iteration."""
        now = time.monotonic()
        cases = iteration_cases(engine)
        for case in cases:
            check_keys(case, [self.pred_key], "CaseTable")
            name = scan_name(case[self.pred_key])
            self.seconds[name] = (now - self._last) / len(cases)
            logger.info("%d/%d %s: %.1f s", engine.state.iteration, engine.state.epoch_length, name, self.seconds[name])
        self._last = now

    def finish(self, engine: Engine | None = None) -> None:
        """Log the table; the first of several processes does so for all. Without an engine, nothing was left to do."""
        if dist.is_available() and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.seconds)
            self.seconds = {name: seconds for part in parts for name, seconds in part.items()}
        if not is_first():
            return
        found = {name: self._read(name) for name in sorted({*self.seconds, *self.finished.cases})}
        self._write(found)
        table_logger.info("\n%s\n\n%s", self.format(found), "\n".join(self._notes(found)))

    def format(self, found: dict[str, dict[str, Any]]) -> str:
        """The table of what is known of each case, with a column for each label where they fit side by side."""
        labels = list(dict.fromkeys(label for case in found.values() for label in case.get("volume_ml", {})))
        shown = list(found.items())[: self.max_rows]
        times = {name: f"{self.seconds[name]:.1f}" if name in self.seconds else "before" for name, _ in shown}
        rows = [[name, times[name], *(_cell(case, label) for label in labels)] for name, case in shown]
        table = format_table(["case", "seconds", *labels], rows)
        if max(map(len, table.splitlines())) > max(100, shutil.get_terminal_size().columns):
            rows = [[name, times[name], *_in_short(case)] for name, case in shown]
            table = format_table(["case", "seconds", "labels found", "mL in all", "lowest"], rows)
        more = len(found) - len(shown)
        return table + (f"\n… and {more} more cases, see measurements.csv" if more else "")

    def _notes(self, found: dict[str, dict[str, Any]]) -> list[str]:
        notes = []
        if any(case.get("expected_dice") for case in found.values()):
            notes.append(
                "In brackets: the Dice in percent that a label is expected to have; an estimate without truth."
            )
        notes += [f"warning  {name}: {case['warning']}" for name, case in found.items() if "warning" in case]
        notes += [
            f"label next  {name}: slice {case[NEXT_SLICE] + 1}, the least sure (counted from 1)"
            for name, case in found.items()
            if NEXT_SLICE in case
        ]
        pattern = f"{self.output_dir}/CASE/CASE_"
        notes.append(f"results  {pattern}{self.postfix}.nii.gz, table {self.output_dir}/measurements.csv")
        if any((self.output_dir / name / f"{name}_overlay.png").is_file() for name in found):
            notes.append(
                f"pictures {pattern}overlay.png; one page of all: {next_command('report', str(self.output_dir))}"
            )
        if any((self.output_dir / name / f"{name}_{self.postfix}.dcm").is_file() for name in found):
            notes.append(f"DICOM    {pattern}{self.postfix}.dcm")
        before = len(self.finished.cases)
        if before and not self.seconds:
            notes.append(f"all {before} cases were finished before: nothing to do; --resume False makes them anew")
        elif before:
            notes.append(f"{before} of the {len(found)} cases were finished before; --resume False makes them anew")
        return notes

    def _read(self, name: str) -> dict[str, Any]:
        """What :class:`CaseQuality` wrote about a case; nothing if there is no such file."""
        try:
            file = self.output_dir / name / f"{name}_{self.quality_postfix}.json"
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def _write(self, found: dict[str, dict[str, Any]]) -> None:
        with (
            replacing(self.output_dir / "measurements.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["case", "label", *COLUMNS])
            for name, case in found.items():
                for label in case.get("volume_ml", {}):
                    row = table_row(case, label)
                    writer.writerow([name, label, *("" if number is None else number for number in row)])


def _cell(case: dict[str, Any], label: str) -> str:
    """Volume and expected Dice of a label, as ``1432 mL (88)``."""
    volume = case.get("volume_ml", {}).get(label)
    if volume is None:
        return "-"
    expected = case.get("expected_dice", {}).get(label)
    return f"{format_ml(volume)} mL" + (f" ({expected[0]:.0f})" if expected is not None else "")


def _in_short(case: dict[str, Any]) -> list[str]:
    """Labels found, mL in all, and the label whose expected Dice is lowest."""
    volumes, expected = case.get("volume_ml", {}), case.get("expected_dice", {})
    lowest = min(expected, key=expected.__getitem__, default=None)
    return [
        f"{sum(volume > 0 for volume in volumes.values())} of {len(volumes)}",
        format_ml(sum(volumes.values())),
        "-" if lowest is None else f"{lowest} ({expected[lowest][0]:.0f})",
    ]
