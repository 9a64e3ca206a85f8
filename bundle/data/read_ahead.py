"""Scans that are read while the one before is segmented."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader


class ReadAheadLoader(DataLoader):
    """A data loader that prepares the next batch in a thread while the current one is used.

    One batch more is in memory, whatever their number. What goes wrong with a batch is raised when it is asked for;
    :class:`monai.data.ThreadDataLoader` ends early without a word instead.
    """

    def __iter__(self) -> Iterator[Any]:
        """Batches in order."""
        end = object()
        batches = super().__iter__()
        with ThreadPoolExecutor(1, thread_name_prefix="read_ahead") as pool:
            ahead = pool.submit(next, batches, end)
            while (batch := ahead.result()) is not end:
                ahead = pool.submit(next, batches, end)
                yield batch
