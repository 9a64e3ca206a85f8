"""The environment of MONAI Label, which tests of the server and of MLflow share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT


@pytest.fixture(scope="session")
def python() -> Path:
    """Python of MONAI Label's environment, built on the first call."""
    built = subprocess.run(
        [str(ROOT / "scripts" / "monailabel_env.sh")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    if built.returncode != 0:
        pytest.skip(f"MONAI Label's environment cannot be built: {built.stderr.strip().splitlines()[-1:]}")
    return Path(built.stdout.strip().splitlines()[-1])
