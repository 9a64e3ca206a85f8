"""Files that appear as a whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial."  # how the name of a file begins that is still being written
STALE_S = 86400.0  # age of a partial file whose writer is gone, even if clocks differ or a machine slept meanwhile


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, which takes its place in one step when the block ends.

    Whoever reads sees the old file or the whole new one, whatever ends the writer, a kill included. Several threads,
    processes and machines may write the same file; the last one stays. What a killed writer left is hidden, has
    another name than any result, and goes with a later write to the same folder.

    Args:
        path: the file; its folder is made. The temporary name keeps its suffix.

    Raises:
        OSError: naming the file and the remedy, if it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f"{PARTIAL}{secrets.token_hex(8)}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        yield temporary
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"{target}: cannot be written ({reason}); free some space or choose another folder") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself is out of reach, which was just said


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in one step, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write a JSON file in one step; values that JSON does not know are written as text."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def _remove_stale(folder: Path) -> None:
    """Remove what killed writers left long ago."""
    for item in folder.iterdir():
        if item.name.startswith(PARTIAL):
            try:
                if time.time() - item.stat().st_mtime > STALE_S:
                    item.unlink()
            except OSError:
                continue  # another process was faster
