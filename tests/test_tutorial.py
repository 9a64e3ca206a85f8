"""The notebook docs/tutorial.ipynb."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .conftest import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def cells():
    """Its cells; code as text."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_notebook_has_ten_cells_of_code_that_were_run_in_order():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, 11))
    pictures = [out for cell in code for out in cell["outputs"] if "image/png" in out.get("data", {})]
    assert len(pictures) == 4
    assert len({cell["id"] for cell in cells()}) == len(cells())
    assert "/tmp/" not in json.dumps([cell["source"] for cell in cells()])


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path):
    code = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    end = "print('SCORES', min(dice.values()), len(curves), sorted(measured))"
    environment = {**os.environ, "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path)}
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join([*code, end]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=NOTEBOOK.parent, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    _, lowest, num_curves, *_ = done.stdout.splitlines()[-1].split(" ", 3)
    assert float(lowest) > 75
    assert int(num_curves) > 0
