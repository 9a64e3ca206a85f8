"""One numbering of structures for labels whose files say what they show: masks by their names, Slicer's segments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..label_table import names_beside
from .formats import Segment, natural_key
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
        own: list[tuple[str, LabelPart]] = []
        for path, structure, look in item.labels:
            segments = look.segments or _named_values(path, look)
            if segments:
                own += [
                    (segment.name or f"segment {segment.value}", LabelPart(path, 0, segment.value, segment.layer))
                    for segment in segments
                ]
                odd = sorted(set(look.values) - {segment.value for segment in segments})
                if odd:
                    notes.append(f"{path.name}: the label values {odd[:5]} belong to no segment and are left out")
            elif masks and is_structure(structure) and len(look.values) <= 1:
                if look.values or len(item.labels) == 1:  # an empty mask among many: the structure is not in the scan
                    own.append((structure, LabelPart(path, 0)))
            else:
                unnamed |= set(look.values)
        parts.append(own)
    titles = dict(given or {}) or ({} if unnamed else _own_values(parts))
    values = {_same(name): value for value, name in titles.items()}
    free = (value for value in range(1, 2**15) if value not in unnamed and value not in titles)
    for name in sorted({title for own in parts for title, _ in own}, key=natural_key):
        if _same(name) not in values:
            values[_same(name)] = next(free)
            titles[values[_same(name)]] = name
    wanted = any(parts)
    if wanted and not given:
        titles.update({value: f"label {value}" for value in unnamed})
    cases = []
    for item, own in zip(labelled, parts):
        paths = [path for path, _, _ in item.labels]
        label = paths[0] if len(paths) == 1 else _common(paths) if own else None
        numbered = tuple(replace(part, target=values[_same(name)]) for name, part in own)
        cases.append(replace(item.case, label=label, parts=numbered))
    if unnamed and wanted:
        plain = [item.case.name for item, own in zip(labelled, parts) if not own]
        notes.append(
            f"labels of {', '.join(plain[:3])} keep their values, the other cases are numbered by the names of their "
            "structures; give all of them names if they show the same"
        )
    if not wanted and len({names for names in map(_structures, labelled) if names}) > 1:
        notes.append("labels have different words in their names; their values are taken as they are")
    return cases, titles


def _named_values(path: Path, look: Look) -> tuple[Segment, ...]:
    """The values of a label map that has a table of names, those without a name too."""
    names = names_beside(path) if look.values else {}
    if not any(value in names for value in look.values):
        return ()
    return tuple(Segment(names.get(value, f"label {value}"), value) for value in look.values)


def _own_values(parts: Sequence[Sequence[tuple[str, LabelPart]]]) -> dict[int, str]:
    """The names of the files' own values, if all files agree on them; else nothing."""
    pairs = {(_same(name), part.value): name for own in parts for name, part in own if part.value}
    names, values = {name for name, _ in pairs}, {value for _, value in pairs}
    agree = len(pairs) == len(names) == len(values)
    return {int(value or 0): title for (_, value), title in pairs.items()} if agree else {}


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
