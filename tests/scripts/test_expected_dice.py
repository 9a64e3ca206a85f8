from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from bundle.options import read_config
from bundle.quality import ExpectedDice
from scripts.expected_dice import Measured, expected_dice, fit, read_labels

from ..conftest import ROOT


def logistic(exponent):
    return 100 / (1 + np.exp(-exponent))


def measured(data_set, count, seed, noise=0.0):
    """Labels whose Dice follows the formula with the numbers -1, 4 and 2."""
    random = np.random.default_rng(seed)
    sure, sizes = random.uniform(0.3, 1, count), random.uniform(0, 0.6, count)
    dice = logistic(-1 + 4 * sure - 2 * sizes + noise * random.normal(size=count))
    return [
        Measured(data_set, f"c{n}", "liver", *map(float, values)) for n, values in enumerate(zip(dice, sure, sizes))
    ]


def test_the_numbers_that_made_the_dice_are_found():
    found = fit([*measured("a", 10, 0), *measured("b", 90, 1)])
    assert (found.bias, found.reverse_dice, found.size) == pytest.approx((-1.0, 4.0, 2.0))


def test_data_sets_weigh_alike_whatever_their_size():
    few, many = measured("a", 20, 0), [*measured("b", 200, 1)]
    shifted = [Measured("a", *list(label.__dict__.values())[1:3], 50.0, label.reverse_dice, 0.0) for label in few]
    once, twice = (vars(fit([*shifted, *labels])) for labels in (many, many * 2))
    assert once == pytest.approx(twice)


def make_run(folder, data_set, dice, sides, reverse_dice, protocol="volume"):
    """An evaluation of one case of two labels, the second of which the support does not show."""
    support = np.zeros((20, 20, 20), dtype=np.uint8)
    support[:10, :10, :10] = 1
    found = np.zeros_like(support)
    found[: sides[0], : sides[1], : sides[2]] = 1
    (folder / "case").mkdir(parents=True)
    (data_set / "labelsTr").mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(support, np.eye(4)), data_set / "labelsTr" / "s.nii.gz")
    nib.save(nib.Nifti1Image(found, np.eye(4)), folder / "case" / "case_seg.nii.gz")
    (folder / "case" / "case_quality.json").write_text(
        json.dumps({"reverse_dice": {"liver": reverse_dice, "spleen": 0.0}})
    )
    settings = {"dataset_dir": str(data_set), "support": [{"label": str(data_set / "labelsTr" / "s.nii.gz")}]}
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    rows = [["case", 1, "liver", dice, protocol], ["case", 2, "spleen", 0.0, protocol]]
    with open(folder / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([["case", "label", "name", "dice", "protocol"], *rows])


def test_an_evaluation_is_read_from_its_files(tmp_path):
    make_run(tmp_path / "run", tmp_path / "abdomen", 81.5, (20, 5, 10), 0.7)
    (label,) = read_labels(tmp_path / "run")
    assert label == Measured("abdomen", "case", "liver", 81.5, 0.7, pytest.approx(2 * np.log(2) / 3))
    make_run(tmp_path / "official", tmp_path / "abdomen", 81.5, (20, 5, 10), 0.7, protocol="official")
    assert read_labels(tmp_path / "official") == []


def test_each_data_set_is_judged_by_a_fit_to_the_others(tmp_path):
    random = np.random.default_rng(0)
    for number in range(24):
        sure, side = float(random.uniform(0.3, 1)), int(random.integers(5, 20))
        dice = float(logistic(-1 + 4 * sure - 2 * min(abs(np.log(side / 10)), 1.5)))
        make_run(tmp_path / "runs" / str(number), tmp_path / f"set{number % 3}", dice, (side,) * 3, sure)
    table = expected_dice([str(tmp_path / "runs")], str(tmp_path / "out"))
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in table.splitlines()[2:6]
    }
    assert list(rows) == ["all", "set0", "set1", "set2"]
    assert rows["all"][:4] == ["24", "1.00", "1.00", "0.0"]  # the formula is right, whichever set is left out
    numbers = json.loads(table.splitlines()[-1].split(" of all: ")[1])
    assert (numbers["bias"], numbers["reverse_dice"], numbers["size"]) == (-1.0, 4.0, 2.0)
    assert numbers["spread"] == 0.0
    with open(tmp_path / "out" / "expected_dice.csv") as file:
        assert len(list(csv.DictReader(file))) == 24
    assert (tmp_path / "out" / "expected_dice.png").stat().st_size > 5000


def test_one_data_set_is_not_enough(tmp_path):
    make_run(tmp_path / "runs" / "a", tmp_path / "abdomen", 81.5, (20, 5, 10), 0.7)
    with pytest.raises(ValueError, match=r"evaluations of \['abdomen'\]; two are needed"):
        expected_dice([str(tmp_path / "runs")], str(tmp_path / "out"))
    with pytest.raises(ValueError, match="evaluations of no data set; two are needed"):
        expected_dice([str(tmp_path / "nothing")], str(tmp_path / "out"))


def test_the_config_has_the_defaults():
    config = read_config([ROOT / "configs" / "inference.json"], {})["expected_dice"]
    del config["_target_"]
    assert ExpectedDice(**config) == ExpectedDice()
