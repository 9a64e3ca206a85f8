"""The command line of prepare: what it prints, refuses and returns."""

from __future__ import annotations

import json
import sys

import nibabel as nib
import pytest

from scripts import prepare

from ..data.archives import scan, write_chaos, write_nifti


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; give back exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
        status = 0
        try:
            prepare.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def archive(tmp_path):
    """Two cases of CHAOS, the second without its masks."""
    image, label = scan()
    write_chaos(tmp_path / "src", 1, image, label)
    folder = write_chaos(tmp_path / "src", 2, image, label)
    for mask in (folder / "Ground").iterdir():
        mask.unlink()
    (folder / "Ground").rmdir()
    return tmp_path


def test_bad_case_is_named_and_the_status_is_zero(run, archive):
    status, out, err = run("chaos", "--src", archive / "src", "--dst", archive / "dst")
    assert status == 0
    assert [line for line in err.splitlines() if "skipped" in line and "chaos_02" in line]
    assert "1 prepared, 0 already there, 1 skipped" in out
    assert "1 = liver: 32 voxels in 1 scans" in out
    assert json.loads((archive / "dst/prepare_summary.json").read_text())["skipped"][0]["case"] == "chaos_02"


def test_strict_fails_for_a_bad_case(run, archive):
    status, _, err = run("chaos", "--src", archive / "src", "--dst", archive / "dst", "--strict")
    assert status == 1
    assert err.splitlines()[-1] == "prepare: 1 cases were skipped"
    assert (archive / "dst/imagesTr/chaos_01.nii.gz").is_file()


def test_scan_without_label_can_be_kept(run, archive):
    status, out, _ = run("chaos", "--src", archive / "src", "--dst", archive / "dst", "--need_label", "False")
    assert status == 0
    assert "2 prepared" in out
    assert "no label, good for training alone: chaos_02" in out


def test_nothing_prepared_fails(run, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.nii.gz").write_bytes(b"\x1f\x8bno")
    status, _, err = run("folder", "--src", tmp_path / "src", "--dst", tmp_path / "dst")
    assert status == 1
    assert err.splitlines()[-1] == "prepare: nothing was prepared, all 1 cases are bad"


def test_numbers_of_a_recipe_are_overridden(run, archive):
    numbers = ["--spacing", "2.5,2.5,7.7", "--size", 64, "--clip_percent", 2]
    status, _, _ = run("chaos", "--src", archive / "src", "--dst", archive / "dst", *numbers)
    assert status == 0
    image = nib.load(archive / "dst/imagesTr/chaos_01.nii.gz")
    assert image.shape == (64, 64, 4)
    assert image.header.get_zooms() == pytest.approx((2.5, 2.5, 7.7))


def test_window_and_names_of_a_folder(run, tmp_path):
    image, label = scan()
    write_nifti(tmp_path / "src/a.nii.gz", image - 200)
    write_nifti(tmp_path / "src/a_label.nii.gz", label)
    names = "{1: 'liver', 4: 'spleen'}"
    status, out, _ = run(
        "folder", "--src", tmp_path / "src", "--dst", tmp_path / "dst", "--window", "-125,275", "--label_names", names
    )
    assert status == 0
    assert "-125..275" in out
    assert "2 = (no name)" in out
    labels = json.loads((tmp_path / "dst/dataset.json").read_text())["labels"]
    assert labels == {"0": "background", "1": "liver", "4": "spleen"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--src", "nowhere"], "prepare: nowhere: no such folder"),
        (["--src", ".", "--size", "0"], "prepare: size must be two positive whole numbers"),
        (["--src", ".", "--label_names", "liver"], "prepare: label_names must map values to names"),
        (["--src", ".", "--num_workers", "0"], "prepare: num_workers must be a positive whole number"),
    ],
)
def test_bad_input_ends_in_one_line(run, tmp_path, arguments, words):
    status, out, err = run("folder", *arguments, "--dst", tmp_path / "dst")
    assert status == 1
    assert out == ""
    assert err.startswith(words)
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "dst").exists()


def test_misspelt_option_prepares_nothing(run, archive):
    status, _, err = run("chaos", "--src", archive / "src", "--dst", archive / "dst", "--spaccing", "1,1,1")
    assert status != 0
    assert "spaccing" in err
    assert not (archive / "dst").exists()
