"""The command line of prepare: what it prints, refuses and returns."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data import check_run, default_support, query_list
from scripts import check, prepare

from ..data.archives import scan, write_chaos, write_nifti, write_series, write_volume

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; give back exit status, stdout, stderr."""

    def call(*arguments: object, script=prepare) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # set back afterwards
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        status = 0
        try:
            script.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:  # as Python ends a program: by the hook
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
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
    assert err.splitlines()[-1] == "error: 1 cases were skipped"
    assert (archive / "dst/imagesTr/chaos_01.nii.gz").is_file()


def test_scan_without_label_can_be_kept(run, archive):
    status, out, _ = run("chaos", "--src", archive / "src", "--dst", archive / "dst", "--need_label", "False")
    assert status == 0
    assert "2 prepared" in out
    assert re.search(r"^chaos_02 .* none: to be segmented$", out, re.MULTILINE)


def test_nothing_prepared_fails(run, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.nii.gz").write_bytes(b"\x1f\x8bno")
    status, _, err = run("folder", "--src", tmp_path / "src", "--dst", tmp_path / "dst")
    assert status == 1
    assert err.splitlines()[-1] == "error: nothing was prepared, all 1 cases are bad"


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
        (["--src", "nowhere"], "error: nowhere: no such folder"),
        (["--src", ".", "--size", "0"], "error: size must be two positive whole numbers"),
        (["--src", ".", "--label_names", "liver"], "error: label_names must map values to names"),
        (["--src", ".", "--num_workers", "0"], "error: num_workers must be a positive whole number"),
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


def write_remedied(root, what):
    """Put what ``scripts.check`` refuses into a data set, or in place of it; the cases that the remedy must bring."""
    image, label = scan()
    affine = np.diag([-1.25, 1.25, 7.7, 1])
    if what.startswith("flat"):
        write_volume(root / f"a{what[5:]}", image, affine)
        write_volume(root / f"a_seg{what[5:]}", label, affine)
        write_volume(root / f"b{what[5:]}", image + 1, affine)
        return {"a", "b"}
    if what == "patients":
        write_series(root / "p1/DICOM", image)
        write_volume(root / "p2/image.nrrd", image, affine)
        return {"p1", "p2"}
    write_nifti(root / "imagesTr/a.nii.gz", image, affine)
    write_nifti(root / "labelsTr/a.nii.gz", label, affine)
    if what == "series":
        write_series(root / "imagesTs/q", image)
    elif what == "series called as a file":
        write_series(root / "imagesTs/q.nii.gz", image)
    elif what == "loose DICOM":
        write_series(root / "imagesTs", image, names=[f"{k}.dcm" for k in range(4)])
        return {"a", "imagesTs"}
    else:
        write_volume(root / f"imagesTs/q{what}", image + 1, affine)
    return {"a", "q"}


@pytest.mark.parametrize(
    "what",
    [
        *(".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".img"),
        *("series", "series called as a file", "loose DICOM"),
        *("flat .nii.gz", "flat .nrrd", "flat .mgz", "patients"),
    ],
)
def test_remedy_that_check_names_works(run, tmp_path, what):
    cases = write_remedied(tmp_path / "my data", what)
    _, out, err = run(tmp_path / "my data", script=check)
    commands = set(re.findall(r"`python -m scripts\.prepare (.+?)`", out + err))
    assert len(commands) == 1, out + err
    status, out, err = run(*shlex.split(commands.pop()))
    assert status == 0, err
    dst = tmp_path / "my data_prepared"
    assert {path.name.split(".")[0] for path in dst.glob("images*/*")} == cases
    assert [path.name for path in dst.glob("labels*/*")] == (["a.nii.gz"] if "a" in cases else [])
    steps = [line.strip() for line in out.splitlines() if line.startswith("  python -m ")]
    words = [shlex.split(step) for step in steps]
    assert [line[2] for line in words] == ["scripts.check", "monai.bundle"]
    status, out, err = run(*words[0][3:], "--strict", script=check)
    assert status == 0, err
    assert "0 findings" in out
    _, _, _, verb, *pairs = words[1]
    options = dict(zip(pairs[::2], pairs[1::2]))
    assert verb == "run"
    assert (ROOT / options["--config_file"]).is_file()
    assert options["--dataset_dir"] == str(dst)
    if "inference" in options["--config_file"]:
        support = default_support(dst)
        check_run(query_list(dst, support), support, dst, output_dir=options["--output_dir"])
    else:
        assert what == "patients"


def test_pictures_and_arrays_are_not_sent_to_prepare(run, tmp_path):
    write_nifti(tmp_path / "imagesTr/a.nii.gz", scan()[0])
    for name in ("b.png", "c.npy"):
        (tmp_path / "imagesTr" / name).write_bytes(b"")
    _, out, err = run(tmp_path, script=check)
    assert "scripts.prepare" not in out + err
    assert out.count("save the volume as NIfTI") == 2


def test_folder_without_scans_is_not_sent_to_prepare(run, tmp_path):
    write_nifti(tmp_path / "labelsTr/a.nii.gz", scan()[1])
    assert run(tmp_path, script=check)[2] == f"error: {tmp_path}: no scans; put NIfTI files into imagesTr\n"


@pytest.mark.parametrize(
    "arguments", ["prepare", "prepare folder", "prepare chaos", "prepare sabs", "prepare mscmr", "check"]
)
def test_help_comes_at_once(arguments):
    """Without importing what takes seconds."""
    script, *words = arguments.split()
    code = f"""
import sys
from scripts import {script}
sys.argv = ["{script}", *{words}, "--help"]
try:
    {script}.main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
slow = {{"torch", "monai", "scipy", "nibabel"}} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SYNOPSIS" in done.stdout + done.stderr
