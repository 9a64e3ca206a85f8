"""The command that follows, as a message tells it: of ``alpnet`` where it was typed, else of the bundle's folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

COMMAND = "alpnet"
CONFIGS = {"segment": "inference", "train": "train"}
OPTIONS = {"ckpt_path": "--weights", "output_dir": "-o"}  # ids that the console command calls otherwise


def is_command() -> bool:
    """Whether this program was started as ``alpnet``."""
    program = Path(sys.argv[0])
    return program.stem == COMMAND and program.suffix in ("", ".exe")


def next_command(script: str, *arguments: str) -> str:
    """A command of this bundle as the user would type it now: of the console command, or of its script."""
    program = [COMMAND, script] if is_command() else ["python", "-m", f"scripts.{script}"]
    return shlex.join([*program, *arguments])


def run_command(verb: str, dataset_dir: str, **ids: str) -> str:
    """A run of a config as the user would type it now: by the console command, or by MONAI's.

    Args:
        verb: segment or train.
        dataset_dir: folder of the data set.
        **ids: further ids of the config.
    """
    if is_command():
        given = [part for key, value in ids.items() for part in (OPTIONS.get(key, f"--{key}"), value)]
        return next_command(verb, dataset_dir, *given)
    given = [part for key, value in {"dataset_dir": dataset_dir, **ids}.items() for part in (f"--{key}", value)]
    config = f"configs/{CONFIGS[verb]}.json"
    return shlex.join(["python", "-m", "monai.bundle", "run", "--config_file", config, *given])
