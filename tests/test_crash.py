"""A few kills of each job; ``python -m tests.crash`` makes as many as one likes, of the benchmark too."""

from __future__ import annotations

import os

import pytest

from .crash import JOBS, crash


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the jobs are killed as process groups of POSIX")
@pytest.mark.parametrize("job", [name for name in JOBS if name != "benchmark"])
def test_killed_runs_end_as_if_nobody_had_killed_them(job, capsys):
    crash(kills=3, seed=os.getpid(), jobs=job)
    lines = capsys.readouterr().out.splitlines()
    assert sum(": kill " in line for line in lines) == 3
    assert any("equal checksums" in line for line in lines)
