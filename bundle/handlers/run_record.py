"""What ran: command, settings and versions beside the results."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from .. import __version__
from ..atomic import write_json
from ..commands import COMMAND, is_command
from ..identity import installed_versions

PACKAGES = ("torch", "monai", "numpy", "scikit-image", "nibabel", "pytorch-ignite")


def versions() -> dict[str, str]:
    """Versions of Python, of this bundle and of what it runs on."""
    return {"bundle": __version__, "python": platform.python_version(), **installed_versions(PACKAGES)}


def quote(argument: str) -> str:
    """An argument for a shell, in double quotes where it has single ones."""
    if "'" in argument and not set('"$`\\!') & set(argument):
        return f'"{argument}"'
    plain = argument.replace("#", "") if argument.startswith("--") else argument  # # is plain inside a word
    return argument if shlex.quote(plain) == plain else shlex.quote(argument)


def command_line() -> str:
    """The command that started this program, quoted for a shell."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    arguments = sys.argv[1:]
    if is_command():
        return " ".join(map(quote, [COMMAND, *arguments]))
    if spec is not None and spec.name:
        module = spec.name[: -len(".__main__")] if spec.name.endswith(".__main__") else spec.name
        return " ".join(map(quote, ["python", "-m", module, *arguments]))
    return " ".join(map(quote, ["python", *sys.argv]))


class RunRecord:
    """Writes ``output_dir/run.json`` when an engine starts and again when it ends: command, settings, versions, time.

    Args:
        output_dir: folder of the results.
        settings: what to keep of the configuration; values that JSON does not know are written as text.
        filename: name of the file.
    """

    def __init__(
        self, output_dir: str | os.PathLike, settings: Mapping[str, Any] | None = None, filename: str = "run.json"
    ) -> None:
        self.path = Path(output_dir) / filename
        self.settings = dict(settings or {})
        self._started = 0.0
        self._record: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Write what is known at the start."""
        self._started = time.monotonic()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
        self._record = {
            "command": command_line(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": device,
            "versions": versions(),
            "settings": self.settings,
        }
        self._write(engine)

    def finish(self, engine: Engine) -> None:
        """Add the time that the run took."""
        self._record["seconds"] = round(time.monotonic() - self._started, 1)
        self._write(engine)

    def _write(self, engine: Engine) -> None:
        if getattr(engine.state, "rank", 0) == 0:
            write_json(self.path, self._record)
