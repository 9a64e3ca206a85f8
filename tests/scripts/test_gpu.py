"""A dry run on the CPU of what measures on a GPU, with tiny sizes."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from scripts import gpu
from scripts.gpu import PARTS, Place, pack, run

from ..conftest import ROOT, TINY_NETWORK, save_nifti

SMALL = {
    "image_size": [64, 64],
    "superpixel#parameters": [{"scale": 1, "sigma": 1, "min_size": 40}],
    "superpixel#min_area_px": 16,
    "network_def#encoder": {**TINY_NETWORK["encoder"], "freeze_norm": True},
    "network_def#foreground_gate": "matched",
    "pretrained": False,
    "precision": "float32",
}


@pytest.fixture
def settings(phantom_dir, tiny_weights, tmp_path):
    """Where and with what a dry run measures: a data set of which every image is labelled."""
    shutil.copytree(phantom_dir, tmp_path / "data", ignore=shutil.ignore_patterns("imagesTs"))
    sizes = {"batch_size": 2, "steps": 1, "rounds": 1, "slices": 40, "labels": 6, "num_folds": 2}
    place = {"dataset_dir": str(tmp_path / "data"), "work_dir": str(tmp_path / "work"), "weights": str(tiny_weights)}
    (tmp_path / "work").mkdir()
    return {**place, **sizes, "device": "cpu", "overrides": SMALL}


def rows(name, settings):
    return list(PARTS[name][0](Place(**settings)))


@pytest.mark.slow
def test_label_maps_of_two_devices_are_compared(settings):
    found = rows("agreement", settings)
    like = ["on the CPU, float32", "on the CPU, bfloat16", "in float32 by bfloat16"]
    assert [row.what for row in found] == [f"voxels labelled as {how}" for how in like]
    assert [row.fast for row in found[:2]] == [100, 100]  # it is the same device
    assert 99 < found[2].fast < 100


@pytest.mark.slow
def test_a_long_scan_is_measured_beside_the_literal_loop(settings):
    found = rows("inference", settings)
    assert found[0].what == "inference, one scan, what both sides do"
    (long,) = (row for row in found if row.what.startswith("inference, 40 slices, "))
    assert long.fast > 0
    assert long.literal > 0


@pytest.mark.slow
def test_training_is_measured_with_what_is_to_make_it_faster(settings):
    found = [row.what for row in rows("graphs", settings)]
    assert "training, EfficientNet-Lite0, one-way episodes, float32, cuda_graphs" in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folds", "processes"])
def test_trainings_by_the_users_commands(settings, name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings["overrides"] = {**SMALL, "max_epochs": 1, "epoch_length": 4, "val_length": 2, "overlays": False}
    found = rows(name, settings)
    assert all(row.fast >= 0 for row in found)
    assert len(found) == {"folds": 3, "processes": 1}[name]


WORKER = """
import json, sys, time
def event(**what): print(json.dumps(what), flush=True)
def row(what): event(row=dict(what=what, fast=1.0, literal=None, unit="s", note=""))
names, place = (eval(argument) for argument in sys.argv[2:])
for name in names:
    event(begin=name)
    row(name + " once")
    if name in place["fails"]:
        sys.exit("no GPU | at all")
    if name in place["hangs"]:
        time.sleep(60)
    row(name + " again")
    event(done=name)
"""


def test_a_part_that_fails_or_hangs_keeps_its_rows_and_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(gpu, "COMMAND", (sys.executable, str(tmp_path / "worker.py")))
    monkeypatch.setitem(PARTS, "training", (PARTS["training"][0], 1))
    names = ["agreement", "training", "tests"]
    arguments = {"parts": names, "work_dir": str(tmp_path / "work"), "device": "cpu"}
    table = run(str(tmp_path / "out"), str(tmp_path), fails=["agreement"], hangs=["training"], **arguments)
    assert (tmp_path / "out" / "gpu.md").read_text() == table + "\n"
    assert "| agreement once | 1 s |" in table
    assert "agreement again" not in table
    assert "| agreement, the rest | not measured | | | no GPU / at all |" in table
    assert "| training once | 1 s |" in table
    assert "| training, the rest | not measured | | | not finished in 1 s |" in table
    assert "| tests again | 1 s |" in table
    (tmp_path / "worker.py").write_text(WORKER.replace("names:", "names:\n    assert name != 'tests'"))
    table = run(str(tmp_path / "out"), str(tmp_path), fails=[], hangs=[], **arguments)
    assert "not measured" not in table
    assert all(f"| {name} again | 1 s |" in table for name in names)
    with pytest.raises(ValueError, match=r"parts must be among .*, got \['speed'\]"):
        run(str(tmp_path / "out"), str(tmp_path), parts=["speed"])


def test_without_time_nothing_is_measured(tmp_path):
    table = run(str(tmp_path / "out"), str(tmp_path), work_dir=str(tmp_path / "work"), device="cpu", limit_s=1)
    assert table.count("| not measured | | | no time was left |") == len(PARTS)


def test_all_parts_together_end_in_eight_minutes_and_the_next_call_goes_on(tmp_path, monkeypatch):
    assert inspect.signature(run).parameters["limit_s"].default <= 480
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(gpu, "COMMAND", (sys.executable, str(tmp_path / "worker.py")))
    arguments = {"parts": ["training", "tests"], "work_dir": str(tmp_path / "work"), "device": "cpu", "fails": []}
    started = time.monotonic()
    table = run(str(tmp_path / "out"), str(tmp_path), limit_s=8, hangs=["training"], **arguments)
    assert time.monotonic() - started < 12
    assert "| training once | 1 s |" in table
    assert "| tests, all | not measured | | | no time was left |" in table
    table = run(str(tmp_path / "out"), str(tmp_path), hangs=[], **arguments)
    assert "not measured" not in table


@pytest.mark.slow
def test_the_script_goes_to_its_end_and_a_part_without_time_is_stopped(settings, tmp_path):
    options = {key: settings[key] for key in ("device", "weights", "overrides", "num_folds")}
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "DATA": settings["dataset_dir"], "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    command = [str(ROOT / "scripts" / "gpu.sh"), str(tmp_path / "out"), "--parts", "['tests','folds']", *arguments]
    done = subprocess.run([*command, "--limit_s", "60"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert " skipped" in found["tests"]["rows"][0]["note"]
    assert "not finished in" in found["folds"]["problem"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.md", "log.txt", "results.json"]


def script(*arguments):
    """``gpu.sh`` without a Python."""
    environment = {**os.environ, "PYTHON": "/no/python"}
    line = [str(ROOT / "scripts" / "gpu.sh"), *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["out", "--help"]], ids=" ".join)
def test_the_script_tells_its_options(arguments, tmp_path):
    done = script(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: ./scripts/gpu.sh OUT [options]" in done.stdout
    options = {*inspect.signature(run).parameters, *inspect.signature(Place).parameters}
    for name in options - {"output_dir", "dataset_dir", "work_dir", "settings"}:
        assert f"\n  --{name} " in done.stdout, name
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [([], "no folder for the results"), (["--parts", "x"], "--parts: the folder for the results comes first")],
)
def test_the_script_wants_a_folder(arguments, line):
    done = script(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_the_log_says_where_a_part_failed(tmp_path):
    (tmp_path / "out").mkdir()
    table = run(str(tmp_path / "out"), str(tmp_path), ["inference"], str(tmp_path / "work"), device="cpu", weights=None)
    assert "| inference, all | not measured | | | error: " in table
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()


def test_a_data_set_is_packed_as_it_is(tmp_path):
    values = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.float32)
    save_nifti(tmp_path / "data" / "imagesTr" / "a.nii.gz", values, np.diag([2.0, 2.0, 3.0, 1.0]))
    (tmp_path / "data" / "dataset.json").write_text('{"training": [{"image": "./imagesTr/a.nii.gz"}]}')
    assert "MiB" in pack(str(tmp_path / "data"), str(tmp_path / "packed"), wheels=False)
    subprocess.run(["tar", "-xJf", "data.tar.xz"], cwd=tmp_path / "packed", check=True)
    found = nib.load(tmp_path / "packed" / "data" / "imagesTr" / "a.nii")
    assert np.array_equal(np.asarray(found.dataobj), values)
    assert found.get_data_dtype() == np.int16
    assert np.array_equal(found.affine, np.diag([2.0, 2.0, 3.0, 1.0]))
    assert "a.nii.gz" not in (tmp_path / "packed" / "data" / "dataset.json").read_text()
    save_nifti(tmp_path / "data" / "imagesTr" / "b.nii.gz", values + 0.5)
    with pytest.raises(ValueError, match="b.nii.gz: values must be whole numbers of 16 bits to be packed"):
        pack(str(tmp_path / "data"), str(tmp_path / "packed"), wheels=False)


def test_a_place_names_the_ids_of_every_training():
    place = Place("data", "work", overrides={"max_epochs": 1, "overlays": False})
    assert place.common == {"dataset_dir": "data", "cache_dir": "work/cache", "device": "cuda:0", "max_epochs": 1}
