"""What a command line user sees when a run fails."""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType


def root_cause(error: BaseException) -> BaseException:
    """The exception at the bottom of a chain: what went wrong, without what wrapped it."""
    while True:
        deeper = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if deeper is None:
            return error
        error = deeper


def explain(error: BaseException) -> str:
    """What went wrong, in one line."""
    cause = root_cause(error)
    text = str(cause).strip() or type(cause).__name__
    if "Traceback (most recent call last)" in text:  # MONAI's SaveImage puts what its writers raised into its message
        text = re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    return " ".join(text.split())


def explain_errors() -> None:
    """End a failing program with one line that says what went wrong, below the traceback.

    MONAI's engines and configs wrap what a transform or a check raises, which hides the file and the remedy in the
    middle of a long trace. Called by the configs when a run starts; nothing else is changed.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        print(f"error: {explain(error)}", file=sys.stderr, flush=True)

    sys.excepthook = hook
