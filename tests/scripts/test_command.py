"""Words of a command line that stay as they are typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.command import command


def take(
    folder: str, other: str | None = None, path: str | Path = "p", count: int = 1, labels: Sequence[str] = ()
) -> list:
    """Give back what it was called with."""
    return [folder, other, path, count, list(labels)]


@pytest.mark.parametrize("name", ["2024_05", "c #1", "(1,2)", "1e3", "{a}", "None.nii.gz", "[x]", "True", "d: {b}"])
def test_paths_stay_as_they_are_typed(name, capsys):
    for typed in ([name, name, name], [f"--folder={name}", "--other", name, f"--path={name}"]):
        command(take, "scripts.take", typed)
        assert capsys.readouterr().out.strip() == str([name, name, name, 1, []])


def test_other_arguments_are_literals(capsys):
    command({"take": take}, "scripts.take", ["take", "1", "None", "--count", "2", "--labels", "['a',3]"])
    assert capsys.readouterr().out.strip() == str(["1", None, "p", 2, ["a", 3]])


def test_the_help_tells_the_arguments_alone(capsys):
    command(take, "scripts.take", ["--help"])
    told = capsys.readouterr().out
    assert "FOLDER" in told
    assert "FIRE" not in told
