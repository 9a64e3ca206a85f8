"""What viewers want beside the label maps."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from bundle.data.label_table import read_label_table
from bundle.data.prepare import make_recipe, prepare_dataset
from bundle.handlers import ViewerFiles

from ..data.archives import scan, write_nifti, write_series

NAMES = {1: "liver", 4: "left kidney"}


@pytest.fixture
def study(tmp_path):
    """A data set of one DICOM series and one NIfTI file, and a result of each."""
    image, label = scan()
    write_series(tmp_path / "src/a", image)
    write_nifti(tmp_path / "src/b.nii.gz", image, np.diag([1.0, 1, 3, 1]))
    prepare_dataset("folder", tmp_path / "src", tmp_path / "dst", make_recipe("folder"), None, None, 1, False)
    for case in "ab":
        source = nib.load(tmp_path / f"dst/imagesTr/{case}.nii.gz")
        array = label[::-1].transpose(1, 0, 2) if case == "a" else label
        write_nifti(tmp_path / f"out/{case}/{case}_seg.nii.gz", np.where(array % 3 == 1, array, 0), source.affine)
    return tmp_path


def run(folder, cases, dataset=None, **options):
    maps = []
    for case in cases:
        found = nib.load(folder / f"out/{case}/{case}_seg.nii.gz")
        meta = {"filename_or_obj": str((dataset or folder / "dst") / f"imagesTr/{case}.nii.gz")}
        maps.append(MetaTensor(torch.from_numpy(np.asarray(found.dataobj).astype(np.int16))[None], meta=meta))
    engine = Engine(lambda _, item: [{"pred": item[0]["map"]}])
    ViewerFiles(folder / "out", NAMES, folder / "dst", **options).attach(engine)
    engine.run([[{"map": each}] for each in maps], max_epochs=1)


def test_tables_and_segmentations_are_written(study):
    run(study, "ab")
    assert read_label_table(study / "out/labels_itksnap.txt") == NAMES
    assert read_label_table(study / "out/labels.ctbl") == {1: "liver", 4: "left_kidney"}
    data = pydicom.dcmread(study / "out/a/a_seg.dcm")
    assert [item.SegmentLabel for item in data.SegmentSequence] == list(NAMES.values())
    assert not (study / "out/b/b_seg.dcm").exists()


def test_segmentations_can_be_left_out(study):
    run(study, "a", dicom_seg=False)
    assert not (study / "out/a/a_seg.dcm").exists()
    assert (study / "out/labels.ctbl").exists()


def test_scan_of_another_folder_is_not_taken_for_one_of_the_data_set(study):
    run(study, "a", dataset=study / "elsewhere")
    assert not (study / "out/a/a_seg.dcm").exists()


def test_segmentation_that_cannot_be_written_is_one_line(study, caplog):
    caplog.set_level(logging.WARNING)
    for path in (study / "src/a").iterdir():
        path.unlink()
    run(study, "a")
    assert [record.message.startswith("a: no DICOM segmentation (") for record in caplog.records] == [True]
    assert "is gone; give the series' folder, or prepare again" in caplog.records[0].message
