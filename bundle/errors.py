"""How a run ends that fails: one line on stderr that says what went wrong, and where a bug's traceback is."""

from __future__ import annotations

import dis
import hashlib
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

SHOW_TRACEBACK = "ALPNET_TRACEBACK"  # environment variable: 1 prints the traceback above the line
LOG = "error.log"
ROOT = Path(__file__).resolve().parent.parent
OWN = (ROOT / "bundle", ROOT / "scripts")  # not all of the folder: an environment may lie in it
ONE_RUN_S = 120.0  # processes of one run fail within this time of each other


def root_cause(error: BaseException) -> BaseException:
    """The exception at the bottom of a chain: what went wrong, without what wrapped it."""
    return list(_chain(error))[-1]


def told_cause(error: BaseException) -> BaseException:
    """The exception of a chain whose words are for the user: the first that this bundle raised, else the root cause."""
    return next((each for each in _chain(error) if is_refusal(each)), root_cause(error))


def is_refusal(error: BaseException) -> bool:
    """Whether this bundle's code raised an exception by a ``raise`` of its own, as it does about bad input."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not _is_own(last.tb_frame.f_code.co_filename):
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def explain(error: BaseException) -> str:
    """What went wrong, in one line."""
    cause = told_cause(error)
    text = str(cause).strip()
    if isinstance(cause, OSError) and cause.filename is not None and cause.strerror:
        text = f"{cause.filename}: {cause.strerror}"
    elif isinstance(cause, KeyError) and len(cause.args) == 1:
        text = str(cause.args[0])
    if "Traceback (most recent call last)" in text:  # MONAI's SaveImage and PyTorch's workers put one into the message
        text = re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    return " ".join(text.split()) or type(cause).__name__


def is_expected(error: BaseException) -> bool:
    """Whether the line alone tells a user what to do: input that was refused, a file, the memory; otherwise a bug."""
    cause = told_cause(error)
    carried = re.findall(r'File "([^"]+)", line', str(cause))  # of an exception that came from another process
    ours = bool(carried) and _is_own(carried[-1])
    return ours or is_refusal(cause) or isinstance(cause, (OSError, MemoryError))


def explain_errors(output_dir: str | os.PathLike | None = None) -> None:
    """End a failing program with one line on stderr: ``error: …`` and the status 1.

    MONAI's engines and configs wrap what a transform or a check raises, which hides the file and the remedy in the
    middle of a long trace. What is no mistake of the user's is told in one line as well; its traceback is written to
    ``output_dir/error.log``. With ``ALPNET_TRACEBACK=1`` in the environment every traceback is printed above the line.
    Of the processes of one run, the first that fails speaks. Called when a run starts.

    Args:
        output_dir: folder of the run's results, from which the same command goes on; ``None`` for a program that
            starts anew each time.
    """
    # DICOM is read by scripts.prepare alone: that a decoder is missing concerns no other run
    warnings.filterwarnings("ignore", message=".*NvImgCodecPydicomReader")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError) or not _speaks():  # who reads has enough, as `head` has
            return
        shows = os.environ.get(SHOW_TRACEBACK, "0") not in ("", "0")
        if shows:
            traceback.print_exception(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            line = "stopped" if output_dir is None else "stopped; the same command goes on where it was"
        elif shows or is_expected(error):
            line = f"error: {explain(error)}"
        else:
            line = f"error: {explain(error)} ({_describe(error)}; {_keep(error, output_dir)})"
        print(line, file=sys.stderr, flush=True)

    sys.excepthook = hook


def _is_own(file: str) -> bool:
    """Whether a file of code is this bundle's."""
    return not {*OWN}.isdisjoint(Path(file).parents)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from or during, and so on."""
    deeper: BaseException | None = error
    while deeper is not None:
        yield deeper
        deeper = deeper.__cause__ or (None if deeper.__suppress_context__ else deeper.__context__)


def _describe(error: BaseException) -> str:
    """Kind of an exception, and the component of the config that MONAI was making."""
    made = [match for each in _chain(error) for match in re.findall(r"instantiate component '([^']+)'", str(each))]
    return type(told_cause(error)).__name__ + (f" in {made[-1]}" if made else "")


def _keep(error: BaseException, output_dir: str | os.PathLike | None) -> str:
    """Write the traceback to the folder of the results, if there is one, and say where it is."""
    if output_dir is not None:
        path = Path(output_dir).resolve() / LOG
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [time.strftime("%Y-%m-%d %H:%M:%S"), shlex.join(sys.argv), *traceback.format_exception(error)]
            path.write_text("\n".join(lines), encoding="utf-8")
            return f"traceback in {path}"
        except OSError:
            pass  # the folder may be what is wrong
    return f"{SHOW_TRACEBACK}=1 shows the traceback"


def _speaks() -> bool:
    """Whether no other process of this run, which PyTorch's launcher started, has told its error."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return True
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    run = hashlib.sha1(str([os.getppid(), *(os.environ.get(name) for name in names)]).encode()).hexdigest()
    mark = Path(tempfile.gettempdir()) / f".alpnet_error_{run}"
    try:
        if mark.exists() and time.time() - mark.stat().st_mtime > ONE_RUN_S:
            mark.unlink()
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass  # rather twice than not at all
    return True
