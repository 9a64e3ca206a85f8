from __future__ import annotations

import csv
import json

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler, from_engine

from bundle.handlers import EvaluationReport
from bundle.metrics import ScanDice

from ..conftest import volume


def case(name, pred, truth):
    """Output of one case: two labels on a line of four voxels."""

    def masks(lists):
        return torch.tensor(lists)[:, None, None].float()

    scan = volume(torch.zeros(1, 1, 4).numpy(), filename_or_obj=f"d/{name}.nii.gz")
    made = type(scan)(masks(pred), meta=dict(scan.meta))
    return {"pred": made, "truth_masks": type(scan)(masks(truth), meta=dict(scan.meta))}


CASES = [
    case("a", [[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 1, 1, 0], [0, 0, 1, 1]]),  # 50, 100
    case("b", [[1, 1, 1, 1], [1, 1, 1, 1]], [[0, 1, 1, 0], [0, 0, 0, 0]]),  # 66.667, not shown
]


def measuring(within_extent=False):
    """An engine that measures each case, and its metric, as evaluators do."""
    engine, metric = Engine(lambda _, batch: [batch]), ScanDice(within_extent)
    transform = from_engine(["pred", "truth_masks"])
    IgniteMetricHandler(metric_fn=metric, output_transform=transform).attach(engine, "scan_dice")
    return engine, metric


def run(tmp_path, cases, within_extent=False, **arguments):
    engine, metric = measuring(within_extent)
    settings = {"labels": [4, 2], "names": {4: "liver"}, "protocol": "volume", "metric": metric, **arguments}
    EvaluationReport(tmp_path / "new", **settings).attach(engine)
    engine.run(cases)
    with open(tmp_path / "new" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((tmp_path / "new" / "summary.json").read_text()), engine


def test_table_and_summary_by_hand(tmp_path):
    rows, summary, _ = run(tmp_path, CASES, details={"fold": 3})
    assert [(r["case"], r["label"], r["name"], r["dice"], r["protocol"]) for r in rows] == [
        ("a", "4", "liver", "50.0", "volume"),
        ("a", "2", "label 2", "100.0", "volume"),
        ("b", "4", "liver", "66.667", "volume"),
        ("b", "2", "label 2", "", "volume"),
    ]
    assert summary["per_label"] == {"liver": 58.33, "label 2": 100.0}
    assert summary["mean"] == pytest.approx(79.17, abs=0.011)
    assert (summary["protocol"], summary["cases"], summary["fold"]) == ("volume", 2, 3)


def test_a_run_ends_in_a_table_of_the_dice(tmp_path, caplog):
    caplog.set_level("INFO")
    run(tmp_path, CASES)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("bundle")]
    assert messages[0] == "1/2 a: Dice 75.0 %"
    lines = messages[-1].strip().splitlines()
    assert [line.split("  ")[0] for line in lines[:5]] == ["Dice in %, volume", "a", "b", "mean", "sd"]
    cells = [line.split()[-3:] for line in lines[1:4]]
    assert cells == [["50.0", "100.0", "75.0"], ["66.7", "-", "66.7"], ["58.3", "100.0", "79.2"]]
    assert f"table    {tmp_path}/new/metrics.csv, summary {tmp_path}/new/summary.json" in lines


def test_extent_is_passed_on(tmp_path):
    rows, _, _ = run(tmp_path, CASES, within_extent=True)
    assert [r["dice"] for r in rows] == ["66.667", "100.0", "100.0", ""]


def test_label_that_no_case_shows_is_left_out_of_the_mean(tmp_path):
    _, summary, _ = run(tmp_path, CASES[1:])
    assert summary["per_label"] == {"liver": 66.67, "label 2": None}
    assert summary["mean"] == 66.67


def test_table_is_complete_after_every_case_and_a_second_run_starts_anew(tmp_path):
    seen = []
    engine, metric = measuring()
    EvaluationReport(tmp_path, [4, 2], {}, "volume", metric).attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def count(_):
        seen.append(len((tmp_path / "metrics.csv").read_text().splitlines()) - 1)

    engine.run(CASES)
    engine.run(CASES)
    assert seen == [2, 4, 2, 4]
    assert not list(tmp_path.glob("*.tmp"))
