"""A clinic end to end: an archive with DICOMweb, MONAI Label with the bundle, and OHIF in a browser."""

from __future__ import annotations

import json

import highdicom
import numpy as np
import pytest
import SimpleITK

from bundle.data.datastore import Datastore
from bundle.data.dicom_seg import write_case_seg
from bundle.data.phantom import PHANTOM_LABELS
from bundle.visualize import label_colors

from ..conftest import ROOT, not_installed
from .client import NAME, make_app, serve
from .clinic import missing_parts, open_viewer, serve_archive, write_study

pytestmark = pytest.mark.slow
WEIGHTS = ROOT / "models" / "pretrained" / "efficientnet_lite0_imagenet.pt"
APP_LABELS = ["spleen", "liver", "left kidney", "right kidney"]  # in another order than the phantom's
NAMES = {value: name for value, name in PHANTOM_LABELS.items() if value}


@pytest.fixture
def clinic(python, tmp_path):
    """The archive with two studies, a client of the server, and the server's own copy of the studies."""
    if missing_parts():
        not_installed(f"{', '.join(missing_parts())}; see .ci/run")
    grid = ((96, 96, 12), (3.4, 3.4, 14.0))
    studies = [write_study(tmp_path / f"study_{n}", n, *grid, head_first=n == 2) for n in (1, 2)]
    settings = {
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}',
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache"),
    }
    with serve_archive(tmp_path) as archive:
        for study in studies:
            archive.send(study.files)
        app = make_app(python, tmp_path / "app", WEIGHTS, labels=",".join(APP_LABELS))
        try:
            with serve(python, app, archive.dicom_web, tmp_path / "server.log", settings) as client:
                yield archive, client, studies
        finally:
            print((tmp_path / "server.log").read_text()[-4000:])


def voxels(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image)


def assert_same_grid(image: SimpleITK.Image, other: SimpleITK.Image) -> None:
    assert image.GetSize() == other.GetSize()
    np.testing.assert_allclose(image.GetOrigin(), other.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing(), other.GetSpacing(), atol=1e-4)
    np.testing.assert_allclose(image.GetDirection(), other.GetDirection(), atol=1e-5)


def renumbered(label: np.ndarray, old: dict[str, int], new: dict[str, int]) -> np.ndarray:
    """A label map with the values that other names have there."""
    table = np.zeros(256, np.uint8)
    table[[old[name] for name in old]] = [new[name] for name in old]
    return table[label]


def read_segments(segmentation, series: SimpleITK.Image) -> dict[str, np.ndarray]:
    """Masks of a DICOM segmentation by their names, on the grid of the series, read by highdicom."""
    found = highdicom.seg.Segmentation.from_dataset(segmentation)
    names = [found.get_segment_description(number).segment_label for number in found.segment_numbers]
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(series.GetDirection(), (3, 3)) * series.GetSpacing())[:, ::-1]  # slices, rows, columns
    affine[:3, 3] = series.GetOrigin()
    grid = highdicom.VolumeGeometry(affine, series.GetSize()[::-1], coordinate_system="PATIENT")
    volume = found.get_volume(combine_segments=False).match_geometry(grid, tol=1e-3)
    return {name: volume.array[..., index] > 0 for index, name in enumerate(names)}


def test_a_study_goes_from_the_archive_through_ohif_and_back(clinic, tmp_path):
    archive, client, (labelled, other) = clinic
    status, answer = client.infer(labelled.series)
    assert status == 400
    assert "GET /datastore/?output=train" in answer["detail"]

    # a label that was drawn elsewhere comes from the archive as a DICOM segmentation, with its names
    SimpleITK.WriteImage(labelled.label, tmp_path / "drawn.nii.gz")
    file, titles = write_case_seg(tmp_path / "drawn.nii.gz", None, NAMES, label_colors(NAMES), labelled.files[0].parent)
    assert titles == list(NAMES.values())
    archive.send([file])
    truth = {name: voxels(labelled.label) == value for value, name in NAMES.items()}
    np.testing.assert_equal(read_segments(archive.segmentations(labelled)[0], labelled.label), truth)
    assert len(json.loads(client.call("GET", "/datastore/", {"output": "train"})[2])) == 1
    status, answer = client.infer(other.series, tmp_path / "answer.nii.gz")
    assert status == 200, answer
    assert answer["support"] == [f"{labelled.series}.nii.gz"]
    assert answer["label_values"] == {name: value for value, name in enumerate(APP_LABELS, start=1)}
    result = SimpleITK.ReadImage(tmp_path / "answer.nii.gz")
    assert_same_grid(result, other.label)
    for name, value in answer["label_names"].items():  # what is called spleen is the spleen
        overlaps = {
            title: ((voxels(result) == value) & (voxels(other.label) == number)).sum()
            for number, title in NAMES.items()
        }
        assert max(overlaps, key=overlaps.__getitem__) == name

    with open_viewer(client.url, tmp_path) as viewer:
        # the study is segmented in OHIF: the same voxels, under OHIF's numbers of the names
        assert viewer.open("Phantom, 2", "MONAI Label") == ["Phantom, 1", "Phantom, 2"]
        assert viewer.connect() == [NAME]
        before = viewer.picture("opened")
        sent, form = viewer.run()
        (tmp_path / "sent.nrrd").write_bytes(sent)
        np.testing.assert_array_equal(voxels(SimpleITK.ReadImage(tmp_path / "sent.nrrd")), voxels(result))
        assert viewer.segments() == {name: value for value, name in enumerate(sorted(APP_LABELS), start=1)}
        shown = viewer.label_map()
        assert_same_grid(shown, other.label)
        expected = renumbered(voxels(result), answer["label_values"], viewer.segments())
        np.testing.assert_array_equal(voxels(shown), expected)
        assert viewer.picture("segmented") > before + 2000

        # it is submitted as OHIF's client would, which has no button for it
        info = [{"name": name, "idx": value} for name, value in viewer.segments().items()]
        (tmp_path / "label.bin").write_bytes(voxels(shown).tobytes())
        status, _, content = client.call(
            "PUT",
            "/datastore/label",
            {"image": other.series},
            fields={"params": json.dumps({"label_info": info})},
            files={"label": tmp_path / "label.bin"},
        )
        assert status == 200, content
        submitted = {name: voxels(result) == value for name, value in answer["label_names"].items()}
        np.testing.assert_equal(read_segments(archive.segmentations(other)[-1], other.label), submitted)

    with open_viewer(client.url, tmp_path) as viewer:
        # OHIF opens what came into the archive, and what OHIF writes is the same again
        viewer.open("Phantom, 2", "Segmentation")
        viewer.load_segmentation()
        assert list(viewer.segments()) == sorted(submitted)
        assert viewer.picture("archived") > 2000
        viewer.upload(viewer.download(tmp_path / "ohif.dcm"))
        segmentations = archive.segmentations(other)
        assert len(segmentations) == 2
        np.testing.assert_equal(read_segments(segmentations[-1], other.label), submitted)

    (studies,) = (tmp_path / "cache").iterdir()
    assert Datastore(studies).finished() == [labelled.series, other.series]
    assert set(Datastore(studies).entries([other.series])[1]) == set(submitted)
