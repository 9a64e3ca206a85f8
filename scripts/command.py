"""A command line made with Fire that refuses what it does not know before any work, in one line."""

from __future__ import annotations

import functools
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import fire

from bundle.errors import explain_errors

TEXT = re.compile(r"str( \| (None|Path|os\.PathLike))*")  # annotations of arguments that are no literals of Python


class _Call:
    """A function with its arguments, which Fire cannot look into."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function


def command(
    component: Callable | Mapping[str, Any],
    name: str,
    arguments: Sequence[str] | None = None,
    finish: Callable[[Any], Any] | None = None,
) -> None:
    """Run one function, or one of several by its name, and print what it returns.

    Fire calls a function first and looks at what is left of the command line afterwards. Here the function runs when
    the whole line is known to be right. Whatever goes wrong ends in one line on stderr, see :func:`explain_errors`.

    Args:
        component: the function, or functions by name. Docstrings are the help.
        name: what the user typed before the arguments, as in ``scripts.check``.
        arguments: the command line; by default that of this program.
        finish: turns what the function returns into what is printed.
    """
    explain_errors()
    typed = list(sys.argv[1:] if arguments is None else arguments)
    wants_help = bool({"-h", "--help"} & set(typed))
    if isinstance(component, Mapping):
        deferred: Any = {key: _defer(function, wants_help) for key, function in component.items()}
        if not typed or typed[0] not in (*component, "--help", "-h", "--"):
            _refuse(f"{typed[0]}: no such command" if typed else "no command", name, ", ".join(component))
    else:
        deferred = _defer(component, wants_help)
    if wants_help:  # which a function that takes any option would take for one
        typed = [word for word in typed[:1] if isinstance(component, Mapping) and word in component] + ["--", "--help"]
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            call = fire.Fire(deferred, command=typed, name=name, serialize=lambda _: None)
    except fire.core.FireExit as stop:
        call = None
        failed = bool(stop.code)
    text = said.getvalue().strip().replace(f"'{name}'", name)  # Fire quotes a name of two words
    if call is None and failed:
        errors = [line for line in text.splitlines() if line.startswith("ERROR: ")]
        _refuse(errors[0][len("ERROR: ") :] if errors else "wrong usage", name)
    if call is None:
        print(text.partition("\n\n")[2] if text.startswith("INFO: ") else text)
        return
    result = call._function()
    result = finish(result) if finish is not None else result
    if result is not None:
        print(result)


def _defer(function: Callable, for_help: bool) -> Callable:
    """The same function to Fire, which only remembers its arguments.

    Arguments that are annotated as text stay as they are typed: Fire would take the folder ``2024_05`` for a number and
    leave out what follows a ``#``. Its help would list what says so.
    """

    @functools.wraps(function)
    def remember(*args: Any, **kwargs: Any) -> _Call:
        return _Call(functools.partial(function, *args, **kwargs))

    if for_help:
        return remember
    texts = [name for name, kind in function.__annotations__.items() if TEXT.fullmatch(str(kind)) and name != "return"]
    return fire.decorators.SetParseFns(**{name: _text for name in texts})(remember)


def _text(word: str) -> str | None:
    """A word as it was typed, but for what stands for nothing."""
    return None if word == "None" else word


def _refuse(what: str, name: str, there: str = "") -> None:
    """End with one line and the status of wrong usage."""
    program = name if name.startswith("alpnet") else f"python -m {name}"
    print(f"error: {what}; {f'there are {there}; ' if there else ''}see {program} --help", file=sys.stderr)
    sys.exit(2)
