"""The rows between the published recipe and the default one."""

from __future__ import annotations

import json

import pytest

from scripts.steps import CLASS_PROTOTYPES, INGREDIENTS, SHARED, digest, make_steps

from ..conftest import ROOT

PAPER = json.loads((ROOT / "configs/paper.json").read_text())


def test_rows_go_from_the_paper_to_the_default_one_ingredient_at_a_time():
    rows = make_steps(PAPER)
    published = {key: value for key, value in PAPER.items() if key not in SHARED}
    assert [row.trained for row in rows] == [False, False] + [True] * (len(rows) - 2)
    assert rows[0].ids == {**published, **CLASS_PROTOTYPES}
    assert rows[1].ids == rows[2].ids == published
    for before, after in zip(rows[2:], rows[3:]):
        assert after.ids.items() < before.ids.items()
        assert set(before.ids) - set(after.ids) == set(INGREDIENTS[after.name])
    assert rows[-1].ids == {}


def test_no_id_of_the_paper_is_forgotten():
    with pytest.raises(ValueError, match=r"differ in \['new_stage'\]"):
        make_steps({**PAPER, "new_stage": None})
    with pytest.raises(ValueError, match=r"differ in \['smoothing_mm'\]"):
        make_steps({key: value for key, value in PAPER.items() if key != "smoothing_mm"})


def test_rows_that_differ_in_the_inference_alone_have_one_training():
    train = json.loads((ROOT / "configs/train.json").read_text())
    rows = [row for row in make_steps(PAPER) if row.trained]
    names = [digest(row.training(train)) for row in rows]
    assert names[0] == names[1]  # the gate of the testing window
    assert len(set(names)) == 6
    assert set(names[names.index(digest({})) :]) == {digest({})}  # from the n-way episodes on


def test_equal_settings_have_equal_names():
    assert digest({"a": 1, "b": [2, {"c": None}]}) == digest({"b": [2, {"c": None}], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
