"""One numbering of structures for labels whose files say what they show: masks by their names, Slicer's segments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .formats import natural_key
from .look import Look
from .names import is_structure
from .source import Case, LabelPart


@dataclass(frozen=True)
class Labelled:
    """A case and its labels.

    Attributes:
        case: the case, without its label.
        labels: ``[(path, what it shows by its name, its look), …]``; several are masks of one structure each.
    """

    case: Case
    labels: Sequence[tuple[Path, str, Look]]


def number_structures(
    labelled: Sequence[Labelled], notes: list[str], given: Mapping[int, str] | None = None
) -> tuple[list[Case], dict[int, str]]:
    """Give each named structure one value in all cases; labels without names keep their values.

    Args:
        labelled: the cases.
        notes: receives what is to be known.
        given: names of values that are known.

    Returns:
        The cases with their labels, and the names of the values.
    """
    masks = any(len(item.labels) > 1 for item in labelled) or _one_structure(labelled)
    unnamed: set[int] = set()
    parts: list[list[tuple[str, LabelPart]]] = []
    for item in labelled:
        named: list[tuple[str, LabelPart]] = []
        for path, structure, look in item.labels:
            if look.segments:
                named += [
                    (segment.name or f"segment {segment.value}", LabelPart(path, 0, segment.value, segment.layer))
                    for segment in look.segments
                ]
            elif masks and is_structure(structure) and len(look.values) <= 1:
                if look.values or len(item.labels) == 1:  # an empty mask among many: the structure is not in the scan
                    named.append((structure, LabelPart(path, 0)))
            else:
                unnamed |= set(look.values)
        parts.append(named)
    values = {_same(name): value for value, name in (given or {}).items()}
    titles = {value: name for value, name in (given or {}).items()}
    free = (value for value in range(1, 2**15) if value not in unnamed and value not in titles)
    wanted = {_same(name): name for named in reversed(parts) for name, _ in reversed(named)}
    for key in sorted(wanted, key=natural_key):
        if key not in values:
            values[key] = next(free)
            titles[values[key]] = wanted[key]
    cases = []
    for item, named in zip(labelled, parts):
        paths = [path for path, _, _ in item.labels]
        label = paths[0] if len(paths) == 1 else _common(paths) if named else None
        cases.append(
            replace(
                item.case, label=label, parts=tuple(replace(part, target=values[_same(name)]) for name, part in named)
            )
        )
    if unnamed and wanted:
        plain = [item.case.name for item, named in zip(labelled, parts) if not named]
        notes.append(
            f"labels of {', '.join(plain[:3])} keep their values, those of the other cases are numbered by the names of "
            "their structures; give all of them names if they show the same"
        )
    if not wanted and len({names for names in map(_structures, labelled) if names}) > 1:
        notes.append("labels have different words in their names; their values are taken as they are")
    return cases, titles if wanted or given else {}


def _structures(item: Labelled) -> str:
    return item.labels[0][1] if len(item.labels) == 1 else ""


def _one_structure(labelled: Sequence[Labelled]) -> bool:
    """Whether every case has one mask and all of them are called for the same structure."""
    names = {_structures(item) for item in labelled}
    return len(names) == 1 and all(is_structure(name) for name in names)


def _same(name: str) -> str:
    """A name in the form in which names are compared."""
    return re.sub(r"[-_ ]+", " ", name).strip().lower()


def _common(paths: Sequence[Path]) -> Path:
    """The folder of several files."""
    first = paths[0].parent
    while any(first not in path.parents for path in paths):
        first = first.parent
    return first
