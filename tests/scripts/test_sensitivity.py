"""What half of a number and twice do to the Dice."""

from __future__ import annotations

import csv

import pytest

from scripts.options import read_file
from scripts.sensitivity import LEFT_OUT, changes, constants, format_table, kind, scaled, sensitivity

from ..conftest import TINY_NETWORK


def test_all_numbers_are_tried_but_those_that_are_left_out_for_a_reason():
    content = read_file("inference")
    found = constants(content)
    assert {"num_slices", "registration#smoothing", "upsampling#radius_px", "network_def#temperature"} < set(found)
    assert not {"image_size", "atlas_fallback#below", "num_workers", "alignment#scales"} & set(found)
    for name in LEFT_OUT:  # none that the config lost
        item = content
        for key in name.split("#"):
            item = item[key]


def test_whole_numbers_stay_whole_and_what_does_not_change_is_left_out():
    assert [scaled(7, 0.5), scaled(1, 0.5), scaled(0.3, 2.0), scaled([24.0, 8.0], 0.5)] == [3, 1, 0.6, [12.0, 4.0]]
    assert list(changes({"one": 1, "none": 0.0}, ["one", "none"], [0.5, 2])) == [("one", 2, 2)]


def test_what_acts_on_few_labelled_slices_is_judged_by_them():
    assert [kind(name) for name in ("extension", "completion#margin", "num_slices")] == ["completion"] * 2 + ["volume"]


def test_table_of_a_phantom_is_gone_on_with(phantom_dir, tiny_weights, tmp_path, capsys):
    overrides = {"ckpt_path": str(tiny_weights), "device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}
    ids = ["num_slices", "extension", "region_of_interest#largest_scale"]
    given = {"queries": 1, "num_folds": 2, "overrides": overrides}
    table = sensitivity([str(phantom_dir)], str(tmp_path), ids=ids, **given)
    with open(tmp_path / "sensitivity.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["factor"], row["value"], row["measure"]) for row in rows] == [
        ("num_slices", "0.5", "3", "volume"),
        ("num_slices", "2", "14", "volume"),
        ("extension", "0.5", "0.375", "completion"),
        ("extension", "2", "1.5", "completion"),
        ("region_of_interest#largest_scale", "0.5", "0.625", "volume"),
        ("region_of_interest#largest_scale", "2", "2.5", "volume"),
    ]
    assert rows[4]["dice"] == rows[4]["change"] == ""
    assert "largest_scale and step at least 1" in capsys.readouterr().out
    assert all(0 <= float(row["dice"]) <= 100 for row in rows if row["dice"])
    assert format_table(rows) == table
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(made) == 8
    assert sensitivity([str(phantom_dir)], str(tmp_path), ids=ids, **given) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == made


def test_an_unknown_number_is_refused(phantom_dir, tmp_path):
    with pytest.raises(ValueError, match=r"ids: num_slice: no number that is tried here; did you mean num_slices\?"):
        sensitivity([str(phantom_dir)], str(tmp_path), ids=["num_slice"])
