"""Messages tell commands that the user has: those of ``alpnet`` where that was typed."""

from __future__ import annotations

import ast
import re
import shlex
import sys

import pytest

from bundle.commands import next_command, run_command
from bundle.data.datalist import check_dataset
from bundle.data.fingerprint import prepare_command
from bundle.data.prepare.summary import next_steps
from bundle.networks import load_weights
from bundle.options import check_options
from scripts import alpnet, options

from .conftest import ROOT

MONAI = "python -m monai.bundle run --config_file configs/"


@pytest.fixture
def typed_alpnet(monkeypatch):
    """As if ``alpnet`` was typed."""
    monkeypatch.setattr(sys, "argv", ["/x/bin/alpnet"])


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/x/bin/alpnet", "alpnet report 'my run'"),
        ("C:/x/alpnet.exe", "alpnet report 'my run'"),
        ("/x/scripts/alpnet.py", "python -m scripts.report 'my run'"),
        ("/x/monai/bundle/__main__.py", "python -m scripts.report 'my run'"),
    ],
)
def test_the_command_that_follows_is_one_that_the_user_has(monkeypatch, program, expected):
    monkeypatch.setattr(sys, "argv", [program])
    assert next_command("report", "my run") == expected


def test_a_run_by_either_program(monkeypatch):
    run = ("segment", "my data")
    ids = {"ckpt_path": "w.pt", "output_dir": "out", "num_slices": "3"}
    given = "--ckpt_path w.pt --output_dir out --num_slices 3"
    assert run_command(*run, **ids) == f"{MONAI}inference.json --dataset_dir 'my data' {given}"
    assert run_command("train", "d") == f"{MONAI}train.json --dataset_dir d"
    monkeypatch.setattr(sys, "argv", ["/x/bin/alpnet"])
    assert run_command(*run, **ids) == "alpnet segment 'my data' --weights w.pt -o out --num_slices 3"


def case(name, subset="Tr", voxels=()):
    return {"case": name, "subset": subset, "voxels": dict(voxels), "image": f"{name}.nii.gz"}


@pytest.mark.parametrize(
    ("cases", "by_alpnet", "by_script"),
    [
        (
            [case("a", voxels={"1": 9}), case("b", "Ts")],
            "alpnet segment 'my data' -o 'my data/segmented'",
            f"{MONAI}inference.json --dataset_dir 'my data' --output_dir 'my data/segmented'",
        ),
        (
            [case("a", voxels={"1": 9})],
            "alpnet train 'my data' -o 'my data/trained'",
            f"{MONAI}train.json --dataset_dir 'my data'",
        ),
        ([case("a")], "alpnet train 'my data' -o 'my data/trained'", f"{MONAI}train.json --dataset_dir 'my data'"),
    ],
    ids=["some labelled", "all labelled", "none labelled"],
)
def test_what_follows_a_preparation(monkeypatch, cases, by_alpnet, by_script):
    assert next_steps(cases, "my data")[1:] == ["  python -m scripts.check 'my data'", f"  {by_script}"]
    monkeypatch.setattr(sys, "argv", ["/x/bin/alpnet"])
    assert next_steps(cases, "my data")[1:] == ["  alpnet check 'my data'", f"  {by_alpnet}"]
    alpnet.parse(shlex.split(by_alpnet)[1:])  # which ends the program if it is wrong


def test_remedies_of_alpnet_are_its_own(typed_alpnet, tmp_path):
    assert prepare_command("my data") == "alpnet prepare folder --src 'my data' --dst 'my data_prepared'"
    (tmp_path / "a.dcm").write_text("")
    with pytest.raises(ValueError, match=r"imagesTr/\*.nii.gz. alpnet prepare folder makes one of other files"):
        check_dataset(tmp_path)
    with pytest.raises(ValueError, match="--xyzzy: the configs have no such id; alpnet options lists them"):
        check_options(ROOT / "configs" / "train.json", {"xyzzy": 1})
    with pytest.raises(FileNotFoundError, match="make them with alpnet convert_weights"):
        load_weights(None, tmp_path / "none.pt")
    listed = options.options("inference")
    assert listed.startswith("inference: alpnet segment … --ID VALUE …")
    assert listed.endswith("alpnet options inference ID")


def test_no_message_names_a_script_that_alpnet_lacks():
    commands = set(alpnet.commands_of(alpnet.make_parser()))
    for path in sorted((ROOT / "bundle").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"next_command\([\"'](\w+)", text)) <= commands, path
        tree = ast.parse(text)
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        words = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [n.value for n in words if id(n) not in told and "python -m scripts" in n.value], path
