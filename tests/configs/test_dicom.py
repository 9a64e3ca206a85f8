"""From DICOM to DICOM in a run of the configs."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pydicom
import pytest

from bundle.data.prepare import make_recipe, prepare_dataset

from ..data.archives import write_series
from ..data.dicom import STUDY, edit, write_structures

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = {1: "liver", 2: "right kidney"}


@pytest.fixture
def study(tmp_path, phantom_dir):
    """Two scans of the phantom as DICOM, the first with a structure set, prepared."""
    for number, case in enumerate(("phantom_01", "phantom_02")):
        image, label = (
            np.asarray(nib.load(phantom_dir / f"{kind}sTr/{case}.nii.gz").dataobj) for kind in ("image", "label")
        )
        uid = f"1.2.3.{number}"
        files = write_series(tmp_path / f"src/{case}", image.astype(int) - int(image.min()), series=uid)
        edit(files, **{**STUDY, "PatientID": case})
        if number == 0:
            write_structures(tmp_path / "src/RS.dcm", label, NAMES, uid)
    prepare_dataset("folder", tmp_path / "src", tmp_path / "dst", make_recipe("folder"), None, None, 1, False)
    return tmp_path


def test_scan_comes_back_as_dicom_with_its_measurements(run_config, study):
    out = run_config("inference", dataset_dir=str(study / "dst"))
    label_map = np.asarray(nib.load(out / "phantom_02/phantom_02_seg.nii.gz").dataobj)
    image = nib.load(study / "dst/imagesTr/phantom_02.nii.gz")
    data = pydicom.dcmread(out / "phantom_02/phantom_02_seg.dcm")
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.1"
    assert data.pixel_array.sum() == (label_map > 0).sum()
    with open(out / "measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"]) for row in rows] == [("phantom_02", name) for name in NAMES.values()]
    for value, row in enumerate(rows, 1):
        inside = label_map == value
        if inside.any():
            voxel_ml = np.prod(image.header.get_zooms()) / 1000
            assert float(row["volume_ml"]) == pytest.approx(inside.sum() * voxel_ml, abs=1e-3)
            assert float(row["mean_intensity"]) == pytest.approx(np.asarray(image.dataobj)[inside].mean(), abs=0.01)
            assert float(row["feet_head_mm"]) == pytest.approx(7.7 * inside.any(axis=(0, 1)).sum(), abs=0.06)
            assert 0 < float(row["confidence"]) <= 100
    assert any((label_map == value).any() for value in NAMES)
    files = sorted(path.name for path in out.iterdir() if path.is_file())
    assert files == ["labels.ctbl", "labels_itksnap.txt", "measurements.csv", "run.json"]
