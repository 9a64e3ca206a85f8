"""The published evaluation protocols: folds of patients, support slices, chunks of query slices.

Every rule here is arithmetic on indices. Ground truth of a query enters through :func:`query_chunks` alone, which the
protocols ``official``, ``adnet_ep1`` and ``adnet_ep2`` prescribe; the protocol ``volume`` uses none of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..keys import LABEL
from .datalist import check_dataset, make_datalist
from .support import choose_pseudo_supports

Case = TypeVar("Case")


@dataclass(frozen=True)
class Protocol:
    """How a query's slices meet support slices.

    Attributes:
        name: the protocol's name.
        num_chunks: number of support slices of a scan, and of chunks of a query; 0 if the method itself has to find
            the organ in the whole volume.
        support_index: which scan of a fold's validation set is the support, counted as in Python.
    """

    name: str
    num_chunks: int
    support_index: int


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("official", 3, -1),
        Protocol("adnet_ep1", 3, 2),
        Protocol("adnet_ep2", 1, 2),
        Protocol("volume", 0, -1),
    )
}


def get_protocol(name: str) -> Protocol:
    """Look a protocol up by its name.

    Raises:
        ValueError: naming the protocols there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def fold_cases(cases: Sequence[Case], fold: int, num_folds: int = 5) -> tuple[list[Case], list[Case]]:
    """Training and validation cases of a fold, as the official code splits them.

    Cases are in order of their number. Fold ``f`` starts at ``f * (n // num_folds)``; its validation set runs to the
    next fold's first case, which belongs to it (after the last fold, to case 0), and all others train.

    Returns:
        ``(training, validation)``.

    Raises:
        ValueError: for a fold that does not exist, or fewer cases than folds.
    """
    count = len(cases)
    if not 0 <= fold < num_folds or count < 2 * num_folds:
        raise ValueError(
            f"fold must be in 0..{num_folds - 1} with at least {2 * num_folds} cases, got {fold} of {count}"
        )
    step = count // num_folds
    end = (fold + 1) * step if fold + 1 < num_folds else count
    chosen = [index % count for index in range(fold * step, end + 1)]
    return [c for i, c in enumerate(cases) if i not in chosen], [cases[i] for i in chosen]


def support_slices(slices: Sequence[int], num_chunks: int = 3) -> list[int]:
    """Support slices among those that show an organ, evenly spread: for 3 chunks at 1/6, 1/2 and 5/6.

    In the float arithmetic of the official code, which decides where the products fall on whole numbers.
    """
    half = 1 / (num_chunks * 2)
    interval = (1 - 1 / num_chunks) / (num_chunks - 1) if num_chunks > 1 else 0.0
    return [slices[int((half + interval * k) * len(slices))] for k in range(num_chunks)]


def query_chunks(labelled: np.ndarray, num_chunks: int = 3) -> np.ndarray:
    """Chunk of each slice of a query for one organ: ``0 … num_chunks - 1`` within its extent, -1 outside.

    Args:
        labelled: ``(D,)`` boolean, the slices that show the organ.
        num_chunks: number of chunks.
    """
    chunks = np.full(len(labelled), -1, dtype=np.int64)
    shown = np.flatnonzero(labelled)
    if len(shown) == 0:
        return chunks
    first, last = int(shown[0]), int(shown[-1])
    width = (last - first) / num_chunks
    for z in range(first, last + 1):
        chunks[z] = min(int((z - first) // width), num_chunks - 1) if width > 0 else 0
    return chunks


def evaluation_split(
    dataset_dir: str | os.PathLike, protocol: str, fold: int, num_folds: int = 5, support_index: int | None = None
) -> dict[str, list[dict]]:
    """Training, support and query scans of a fold of a data set.

    Args:
        dataset_dir: folder of the data set, every image labelled.
        protocol: name of the protocol.
        fold: fold, from 0.
        num_folds: number of folds.
        support_index: which scan of the validation set is the support; ``None`` for the protocol's own.

    Returns:
        ``{"train": …, "support": …, "queries": …}``, each a list of ``{"image", "label"}``.

    Raises:
        ValueError: if the protocol, fold or support does not exist or there are too few labelled scans.
    """
    rule = get_protocol(protocol)
    check_dataset(dataset_dir)
    entries = [entry for entry in make_datalist(dataset_dir) if LABEL in entry]
    if 0 <= fold < num_folds and len(entries) < 2 * num_folds:
        raise ValueError(
            f"{dataset_dir}: {num_folds} folds need {2 * num_folds} scans with a label in labelsTr, there are "
            f"{len(entries)}; set folds"
        )
    training, validation = fold_cases(range(len(entries)), fold, num_folds)
    index = rule.support_index if support_index is None or support_index is False else support_index
    if not -len(validation) <= index < len(validation):
        raise ValueError(f"support_index must be in 0..{len(validation) - 1}, got {index}")
    support = validation[index]
    return {
        "train": [entries[i] for i in training],
        "support": [entries[support]],
        "queries": [entries[i] for i in validation if i != support],
    }


def training_pseudo_supports(
    dataset_dir: str | os.PathLike, protocol: str, fold: int, num_folds: int, count: int
) -> list[dict[str, str]]:
    """Evenly spread training scans of a fold, without their labels, as pseudo_supports; none for a ``count`` of 0.

    Args:
        dataset_dir: see :func:`evaluation_split`, as for the others.
        protocol: name of the protocol.
        fold: fold, from 0.
        num_folds: number of folds.
        count: how many, see :func:`choose_pseudo_supports`.
    """
    return (
        choose_pseudo_supports(evaluation_split(dataset_dir, protocol, fold, num_folds)["train"], count)
        if count
        else []
    )
