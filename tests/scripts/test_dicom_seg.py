"""The command that writes results as DICOM segmentations."""

from __future__ import annotations

import sys

import pydicom
import pytest

from scripts import alpnet, dicom_seg

from ..handlers.test_viewer_files import study  # noqa: F401

__all__ = ["study"]


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command line in this process; give back exit status, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # set back afterwards
        status = 0
        try:
            dicom_seg.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:  # as Python ends a program: by the hook
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
        return status, *capsys.readouterr()

    return call


def segments(path):
    return [item.SegmentLabel for item in pydicom.dcmread(path).SegmentSequence]


def test_one_result_onto_the_series_that_is_given(run, study):
    out = study / "x.dcm"
    (study / "out/labels.ctbl").write_text("1 liver 1 2 3 255\n4 kidney 1 2 3 255\n")
    status, told, _ = run(study / "out/a/a_seg.nii.gz", study / "src/a", out)
    assert (status, told) == (0, f"{out}: liver, kidney\n")
    assert segments(out) == ["liver", "kidney"]
    run(study / "out/a/a_seg.nii.gz", study / "src/a", out, "--label_names", "{1: 'Leber'}")
    assert segments(out) == ["Leber", "kidney"]


def test_a_folder_of_results_by_the_data_set(run, study):
    (study / "out/b/b_seg.nii.gz").unlink()
    assert run(study / "out", "--dataset_dir", study / "dst")[0] == 0
    assert segments(study / "out/a/a_seg.dcm") == ["label 1", "label 4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out/a/a_seg.nii.gz"], "give the folder of the DICOM series, or --dataset_dir"),
        (["out/none.nii.gz", "src/a"], "no such label map or folder of results"),
        (["out", "src/a", "x.dcm"], "holds 2 results; out is for one"),
        (["out/b/b_seg.nii.gz", "--dataset_dir", "dst"], "was not prepared from DICOM"),
        (["out/a/a_seg.nii.gz", "nowhere"], "no such folder; give the folder of the DICOM series"),
    ],
)
def test_bad_input_is_one_line(run, study, arguments, words):
    status, _, err = run(*(word if word.startswith("--") else study / word for word in arguments))
    assert status != 0
    assert words in err
    assert "Traceback" not in err


def test_alpnet_knows_the_command():
    assert "dicom_seg" in alpnet.SCRIPTS
