from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from scripts import benchmark


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
        (tmp_path / name / "imagesTr").mkdir(parents=True)
        for number in range(3):
            (tmp_path / name / "imagesTr" / f"{name}_{number}.nii.gz").touch()
    return [str(tmp_path / name) for name in "abc"]


def test_transfer_trains_without_the_tested_set_and_evaluates_on_it(calls, folders, tmp_path):
    out = tmp_path / "runs"
    table = benchmark.transfer(folders, str(out), tested=["b"], folds=[0, 1], num_folds=2, overrides={"max_epochs": 7})
    (train, training), *evaluations = calls
    assert train == ["configs/train.json"]
    assert training["max_epochs"] == 7
    assert [Path(item["image"]).name[0] for item in training["images"]] == list("aaaccc")
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


def test_none_switches_off_what_it_names(tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    benchmark._bundle_run(["configs/inference.json"], {"completion": None, "num_slices": 1}, tmp_path / "log.txt", 1)
    assert commands[0][-4:] == ["--completion", "$None", "--num_slices", "1"]
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    assert parser.get_parsed_content("completion") is not None
    parser["completion"] = "$None"
    assert parser.get_parsed_content("completion") is None
