from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from scripts import benchmark
from scripts.steps import make_steps


@pytest.fixture
def calls(monkeypatch):
    """What the benchmark would run, which leaves weights and a summary as the configs do."""
    made = []

    def run(configs, overrides, log, threads):
        made.append((list(configs), dict(overrides)))
        if "configs/train.json" in configs:
            weights = Path(overrides["ckpt_dir"]) / "model_final.pt"
            weights.parent.mkdir(parents=True, exist_ok=True)
            weights.write_bytes(b"weights")
        else:
            folder = Path(overrides["output_dir"])
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps({"per_label": {"disc": 50.0 + overrides["fold"]}}))

    monkeypatch.setattr(benchmark, "_bundle_run", run)
    return made


@pytest.fixture
def folders(tmp_path):
    """Three data sets of empty files."""
    for name in "abc":
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / name / part).mkdir(parents=True)
            for number in range(4):
                (tmp_path / name / part / f"{name}_{number}.nii.gz").touch()
        (tmp_path / name / "dataset.json").write_text(json.dumps({"labels": {"1": "disc"}}))
    return [str(tmp_path / name) for name in "abc"]


def test_transfer_trains_without_the_tested_set_and_evaluates_on_it(calls, folders, tmp_path):
    out = tmp_path / "runs"
    table = benchmark.transfer(folders, str(out), tested=["b"], folds=[0, 1], num_folds=2, overrides={"max_epochs": 7})
    (train, training), *evaluations = calls
    assert train == ["configs/train.json"]
    assert training["max_epochs"] == 7
    assert [Path(item["image"]).name[0] for item in training["images"]] == list("aaaacccc")
    assert [(e["dataset_dir"], e["fold"], e["protocol"]) for _, e in evaluations] == [
        (folders[1], fold, "volume") for fold in (0, 1)
    ]
    assert {e["ckpt_path"] for _, e in evaluations} == {str(Path(training["ckpt_dir"]) / "model_final.pt")}
    assert "Trained without b." in table
    assert "| **mean ± sd** | | **50.50 ± 0.71** | **50.50 ± 0.71** |" in table
    assert (out / "transfer_volume.md").read_text() == table + "\n"
    benchmark.transfer(folders, str(out), tested=["b"], folds=[0, 1], num_folds=2)
    assert len(calls) == 3  # what is finished is not repeated


@pytest.mark.parametrize("wrong", [{"tested": ["d"]}, {"dataset_dirs": ["a"]}, {"dataset_dirs": ["x/a", "y/a"]}])
def test_transfer_needs_several_sets_and_known_names(calls, folders, tmp_path, wrong):
    for folder in ("a", "x/a", "y/a"):
        (tmp_path / folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    wrong = {**wrong, "dataset_dirs": [str(tmp_path / d) for d in wrong.get("dataset_dirs", "abc")]}
    with pytest.raises(ValueError, match="dataset_dirs"):
        benchmark.transfer(output_dir=str(tmp_path / "runs"), **wrong)
    assert not calls


def test_only_ids_of_the_configs_are_passed_on(monkeypatch, tmp_path):
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    configs = ["configs/inference.json", "configs/evaluate.json"]
    benchmark._bundle_run(configs, {"fold": 1, "max_epochs": 3, "registration#reach": 2}, tmp_path / "a" / "run.log", 1)
    assert "--fold" in commands[0]
    assert "--registration#reach" in commands[0]
    assert "--max_epochs" not in commands[0]
    known = ConfigParser.load_config_files([str(benchmark.ROOT / name) for name in configs])
    assert "fold" in known
    assert "max_epochs" not in known


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overrides": {"max_epoch": 3}}, r"overrides: max_epoch: no config has this id; did you mean max_epochs\?"),
        ({"overrides": {"registration#reachh": 3}}, r"registration#reachh: .*did you mean reach\?"),
        ({"overrides": {"superpixel#metod": 3}}, r"superpixel#metod: .*did you mean superpixel#method\?"),
        ({"protocol": "offical"}, "no protocol is called 'offical'; there are official"),
        ({"num_folds": 5}, "5 folds need 10 scans with a label"),
        ({"config": ["configs/papr.json"]}, r"papr.json: no such config; did you mean .*paper.json\?"),
        ({"setting": 2, "groups": [["disk"]]}, r"no label is called 'disk'; there are disc \(1\)"),
    ],
)  # fmt: skip
def test_what_would_fail_after_hours_fails_before_the_first_training(calls, folders, tmp_path, given, message):
    given = {"folds": [0], "num_folds": 2, **given}
    with pytest.raises((ValueError, OSError), match=message):
        benchmark.accuracy(folders[0], str(tmp_path / "runs"), **given)
    assert not calls


def test_the_paper_is_trained_and_evaluated_under_the_protocol_that_is_asked_for(calls, folders, tmp_path):
    benchmark.accuracy(folders[0], str(tmp_path / "runs"), folds=[1], num_folds=2, config=["configs/paper.json"],
                       overrides={"network_def#encoder": {"_target_": "bundle.networks.TinyEncoder"}})  # fmt: skip
    (train, _), (test, settings) = calls
    assert train == ["configs/train.json", "configs/fold.json", "configs/paper.json"]
    assert test == ["configs/inference.json", "configs/evaluate.json", "configs/paper.json"]
    assert settings["protocol"] == "official"


def test_none_and_names_arrive_in_the_run(monkeypatch, tmp_path):
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    settings = {"completion": None, "registration": False, "labels": ["liver", 2]}
    benchmark._bundle_run(["configs/inference.json"], settings, tmp_path / "run.log", 1)
    words = commands[0]
    typed = {key: words[words.index(f"--{key}") + 1] for key in settings}
    assert typed == {"completion": "$None", "registration": "False", "labels": "['liver', 2]"}


def test_a_label_that_no_query_of_a_fold_shows_is_left_out_of_its_mean(tmp_path):
    for fold, scores in enumerate(({"disc": 60.0, "ring": None}, {"disc": 70.0, "ring": 90.0})):
        folder = tmp_path / f"fold{fold}_seed0" / "volume"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"per_label": scores}))
    table = benchmark._table(tmp_path, [benchmark.Run(0, 0), benchmark.Run(1, 0)], "volume", 1)
    assert "| 0 | 0 | 60.00 |  | 60.00 |" in table
    assert table.endswith("| **mean ± sd** | | **65.00 ± 7.07** | **90.00 ± 0.00** | **70.00 ± 14.14** |")
    assert (tmp_path / "volume.csv").read_text().splitlines()[1] == "0,0,60.00,,60.00"


def test_groups_of_setting_2_come_from_the_overlay_of_the_data_set(calls, folders, tmp_path):
    content = {"groups": [["disc"]], "+_meanings_": {"groups": "labels that are tested together"}}
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps(content))
    given = {"folds": [0], "num_folds": 2, "setting": 2}
    benchmark.accuracy(folders[0], str(tmp_path / "runs"), config=[str(overlay)], **given)
    (_, training), (_, evaluation) = calls
    assert (training["exclude_labels"], evaluation["labels"]) == (["disc"], ["disc"])
    with pytest.raises(ValueError, match="setting must be 1, or 2 with groups of labels"):
        benchmark.accuracy(folders[0], str(tmp_path / "other"), config=["configs/mscmr.json"], **given)


def test_steps_share_trainings_go_on_and_write_what_they_have(calls, folders, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    given = {"folds": [0, 1], "seeds": [3], "num_folds": 2, "num_steps": 7, "batch_size": 2}
    working = benchmark._bundle_run

    def breaks(files, settings, log, threads):
        if len(calls) == 20:
            raise RuntimeError("interrupted")
        working(files, settings, log, threads)

    monkeypatch.setattr(benchmark, "_bundle_run", breaks)
    with pytest.raises(RuntimeError, match="interrupted"):
        benchmark.steps(folders[0], str(out), **given)
    assert "not measured" in (out / "steps.md").read_text()
    monkeypatch.setattr(benchmark, "_bundle_run", working)
    table = benchmark.steps(folders[0], str(out), **given)
    trainings = [(files, settings) for files, settings in calls if "configs/train.json" in files]
    evaluations = [(files, settings) for files, settings in calls if "configs/train.json" not in files]
    rows = make_steps(json.loads((benchmark.ROOT / "configs/paper.json").read_text()))
    assert len(evaluations) == 2 * 2 * len(rows)
    assert len({settings["output_dir"] for _, settings in evaluations}) == len(evaluations)
    assert len(trainings) == 2 * 6
    first = json.loads(Path(trainings[0][0][-1]).read_text())
    assert (first["epoch_length"], first["batch_size"], first["num_ways"]) == (14, 2, 1)
    assert (trainings[0][1]["fold"], trainings[0][1]["seed"]) == (0, 3)
    used = [settings["ckpt_path"] for _, settings in evaluations if settings["fold"] == 0]
    assert len(set(used)) == 7  # six trainings and the weights from which they start
    for files, _ in (trainings[0], evaluations[0]):
        benchmark._ids(files)  # the overlay may be laid over these configs
    assert len(table.splitlines()) == 2 + len(rows)
    assert "| 1 | local prototypes (ALP) | 50.50 ± 0.71 | 2 | 50.50 ± 0.71 | 2 |" in table
    with open(out / "steps.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(evaluations)
    before = len(calls)
    assert benchmark.steps(folders[0], str(out), **given) == table
    assert len(calls) == before


def test_steps_measure_the_rows_that_are_asked_for_and_keep_the_others(calls, folders, tmp_path):
    given = {"folds": [0], "num_folds": 2, "protocols": ["volume"]}
    benchmark.steps(folders[0], str(tmp_path), rows=[1], **given)
    table = benchmark.steps(folders[0], str(tmp_path), rows=[15, 0], **given).splitlines()
    assert [line.split("|")[-2].strip() for line in table[2:]] == ["1", "1", *["0"] * 13, "2"]
    assert len(calls) == 6  # two trainings, four evaluations: what is not trained has no seed
    with pytest.raises(ValueError, match=r"rows must be among 0..15, got \[16\]"):
        benchmark.steps(folders[0], str(tmp_path), rows=[16], **given)
