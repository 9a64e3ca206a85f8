"""The table at the end of an inference."""

from __future__ import annotations

import csv
import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from bundle.handlers import CaseQuality, CaseTable

NAMES = {1: "liver", 2: "spleen"}


class Told:
    """What was logged by the bundle itself."""

    def __init__(self, caplog):
        self.caplog = caplog

    @property
    def messages(self):
        return [record.getMessage() for record in self.caplog.records if record.name.startswith("bundle")]


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO)
    return Told(caplog)


def label_map(case, *values, **meta):
    """Voxels of 1 x 2 x 500 mm, 1 mL each."""
    affine = torch.diag(torch.tensor([1.0, -2.0, 500.0, 1.0]))
    known = {"label_values": torch.tensor([[1, 2]]), **meta}
    return MetaTensor(
        torch.tensor(values).view(1, 1, 1, -1), affine=affine, meta={"filename_or_obj": f"d/{case}.nii.gz", **known}
    )


def run(folder, maps, finished=(), **arguments):
    engine = Engine(lambda _, item: [{"pred": item[0]["map"]}])
    CaseQuality(folder, NAMES).attach(engine)
    table = CaseTable(folder, SimpleNamespace(cases=list(finished)), **arguments)
    table.attach(engine)
    if maps:
        engine.run([[{"map": each}] for each in maps], max_epochs=1)
    else:
        table.finish()
    return table


def test_volumes_are_those_of_the_label_map_and_its_affine(tmp_path, told):
    sides = torch.tensor([[[1500.0, 2.0, 1.0], [500.0, 20.0, 1.0]]])
    first = label_map("a", 1, 1, 1, 2, reverse_dice=torch.tensor([[0.81, 0.2]]), support_sides_mm=sides)
    run(tmp_path, [first, label_map("b", 0, 2, 2)])
    lines = told.messages[-1].strip().splitlines()
    assert lines[0].split() == ["case", "seconds", "liver", "spleen"]
    assert lines[1].split()[0] == "a"
    assert lines[1].split()[2:] == "3 mL (89) 1 mL (17)".split()
    assert lines[2].split()[2:] == "0 mL 2 mL".split()
    assert "warning  a: look at these labels, expected Dice below 60: spleen 17 (9-30)" in lines
    assert f"results  {tmp_path}/CASE/CASE_seg.nii.gz, table {tmp_path}/measurements.csv" in lines
    assert [text.split(":")[0] for text in told.messages if text[1] == "/"] == ["1/2 a", "2/2 b"]
    with open(tmp_path / "measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("case", "label", "volume_ml", "reverse_dice", "expected_dice", "expected_low", "expected_high")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("a", "liver", "3.0", "0.81", "89.1", "79.5", "94.5"), ("a", "spleen", "1.0", "0.2", "16.7", "8.7", "29.5"),
        ("b", "liver", "0.0", *[""] * 4), ("b", "spleen", "2.0", *[""] * 4),
    ]  # fmt: skip
    sizes = [tuple(row[f"{axis}_mm"] for axis in ("left_right", "front_back", "feet_head")) for row in rows]
    assert sizes == [("1.0", "2.0", "1500.0"), ("1.0", "2.0", "500.0"), ("", "", ""), ("1.0", "2.0", "1000.0")]
    assert {(row["mean_intensity"], row["confidence"]) for row in rows} == {("", "")}  # no file, no map


def test_a_rerun_says_that_nothing_is_left(tmp_path, told):
    run(tmp_path, [label_map("a", 1), label_map("b", 2)])
    run(tmp_path, [], finished=["a", "b"])
    text = told.messages[-1]
    assert text.endswith("all 2 cases were finished before: nothing to do; --resume False makes them anew")
    assert [line.split()[:3] for line in text.strip().splitlines()[1:3]] == [["a", "before", "1"], ["b", "before", "0"]]


def test_a_run_that_goes_on_shows_the_cases_of_before(tmp_path, told):
    run(tmp_path, [label_map("a", 1)])
    run(tmp_path, [label_map("b", 2)], finished=["a"])
    assert told.messages[-1].endswith("1 of the 2 cases were finished before; --resume False makes them anew")
    assert len((tmp_path / "measurements.csv").read_text().splitlines()) == 5


def test_many_labels_and_many_cases_stay_short(tmp_path, told):
    values = torch.arange(1, 41)[None]
    names = {value: f"structure number {value}" for value in range(1, 41)}
    sure = torch.linspace(0.9, 0.4, 40)[None]
    known = {"label_values": values, "reverse_dice": sure, "support_sides_mm": torch.ones(1, 40, 3)}
    maps = [label_map(f"case_{n}", 1, 2, 2, **known) for n in range(5)]
    engine = Engine(lambda _, item: [{"pred": item[0]["map"]}])
    CaseQuality(tmp_path, names).attach(engine)
    CaseTable(tmp_path, SimpleNamespace(cases=[]), max_rows=3).attach(engine)
    engine.run([[{"map": each}] for each in maps], max_epochs=1)
    lines = told.messages[-1].strip().splitlines()
    assert max(map(len, lines[:4])) < 100
    assert lines[1].split()[2:] == "2 of 40 3 structure number 40 (10)".split()
    assert lines[4] == "… and 2 more cases, see measurements.csv"


def test_a_case_without_its_file_is_listed_all_the_same(tmp_path, told):
    run(tmp_path, [], finished=["a"])
    assert told.messages[-1].strip().splitlines()[1].split() == ["a", "before"]
