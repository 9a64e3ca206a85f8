"""Cases that an earlier run of the same settings finished: an interrupted inference goes on where it was."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..atomic import write_json
from ..data.datalist import case_name
from ..data.datastore import Datastore
from ..data.support import resolve_support
from ..identity import code_digest, describe, file_state, installed_versions
from ..keys import IMAGE, LABEL

RECORD = ".finished.json"  # in a case's folder; written last, so that its presence means finished
PACKAGES = ("monai", "nibabel", "numpy", "scipy", "torch")


class FinishedCases:
    """Leaves out the cases whose results are there and would come out the same, and records those that get finished.

    A case is finished if its record has the key that it would get now and its results are still there. The key changes
    with the query's files, the weights, the support, every setting of the given objects, the bundle's code and the
    versions of what it runs on. A query of a MONAI Label studies folder, whose finished labels may be its support, is
    always segmented again.

    Args:
        output_dir: folder of the results, one folder a case.
        settings: objects and values that decide about the results: network, preprocessing, inferer, …
        weights: file with the network's weights.
        support: ``[{"image": path, "label": path}, …]``.
        dataset_dir: folder to which paths of the support may be relative.
        table: CSV file with a column ``case`` that must list a case for it to count as finished; ``None`` for none.
        resume: ``False`` segments every case.
        pseudo_supports: ``[{"image": path}, …]`` that pass the support's labels on.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        settings: Mapping[str, Any],
        weights: str | os.PathLike,
        support: Sequence[Mapping[str, Any]],
        dataset_dir: str | os.PathLike | None = None,
        table: str | os.PathLike | None = None,
        resume: bool = True,
        pseudo_supports: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.output_dir = Path(output_dir)
        self.settings = dict(settings)
        self.weights = weights
        self.support = list(support)
        self.pseudo_supports = pseudo_supports  # of which bad ones are taken out
        self.dataset_dir = dataset_dir
        self.table = Path(table) if table else None
        self.resume = resume
        self.cases: list[str] = []
        self._keys: dict[str, str] = {}
        self._written: list[str] = []  # cases of the last iteration

    def leave_out(self, entries: MutableSequence[Mapping[str, Any]]) -> None:
        """Take finished cases out of ``[{"image": path}, …]``; their names are in ``cases`` then."""
        shared = self._shared_key()
        listed = self._listed()
        self.cases, kept = [], []
        for entry in entries:
            case = case_name(entry[IMAGE])
            states = [file_state(entry[key]) for key in (IMAGE, LABEL) if entry.get(key) is not None]
            self._keys[case] = hashlib.sha1(f"{shared}{states}".encode()).hexdigest()
            done = self.resume and Datastore.find(entry[IMAGE]) is None and self._is_finished(case)
            if done and (listed is None or case in listed):
                self.cases.append(case)
            else:
                (self.output_dir / case / RECORD).unlink(missing_ok=True)
                kept.append(entry)
        entries[:] = kept

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator, after every handler that writes a case's results.

        Handlers may write an iteration's results while the next one is computed, but not longer.
        """
        engine.add_event_handler(Events.STARTED, lambda _: self._written.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.record)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._record_written())

    def record(self, engine: Engine) -> None:
        """Record the cases of the iteration before as finished."""
        self._record_written()
        self._written = [case_name(str(item[IMAGE].meta["filename_or_obj"])) for item in engine.state.batch]

    def _record_written(self) -> None:
        for case in self._written:
            folder = self.output_dir / case
            if case in self._keys and folder.is_dir():
                files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
                write_json(folder / RECORD, {"key": self._keys[case], "files": files})
        self._written = []

    def _is_finished(self, case: str) -> bool:
        folder = self.output_dir / case
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return record["key"] == self._keys[case] and all((folder / name).is_file() for name in record["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _listed(self) -> set[str] | None:
        if self.table is None:
            return None
        if not self.table.is_file():
            return set()
        with open(self.table, newline="", encoding="utf-8") as file:
            return {row["case"] for row in csv.DictReader(file)}

    def _shared_key(self) -> str:
        """What all cases have in common."""
        support = [
            [file_state(entry[IMAGE]), file_state(entry[LABEL]), describe(dict(entry))]
            for entry in resolve_support(self.support, self.dataset_dir)
        ]
        pseudo_supports = [file_state(entry[IMAGE]) for entry in self.pseudo_supports]
        parts: list[Any] = [describe(self.settings), file_state(self.weights), support, pseudo_supports]
        parts += [installed_versions(PACKAGES), code_digest()]
        return hashlib.sha1(json.dumps(parts, sort_keys=True).encode()).hexdigest()
