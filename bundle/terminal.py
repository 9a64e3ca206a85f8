"""What a run shows a person: how far it is, and tables."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from monai.utils import optional_import

tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
logging_redirect_tqdm, has_redirect = optional_import("tqdm.contrib.logging", name="logging_redirect_tqdm")

Item = TypeVar("Item")
TABLE = "bundle.table"  # the logger of what ends a run; configs/logging.conf prints it without a time before each line
LINE_S = 10.0  # without a terminal: so many seconds from one line of progress to the next
logger = logging.getLogger(__name__)
table_logger = logging.getLogger(TABLE)


def has_bars() -> bool:
    """Whether stderr is a terminal, where a bar can be drawn over itself; a file or a pipe gets lines alone."""
    return bool(has_tqdm) and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def bar(total: int, what: str, unit: str) -> Iterator[Any]:
    """A progress bar on a terminal, which lines of the log do not break; elsewhere one that shows nothing.

    Args:
        total: how many steps there are.
        what: what is done.
        unit: what one step is.
    """
    with ExitStack() as stack:
        if has_bars():
            loggers = [each for each in (logging.getLogger(), table_logger) if each.handlers]
            stack.enter_context(logging_redirect_tqdm(loggers))
        yield stack.enter_context(
            tqdm(total=total, desc=what, unit=unit, leave=False, disable=not has_bars(), file=sys.stderr)
        )


def progress(items: Iterable[Item], total: int, what: str, unit: str = "scan") -> Iterator[Item]:
    """Pass items on and show how many came: a bar on a terminal, elsewhere a line in the log now and then.

    Args:
        items: what is waited for, in order.
        total: how many there are.
        what: what is done, as in "superpixels".
        unit: what one item is.
    """
    start = told = time.monotonic()
    count = 0
    with bar(total, what, unit) as shown:
        for item in items:
            count += 1
            shown.update()
            now = time.monotonic()
            if not has_bars() and count < total and now - told > LINE_S:
                told = now
                logger.info("%s: %d of %d %ss in %.0f s", what, count, total, unit, now - start)
            yield item
    if time.monotonic() - start > LINE_S:
        logger.info("%s: all %d %ss in %.0f s", what, total, unit, time.monotonic() - start)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
