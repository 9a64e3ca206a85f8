from __future__ import annotations

import json
import os
from copy import deepcopy

import pytest
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from bundle.handlers.finished import RECORD, FinishedCases
from bundle.identity import describe

from ..conftest import ROOT, TINY_NETWORK

IDS = json.loads((ROOT / "configs/inference.json").read_text())
# where results lie and how fast they come; what is checked by the content of files; names of other configs' parts
WITHOUT_EFFECT = {
    "bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "ckpt_path", "num_workers", "keep_memory_mb", "strict",
    "resume", "table", "key_metric", "device", "network", "label_names", "support", "datalist", "checkpointloader",
    "closing", "confidence_temperature",  # without a map of the confidence
}  # fmt: skip


def settings(**overrides):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.json"))
    for key, value in {
        "device": "cpu",
        "network_def": {**deepcopy(TINY_NETWORK), "precision": "@precision"},
        **overrides,
    }.items():
        parser[key] = value
    return json.dumps(describe(parser.get_parsed_content("finished").settings), sort_keys=True)


@pytest.fixture(scope="module")
def usual():
    return settings()


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value / 2
    if isinstance(value, list):
        return [64, 64]
    if value == "auto":
        return "mr"
    return [1] if value is None else {"float32": "bfloat16"}.get(value, f"{value}_")


@pytest.mark.parametrize(
    "key", [k for k, v in IDS.items() if not isinstance(v, dict) and not (str(v).startswith("$") or k in WITHOUT_EFFECT)
            and k not in ("imports", "initialize", "run", "handlers", "steps", "support_preprocessing")]
)  # fmt: skip
def test_every_setting_counts(usual, key):
    assert settings(**{key: another(IDS[key])}) != usual


@pytest.mark.parametrize(
    ("key", "value"),
    [("refinement#margin", 3.0), ("network_def#temperature", 5.0), ("intensity#window_hu", [-100, 200])],
)
def test_every_nested_setting_counts(usual, key, value):
    assert settings(**{key: value}) != usual


def test_the_same_settings_are_the_same(usual):
    assert settings() == usual
    assert settings(num_workers=3, strict=True) == usual
    assert "0x" not in usual  # no place in memory


@pytest.fixture
def case(tmp_path):
    """A finished case, and what a run of it depends on."""
    for name in ("q.nii.gz", "i.nii.gz", "l.nii.gz", "weights.pt", "out/q/q_seg.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    entries = [{"image": str(tmp_path / "q.nii.gz")}]

    def make(**changes):
        support = [{"image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "l.nii.gz")}]
        given = {"settings": {"a": 1}, "weights": tmp_path / "weights.pt", "support": support, **changes}
        return FinishedCases(tmp_path / "out", **given)

    first = make()
    left = list(entries)
    first.leave_out(left)
    assert left == entries

    engine = Engine(lambda engine, batch: None)
    first.attach(engine)
    held = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: held.append((tmp_path / "out/q" / RECORD).exists()))
    image = type("Image", (), {"meta": {"filename_or_obj": entries[0]["image"]}})
    engine.run([[{"image": image}], []])
    assert held == [False, True]  # pictures of a case may be drawn while the next one is segmented
    return tmp_path, make, entries


def test_a_finished_case_is_left_out(case):
    _, make, entries = case
    finished, left = make(), list(entries)
    finished.leave_out(left)
    assert left == []
    assert finished.cases == ["q"]


def touch(path):
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: touch(root / "q.nii.gz"), id="query"),
        pytest.param(lambda root: touch(root / "weights.pt"), id="weights"),
        pytest.param(lambda root: touch(root / "l.nii.gz"), id="support"),
        pytest.param(lambda root: (root / "out/q/q_seg.nii.gz").unlink(), id="result is gone"),
        pytest.param(lambda root: (root / "out/q" / RECORD).write_text("{"), id="half a record"),
        pytest.param(lambda root: (root / "datastore_v2.json").write_text('{"objects": {}}'), id="studies folder"),
        pytest.param(lambda root: {"settings": {"a": 2}}, id="setting"),
        pytest.param(lambda root: {"resume": False}, id="resume is off"),
        pytest.param(lambda root: {"table": root / "metrics.csv"}, id="not in the table"),
    ],
)
def test_a_case_whose_results_may_differ_is_made_again(case, change):
    root, make, entries = case
    changes = change(root)
    finished, left = make(**(changes if isinstance(changes, dict) else {})), list(entries)
    finished.leave_out(left)
    assert left == entries
    assert finished.cases == []
    assert not (root / "out/q" / RECORD).exists()  # not finished until it is again


def test_a_second_run_makes_nothing_again(run_config, tmp_path):
    out = run_config("inference", "evaluate", folds=2, fold=0)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*_seg.nii.gz")}
    summary = (out / "summary.json").read_text()
    (out / "summary.json").unlink()
    run_config("inference", "evaluate", folds=2, fold=0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*_seg.nii.gz")} == files
    assert (out / "summary.json").read_text() == summary  # of the rows that were there
    next(iter(files)).unlink()
    run_config("inference", "evaluate", folds=2, fold=0)
    changed = {path for path in out.rglob("*_seg.nii.gz") if path.stat().st_mtime_ns != files[path]}
    assert changed == {next(iter(files))}
    assert (out / "summary.json").read_text() == summary
    run_config("inference", "evaluate", folds=2, fold=0, smoothing_mm=0.0)
    assert all(path.stat().st_mtime_ns != files[path] for path in out.rglob("*_seg.nii.gz"))
