from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import SegmentationStorage

from bundle.data.datastore import Datastore, label_value_names, label_values, studies_folder
from scripts.next_sample import next_sample

from ..conftest import save_nifti
from ..integration.studies import make_studies
from .dicom import item, new_file

ORGANS = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]


def write_label(studies, case, values):
    label = np.zeros((8, 8, 4), np.uint8)
    label.ravel()[: len(values)] = values
    nib.save(nib.Nifti1Image(label, np.eye(4)), studies / "labels" / "final" / f"{case}.nii.gz")


@pytest.mark.parametrize(
    ("values", "info", "expected"),
    [
        pytest.param([1, 2], ORGANS, {1: "liver", 2: "spleen"}, id="as listed"),
        pytest.param([2], ORGANS, {2: "spleen"}, id="one not drawn"),
        pytest.param([1, 2], [{"name": "a", "idx": 2}, {"name": "b", "idx": 3}], {1: "a", 2: "b"}, id="shifted"),
        pytest.param([4, 6], [], {4: "label 4", 6: "label 6"}, id="no names"),
    ],
)
def test_values_get_the_names_of_the_datastore(values, info, expected):
    assert label_value_names(values, info) == expected


def test_values_that_cannot_be_named_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 5, 7\] do not fit"):
        label_value_names([1, 5, 7], ORGANS)


def test_names_decide_what_belongs_together(tmp_path, phantom_dir):
    swapped = [{"name": "spleen", "idx": 1}, {"name": "kidney", "idx": 2}]
    studies = make_studies(tmp_path / "s", phantom_dir, {"phantom_03": ORGANS, "phantom_01": swapped})
    write_label(studies, "phantom_03", [1, 2])
    write_label(studies, "phantom_01", [1, 2])
    datastore = Datastore(studies)
    assert datastore.finished() == ["phantom_03", "phantom_01"]  # in the order of their completion
    assert datastore.unlabelled() == ["phantom_02", "phantom_04"]
    entries, names = datastore.entries(datastore.finished())
    assert names == {"liver": 1, "spleen": 2, "kidney": 3}
    assert [entry["values"] for entry in entries] == [{"1": 1, "2": 2}, {"1": 2, "2": 3}]


def test_a_label_fetched_as_a_dicom_segmentation_has_the_names_of_its_segments(tmp_path, phantom_dir):
    studies = make_studies(tmp_path / "s", phantom_dir, {"phantom_03": []})
    write_label(studies, "phantom_03", [1, 2])
    index = json.loads((studies / "datastore_v2.json").read_text())
    index["objects"]["phantom_03"]["labels"]["final"]["info"] = {"SeriesInstanceUID": "1.2.3", "ts": 0}
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    assert Datastore(studies).entries(["phantom_03"])[1] == {"label 1": 1, "label 2": 2}  # only its voxels are there
    segments = [item(SegmentNumber=2, SegmentLabel="liver"), item(SegmentNumber=1, SegmentLabel="spleen")]
    file = studies / "labels" / "final" / "1.2.3" / "a.dcm"
    new_file(file, SegmentationStorage, SegmentSequence=segments).save_as(file)
    assert Datastore(studies).entries(["phantom_03"])[1] == {"spleen": 1, "liver": 2}


@pytest.mark.parametrize(
    ("studies", "copies", "expected"),
    [
        (None, "", None),
        ("", "", None),
        ("/data/studies", "/copies", "/data/studies"),
        ("http://127.0.0.1:8042/dicom-web/", "/copies", "/copies/488fca1f7f3f98331f6f7756beca0d35"),
        ("http://127.0.0.1:8042/dicom-web", "", "~/.cache/monailabel/dicom/488fca1f7f3f98331f6f7756beca0d35"),
    ],
)
def test_the_server_says_where_its_studies_are(monkeypatch, studies, copies, expected):
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)
    if studies is not None:
        monkeypatch.setenv("MONAI_LABEL_STUDIES", studies)
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", copies)
    assert studies_folder() == (expected and os.path.expanduser(expected))


def test_an_image_is_known_by_its_file(tmp_path, phantom_dir):
    datastore = Datastore(make_studies(tmp_path / "s", phantom_dir))
    assert datastore.identify(tmp_path / "s" / "phantom_02.nii.gz") == "phantom_02"
    assert datastore.identify(phantom_dir / "imagesTr" / "phantom_02.nii.gz") is None
    assert Datastore.find(phantom_dir / "imagesTr" / "phantom_02.nii.gz") is None
    assert Datastore.find(phantom_dir / "imagesTr" / "phantom_02.nii.gz", tmp_path / "s") is not None


@pytest.mark.parametrize(
    ("key", "message"), [("nobody", "no such image"), ("phantom_02", "no finished label"), ("phantom_01", "is empty")]
)
def test_an_unusable_support_is_named(tmp_path, phantom_dir, key, message):
    studies = make_studies(tmp_path / "s", phantom_dir, {"phantom_01": ORGANS})
    write_label(studies, "phantom_01", [])
    with pytest.raises(ValueError, match=message):
        Datastore(studies).entries([key])


@pytest.mark.parametrize("path", ["../out.nii.gz", "/etc/passwd", "link.nii.gz"])
def test_paths_stay_inside_the_studies_folder(tmp_path, phantom_dir, path):
    studies = make_studies(tmp_path / "s", phantom_dir)
    (tmp_path / "out.nii.gz").touch()
    (studies / "link.nii.gz").symlink_to(tmp_path / "out.nii.gz")
    with pytest.raises(ValueError, match="outside of the studies folder"):
        Datastore(studies).inside(path)


@pytest.mark.parametrize("key", ["../secret", "a/../../secret", "/etc/passwd"])
@pytest.mark.parametrize("part", ["image", "labels"])
def test_an_index_names_no_file_outside_of_the_folder(tmp_path, key, part):
    item = {"image": {"ext": ".nii.gz"}, "labels": {"final": {"ext": ".nii.gz"}}}
    if part == "labels":  # the image's name is harmless, its label's suffix is not
        key, item["labels"]["final"]["ext"] = "a", f"/../../../../{key}"
    studies = tmp_path / "s"
    studies.mkdir()
    (studies / "datastore_v2.json").write_text(json.dumps({"objects": {key: item}}))
    with pytest.raises(ValueError, match="lies outside of the folder; repair the index"):
        Datastore(studies).finished()


def test_a_missing_file_is_named(tmp_path, phantom_dir):
    with pytest.raises(ValueError, match="no such file"):
        Datastore(make_studies(tmp_path / "s", phantom_dir)).inside("labels/final/x.nii.gz")


def test_a_broken_index_is_named(tmp_path):
    (tmp_path / "datastore_v2.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        Datastore(tmp_path)


def test_a_changed_label_is_read_again(tmp_path, phantom_dir):
    studies = make_studies(tmp_path / "s", phantom_dir, {"phantom_01": ORGANS})
    write_label(studies, "phantom_01", [1])
    path = studies / "labels" / "final" / "phantom_01.nii.gz"
    assert label_values(path) == [1]
    write_label(studies, "phantom_01", [1, 2, 9])
    assert label_values(path) == [1, 2, 9]


def test_the_scan_that_agrees_least_is_listed_first(tmp_path, phantom_dir):
    studies = make_studies(tmp_path / "s", phantom_dir, {"phantom_01": ORGANS})
    index = json.loads((studies / "datastore_v2.json").read_text())
    for case, reverse_dice in (("phantom_02", {"a": 0.5, "b": 0.52}), ("phantom_03", {"a": 0.9, "b": 0.1, "c": 0.2})):
        params = {"support_similarity": 0.1, "reverse_dice": reverse_dice}
        index["objects"][case]["labels"]["original"] = {"ext": ".nii.gz", "info": {"params": params}}
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    lines = next_sample(str(studies)).splitlines()
    assert lines == ["phantom_04\tnot segmented yet", "phantom_03\t0.40\tb 0.10", "phantom_02\t0.51\ta 0.50"]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_values_of_a_label_that_a_tool_scaled_are_whole(tmp_path, dtype):
    values = np.zeros((4, 4, 3), dtype)
    values[1:3], values[3] = 1, 3
    path = save_nifti(tmp_path / "l.nii.gz", (values * 0.99998).astype(dtype) if dtype is np.float32 else values)
    assert label_values(path) == [1, 3]
