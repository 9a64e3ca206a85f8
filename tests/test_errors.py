"""How a failing run ends: one line on stderr, and a bug's traceback where the line says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from .conftest import ROOT

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import bundle.checks, numpy as np
from bundle.errors import explain_errors
explain_errors({folder})
def wrap(fail):
    try:
        fail()
    except Exception as error:
        raise RuntimeError("applying transform <many words>") from error
def refuse():
    bundle.checks.check_label_values([1, 2.5], "a.nii.gz")
{body}
"""


def run(body, folder=None, **environment):
    """A program that fails."""
    program = PROGRAM.format(root=str(ROOT), folder="" if folder is None else repr(str(folder)), body=body)
    settings = {**os.environ, "ALPNET_TRACEBACK": "", "WORLD_SIZE": "1", **environment}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=settings)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("wrap(refuse)", r"error: a.nii.gz: label values must be whole numbers .*"),
        ("try: refuse()\nexcept ValueError: raise OSError(28, 'No space left', 'x.npy')", "error: a.nii.gz: label .*"),
        ("open('/no/such/file')", "error: /no/such/file: No such file or directory"),
        ("wrap(lambda: open('/no/such/file'))", "error: /no/such/file: No such file or directory"),
        ("raise MemoryError('of 12 GB')", "error: of 12 GB"),
        ("raise KeyboardInterrupt", "stopped; the same command goes on where it was"),
    ],
    ids=["refused", "refused before another error", "file", "wrapped file", "memory", "stopped"],
)
def test_one_line_is_all_that_a_user_sees(tmp_path, body, line):
    done = run(body, tmp_path)
    assert done.returncode != 0
    assert re.fullmatch(line, done.stderr.rstrip("\n")), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_installed_into_the_folder_of_the_bundle_is_not_its_own_code(tmp_path):
    library = "exec(compile('def call(fail):\\n try: fail()\\n except Exception as e: raise RuntimeError(1) from e', "
    library += f"{str(ROOT / '.venv/lib/monai/config.py')!r}, 'exec'))"
    done = run(f"{library}\ncall(lambda: wrap(refuse))", tmp_path)
    assert re.fullmatch(r"error: a.nii.gz: label values must be whole numbers .*\n", done.stderr), done.stderr


@pytest.mark.parametrize("body", ["1 / 0", "wrap(lambda: {}['x'])", "np.zeros(3)[7]", "import nowhere"])
def test_a_bug_is_one_line_as_well_and_its_traceback_is_kept(tmp_path, body):
    done = run(body, tmp_path / "new")
    assert done.returncode == 1
    log = tmp_path / "new" / "error.log"
    assert re.fullmatch(rf"error: .+ \(\w+Error; traceback in {log}\)\n", done.stderr), done.stderr
    assert "Traceback (most recent call last)" in log.read_text()
    done = run(body)
    assert re.fullmatch(r"error: .+ \(\w+Error; ALPNET_TRACEBACK=1 shows the traceback\)\n", done.stderr), done.stderr


@pytest.mark.parametrize("body", ["wrap(refuse)", "1 / 0"])
def test_who_wants_the_traceback_gets_it_above_the_line(tmp_path, body):
    done = run(body, tmp_path, ALPNET_TRACEBACK="1")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Traceback (most recent call last)")
    assert lines[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_one_speaks(tmp_path):
    place = {"WORLD_SIZE": "2", "MASTER_PORT": str(time.monotonic_ns()), "TMPDIR": str(tmp_path)}
    told = [run("wrap(refuse)", RANK=rank, **place).stderr for rank in "01"]
    assert [len(text.splitlines()) for text in told] == [1, 0]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_stopped_program_says_so_and_ends_by_the_signal():
    program = PROGRAM.format(root=str(ROOT), folder="", body="print('ready', flush=True)\nimport time; time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "stopped\n"
    assert process.returncode == -signal.SIGINT
