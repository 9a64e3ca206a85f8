"""Ids of a config, as MONAI counts them: ``train#trainer#max_epochs``; without MONAI, so that help comes at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

SEP = "#"
MEANINGS = "_meanings_"  # id of a config: what each of its ids means, alone or as [meaning, example]


def _children(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Mapping):
        yield from ((str(key), value) for key, value in item.items())
    elif isinstance(item, (list, tuple)):
        yield from ((str(index), value) for index, value in enumerate(item))


def walk(item: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """An item and all inside it, with their ids."""
    yield path, item
    for key, value in _children(item):
        yield from walk(value, f"{path}{SEP}{key}" if path else key)


def strings(item: Any) -> Iterator[tuple[str, str]]:
    """Every text in an item, with its id."""
    return ((path, value) for path, value in walk(item) if isinstance(value, str))


def optional_parts(config: Any) -> set[str]:
    """Ids of parts that may be missing, which ``False`` switches off: a config reads them as ``@id or None``."""
    found = (re.fullmatch(r"\$@([\w#:]+) or None", value) for _, value in strings(config))
    return {match[1].replace("::", SEP) for match in found if match}


def switches(config: Any) -> set[str]:
    """All ids that ``False`` switches off: the optional parts, and what a config reads as ``not @id``."""
    found = {name for _, value in strings(config) for name in re.findall(r"not @([\w#:]+)", value)}
    return optional_parts(config) | {name.replace("::", SEP) for name in found}


def suggest(name: str, known: Iterable[str]) -> str:
    """The most similar of the known names as a question, or an empty text."""
    lower = {str(other).lower(): str(other) for other in known}
    found = get_close_matches(str(name).lower(), list(lower), n=1, cutoff=0.6)
    return f"; did you mean {lower[found[0]]}?" if found else ""
