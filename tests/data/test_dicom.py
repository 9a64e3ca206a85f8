"""DICOM folders as they really are: what becomes of every file."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, JPEGLosslessSV1, RTDoseStorage, SecondaryCaptureImageStorage, generate_uid

from bundle.data import label_names
from bundle.data.prepare import Options, dicom_frames, make_recipe, prepare_dataset

from .archives import scan, write_nifti, write_series
from .dicom import STUDY, edit, new_file, write_enhanced, write_report, write_structures

SHAPE = (40, 36, 6)
UID = "1.2.826.0.1.3680043.8.498.77"
GRID = np.diag([-1.25, 1.25, 7.7, 1])
GRID[:3, 3] = 100, 80 - 1.25 * (SHAPE[0] - 1), 30


def prepare(tmp_path, **options):
    recipe = make_recipe("folder")
    return prepare_dataset(
        "folder", tmp_path / "src", tmp_path / "dst", recipe, Options(**options), None, 1, False, lambda line: None
    )


def cases(summary):
    return {case["case"]: (case["image"], case["label"]) for case in summary["cases"]}


def aside(summary):
    return {item["file"]: item["reason"] for item in summary["aside"]}


def voxels(tmp_path, case, what="images"):
    return np.asarray(nib.load(tmp_path / f"dst/{what}Tr/{case}.nii.gz").dataobj)


def as_stored(array):
    """Slices ``(rows, columns, slices)`` in the order of the result's axes."""
    return array[::-1].transpose(1, 0, 2)


@pytest.fixture
def study(tmp_path):
    """A series of six slices with everything that a PACS writes."""
    image, _ = scan(SHAPE)
    files = write_series(tmp_path / "src/p1", image, series=UID)
    edit(files, **STUDY, SeriesNumber=4, SeriesDescription="T2 ax", InstanceNumber=[1, 2, 3, 4, 5, 6])
    return files


def test_what_is_no_image_is_set_aside(tmp_path, study):
    folder = study[0].parent
    label = scan(SHAPE)[1]
    write_report(folder / "report.dcm", **STUDY)
    new_file(folder / "presentation.dcm", "1.2.840.10008.5.1.4.1.1.11.1", Modality="PR", **STUDY).save_as(
        folder / "presentation.dcm"
    )
    dose = new_file(folder / "dose.dcm", RTDoseStorage, Modality="RTDOSE", Rows=4, Columns=4, **STUDY)
    dose.save_as(folder / "dose.dcm")
    shot = new_file(folder / "shot", SecondaryCaptureImageStorage, Modality="OT", Rows=4, Columns=4, SamplesPerPixel=3)
    shot.save_as(folder / "shot")
    (folder / "DICOMDIR").write_bytes(study[0].read_bytes())
    (folder / "viewer.exe").write_bytes(b"MZ")
    write_structures(folder / "structures.dcm", label, {1: "Liver", 4: "Spleen"}, UID, **STUDY)
    summary = prepare(tmp_path)
    assert cases(summary) == {"p1": ("p1/", "p1/structures.dcm")}
    found = aside(summary)
    assert sorted(found) == [f"p1/{n}" for n in ("dose.dcm", "presentation.dcm", "report.dcm", "shot", "viewer.exe")]
    assert found["p1/report.dcm"] == "Basic Text SR Storage: no scan"
    assert found["p1/dose.dcm"] == "RT Dose Storage: no scan"
    assert found["p1/shot"] == "a picture in color: no scan"
    assert np.array_equal(voxels(tmp_path, "p1"), as_stored(scan(SHAPE)[0]))


@pytest.mark.parametrize("suffix", [".dicom", ".DCM", ".dic", ".IMA", "", ".1.2.840"])
def test_files_are_seen_whatever_they_are_called(tmp_path, suffix):
    image, _ = scan(SHAPE)
    write_series(tmp_path / "src/p1", image, names=[f"I{k}{suffix}" for k in range(SHAPE[2])])
    assert cases(prepare(tmp_path)) == {"p1": ("p1/", None)}


def test_copies_count_once(tmp_path, study):
    shutil.copy(study[0], study[0].with_name("again.dcm"))
    for path in study:
        (tmp_path / "src/backup").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "src/backup" / path.name)
    resaved = study[0].with_name("resaved.dcm")
    shutil.copy(study[1], resaved)
    edit(resaved, SOPInstanceUID=generate_uid())
    summary = prepare(tmp_path)
    assert len(summary["cases"]) == 1
    assert summary["cases"][0]["shape"][2] == 6
    assert sorted(set(aside(summary).values()))[0].startswith("a copy of IMG-0002-00001.dcm")


def test_slices_of_one_series_in_several_folders(tmp_path, study):
    for path in study[3:]:
        (tmp_path / "src/p1b").mkdir(exist_ok=True)
        path.rename(tmp_path / "src/p1b" / path.name)
    summary = prepare(tmp_path)
    assert [case["shape"] for case in summary["cases"]] == [[36, 40, 6]]


def test_same_identifiers_of_another_patient_are_no_copies(tmp_path, study):
    other = scan(SHAPE, seed=3)[0]
    edit(write_series(tmp_path / "src/p2", other, series=UID), **{**STUDY, "PatientID": "P2"})
    summary = prepare(tmp_path)
    assert sorted(cases(summary)) == ["p1", "p2"]
    assert np.array_equal(voxels(tmp_path, "p2"), as_stored(other))


@pytest.mark.parametrize("same_series", [True, False], ids=["in the series", "in a series of its own"])
@pytest.mark.parametrize("planes", [1, 3])
def test_localizers_are_told_by_their_geometry(tmp_path, study, same_series, planes):
    directions = [(0.0, 1, 0, 0, 0, -1), (1.0, 0, 0, 0, 0, -1), (0.6, 0.8, 0, 0, 0, -1)]
    uid = UID if same_series else "9.9"
    for k in range(planes):
        files = write_series(
            study[0].parent, np.ones((20, 20, 1)), names=[f"scout{k}.dcm"], directions=directions[k], series=uid
        )
        edit(files, **STUDY)
    summary = prepare(tmp_path)
    assert list(cases(summary)) == ["p1"]
    assert summary["cases"][0]["shape"] == [36, 40, 6]
    assert sorted(aside(summary)) == [f"p1/scout{k}.dcm" for k in range(planes)]
    assert all(reason.startswith("a localizer: ") for reason in aside(summary).values())


def test_few_slices_in_another_plane_are_a_localizer(tmp_path, study):
    files = write_series(
        study[0].parent, np.ones((20, 20, 3)), names=list("abc"), series="9.9", directions=(1.0, 0, 0, 0, 0, -1),
        step=(0, 20.0, 0),
    )  # fmt: skip
    edit(files, **STUDY)
    summary = prepare(tmp_path)
    assert list(cases(summary)) == ["p1"]
    assert set(aside(summary).values()) == {"a localizer: 3 images in another plane beside the 6 slices of p1"}


def test_localizer_by_its_header(tmp_path, study):
    files = write_series(study[0].parent, np.ones((20, 20, 5)), names=[f"s{k}.dcm" for k in range(5)], series="9.9")
    edit(files, **STUDY, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    summary = prepare(tmp_path)
    assert list(cases(summary)) == ["p1"]
    assert len(aside(summary)) == 5


def test_each_series_is_a_case(tmp_path, study):
    other = scan((40, 36, 4), seed=2)[0]
    files = write_series(study[0].parent, other, series="9.9", names=[f"x{k}" for k in range(4)])
    edit(files, **STUDY, SeriesNumber=5, SeriesDescription="T1 (post)")
    summary = prepare(tmp_path)
    assert cases(summary) == {
        "p1_4_T2_ax": ("p1/ series 4_T2_ax", None),
        "p1_5_T1_post": ("p1/ series 5_T1_post", None),
    }
    assert np.array_equal(voxels(tmp_path, "p1_5_T1_post"), as_stored(other))


def test_patients_in_one_folder(tmp_path):
    for number, patient in enumerate(("A 1", "B/2")):
        image, label = scan(SHAPE, seed=number)
        names = [f"{number}_{k}" for k in range(SHAPE[2])]
        files = write_series(tmp_path / "src", image, names=names, series=f"1.{number}")
        edit(files, PatientID=patient, SeriesNumber=1)
        write_nifti(tmp_path / f"src/labels/{patient[0]}_{patient[2]}.nii.gz", as_stored(label), GRID)
    summary = prepare(tmp_path)
    assert cases(summary) == {
        "A_1_1": ("./ series 1", "labels/A_1.nii.gz"),
        "B_2_1": ("./ series 1", "labels/B_2.nii.gz"),
    }


@pytest.mark.parametrize(
    "attribute", ["EchoTime", "TemporalPositionIdentifier", "DiffusionBValue", "AcquisitionNumber"]
)
def test_phases_of_a_series_are_cases(tmp_path, attribute):
    first, second = (scan(SHAPE, seed=k)[0] for k in (1, 2))
    for number, image in enumerate((second, first)):
        names = [f"{number}_{k}" for k in range(SHAPE[2])]
        edit(write_series(tmp_path / "src/p1", image, names=names, series=UID), **{attribute: 20 - 10 * number})
    summary = prepare(tmp_path)
    titles = list(cases(summary))
    assert len(titles) == 2
    assert titles[0].endswith("1")
    assert np.array_equal(voxels(tmp_path, titles[0]), as_stored(first))
    assert np.array_equal(voxels(tmp_path, titles[1]), as_stored(second))


def test_slice_that_was_saved_again_is_no_phase(tmp_path, study):
    path = study[0].with_name("derived.dcm")
    shutil.copy(study[2], path)
    edit(path, SOPInstanceUID=generate_uid(), ImageType=["DERIVED", "SECONDARY"], AcquisitionNumber=9)
    summary = prepare(tmp_path)
    assert [case["shape"][2] for case in summary["cases"]] == [6]


def test_times_of_one_multi_frame_file_are_cases(tmp_path):
    first, second = (scan(SHAPE, seed=k)[0] for k in (1, 2))
    path = write_enhanced(tmp_path / "src/p1/I1", np.concatenate([first, second], axis=2))
    data = pydicom.dcmread(path)
    for index, groups in enumerate(data.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence[0].TemporalPositionIndex = 1 + index // 6
        groups.PlanePositionSequence[0].ImagePositionPatient[2] = 30 + 7.7 * (index % 6)
        groups.PixelValueTransformationSequence[0].RescaleSlope = 1
        groups.PixelValueTransformationSequence[0].RescaleIntercept = 0
    data.save_as(path)
    assert list(cases(prepare(tmp_path))) == ["p1_index1", "p1_index2"]
    assert np.array_equal(voxels(tmp_path, "p1_index1"), as_stored(first))
    assert np.array_equal(voxels(tmp_path, "p1_index2"), as_stored(second))


def test_two_images_at_one_place_are_named(tmp_path, study):
    image, _ = scan(SHAPE, seed=5)
    write_series(study[0].parent, image[..., :2], names=["x.dcm", "y.dcm"], series=UID)
    edit([study[0].with_name(n) for n in ("x.dcm", "y.dcm")], **STUDY)
    reason = prepare(tmp_path)["skipped"][0]["reason"]
    assert "IMG-0002-00001.dcm and x.dcm lie at the same place, 30.0 mm" in reason


@pytest.mark.parametrize("gone", [0, 5], ids=["first", "last"])
@pytest.mark.parametrize("attribute", ["ImagesInAcquisition", "NumberOfSeriesRelatedInstances"])
def test_slice_that_is_missing_at_an_end_is_noted(tmp_path, study, gone, attribute):
    edit(study, **{attribute: 6})
    study[gone].unlink()
    notes = prepare(tmp_path)["notes"]
    reach = "37.7 to 68.5" if gone == 0 else "30.0 to 60.8"
    assert notes == [
        f"p1: the header counts 6 images, 5 are here, number {gone + 1} is missing; the scan reaches from {reach} mm"
    ]


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (None, "a slice is missing, 15.40 mm between IMG-0002-00002.dcm and IMG-0002-00004.dcm, from 37.7 to 53.1 mm"),
        (2.0, "the slices are not evenly spaced, 9.70 mm between IMG-0002-00002.dcm and IMG-0002-00003.dcm"),
    ],
    ids=["missing", "uneven"],
)
def test_gaps_are_named_with_their_positions(tmp_path, study, move, words):
    if move is None:
        study[2].unlink()
    else:
        edit(study[2], ImagePositionPatient=[-100.0, -80.0, 30 + 2 * 7.7 + move])
    reason = prepare(tmp_path)["skipped"][0]["reason"]
    assert words.replace("the slices are not evenly spaced", "") in reason


def test_missing_decoder_is_named(tmp_path, study, monkeypatch):
    data = pydicom.dcmread(study[3])
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    data.save_as(study[3])
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", property(lambda self: False))
    reason = prepare(tmp_path)["skipped"][0]["reason"]
    assert "IMG-0002-00004.dcm: its pixels are compressed as JPEG Lossless" in reason
    assert "no decoder is installed: pip install python-gdcm, or the extra" in reason


def test_compressed_series_is_read(tmp_path, study):
    before = as_stored(scan(SHAPE)[0])
    for path in study:
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.JPEGLSLossless)
        data.save_as(path)
    assert prepare(tmp_path)["skipped"] == []
    assert np.array_equal(voxels(tmp_path, "p1"), before)


def test_missing_pydicom_names_the_extra(tmp_path, study, monkeypatch):
    for module in (dicom_frames,):
        monkeypatch.setattr(module, "HAS_PYDICOM", False)
    monkeypatch.setattr("bundle.data.prepare.plain.HAS_PYDICOM", False)
    reason = prepare(tmp_path)["skipped"][0]["reason"]
    assert "DICOM needs pydicom: pip install pydicom highdicom" in reason
    assert '".[dicom]"' in reason


@pytest.mark.parametrize("order", [None, (3, 0, 5, 1, 4, 2)], ids=["in order", "shuffled"])
def test_enhanced_multi_frame(tmp_path, order):
    image, _ = scan(SHAPE)
    write_enhanced(tmp_path / "src/p1/I1", image, order=order)
    summary = prepare(tmp_path)
    assert cases(summary) == {"p1": ("p1/", None)}
    scaled = image * np.arange(1, 7) - np.arange(6)
    assert np.array_equal(voxels(tmp_path, "p1"), as_stored(scaled))
    assert np.allclose(nib.load(tmp_path / "dst/imagesTr/p1.nii.gz").affine, GRID)


def test_frames_without_a_place_are_set_aside(tmp_path, study):
    path = study[0].with_name("cine.dcm")
    data = pydicom.dcmread(study[0])
    data.NumberOfFrames, data.SOPInstanceUID = 2, generate_uid()
    data.PixelData = data.PixelData * 2
    data.save_as(path)
    assert "its 2 frames lack" in aside(prepare(tmp_path))["p1/cine.dcm"]


def test_rescale_of_each_slice(tmp_path, study):
    slopes = [1, 2, 3, 4, 5, 6]
    edit(study, RescaleSlope=slopes, RescaleIntercept=[0, -1, -2, -3, -4, -5])
    prepare(tmp_path)
    assert np.array_equal(voxels(tmp_path, "p1"), as_stored(scan(SHAPE)[0] * np.array(slopes) - np.arange(6)))


def test_white_is_low(tmp_path, study):
    image = scan(SHAPE)[0]
    edit(study, PhotometricInterpretation="MONOCHROME1")
    summary = prepare(tmp_path)
    assert np.array_equal(voxels(tmp_path, "p1"), as_stored(int(image.max()) + int(image.min()) - image))
    assert "MONOCHROME1" in summary["notes"][0]
    edit(study, Modality="CT", SOPClassUID=CTImageStorage)
    prepare(tmp_path)
    assert np.array_equal(voxels(tmp_path, "p1"), as_stored(image))  # HU stay HU, however they are shown


def test_gantry_tilt_is_in_the_affine(tmp_path):
    image, _ = scan(SHAPE)
    tilt = np.radians(20)
    directions = (1.0, 0, 0, 0, np.cos(tilt), np.sin(tilt))
    write_series(tmp_path / "src/p1", image, step=(0, 0, 5.0), directions=directions)
    summary = prepare(tmp_path)
    assert "tilted by 20.0 degrees" in summary["notes"][0]
    affine = nib.load(tmp_path / "dst/imagesTr/p1.nii.gz").affine
    assert np.allclose(affine[:3, 2], (0, 0, 5), atol=1e-4)
    assert np.allclose(affine[:3, 1], (0, 1.25 * np.cos(tilt), -1.25 * np.sin(tilt)), atol=1e-4)


def test_structure_set_of_another_folder_finds_its_series(tmp_path, study):
    image, label = scan(SHAPE)
    ring = label.copy()
    ring[7:30, 4:30, 0] = 2
    ring[12:20, 10:20, 0] = 0  # a hole
    other = write_series(tmp_path / "src/p2", image[..., :5], series="8.8")
    edit(other, **STUDY)
    write_structures(tmp_path / "src/plans/RS.1.2.dcm", ring, {1: "Liver", 2: "ring", 4: "Spleen"}, UID)
    summary = prepare(tmp_path)
    assert cases(summary) == {"p1": ("p1/", "plans/RS.1.2.dcm"), "p2": ("p2/", None)}
    assert label_names(tmp_path / "dst") == {1: "Liver", 2: "ring", 4: "Spleen"}
    assert np.array_equal(voxels(tmp_path, "p1", "labels"), as_stored(np.where(ring == 3, 0, ring)))


def test_structure_set_beside_a_nifti_scan(tmp_path):
    image, label = scan(SHAPE)
    write_nifti(tmp_path / "src/p1/image.nii.gz", as_stored(image), GRID)
    write_structures(tmp_path / "src/p1/RS.dcm", label, {3: "kidney"})
    summary = prepare(tmp_path)
    assert cases(summary) == {"p1": ("p1/image.nii.gz", "p1/RS.dcm")}
    assert np.array_equal(voxels(tmp_path, "p1", "labels"), as_stored(np.where(label == 3, 3, 0)))


def test_label_of_a_series_that_is_not_here_is_said(tmp_path, study):
    write_structures(tmp_path / "src/plans/RS.dcm", scan(SHAPE)[1], {1: "Liver"}, "7.7.7")
    summary = prepare(tmp_path)
    assert cases(summary) == {"p1": ("p1/", None)}
    assert aside(summary) == {"plans/RS.dcm": "a label of series 7.7.7, which is not here; add that series"}


@pytest.mark.parametrize("named", ["P1", UID, STUDY["StudyInstanceUID"], "P1_4"])
def test_label_is_found_by_patient_study_or_series(tmp_path, study, named):
    study[0].parent.rename(tmp_path / "src/IM0001")
    write_nifti(tmp_path / f"src/{named}.nii.gz", as_stored(scan(SHAPE)[1]), GRID)
    assert cases(prepare(tmp_path)) == {"IM0001": ("IM0001/", f"{named}.nii.gz")}


def test_data_set_of_dicom(tmp_path, study):
    (tmp_path / "src/imagesTr").mkdir()
    study[0].parent.rename(tmp_path / "src/imagesTr/a")
    image, label = scan(SHAPE)
    write_structures(tmp_path / "src/labelsTr/a.dcm", label, {1: "Liver"}, UID)
    write_series(tmp_path / "src/imagesTs/b", image, series="5.5")
    summary = prepare(tmp_path)
    assert cases(summary) == {"a": ("imagesTr/a/", "labelsTr/a.dcm"), "b": ("imagesTs/b/", None)}
    assert np.array_equal(voxels(tmp_path, "a", "labels"), as_stored((label == 1).astype(int)))


def test_numbered_folders_of_a_medium_do_not_name_a_case(tmp_path, study):
    (tmp_path / "src/PA000/ST000").mkdir(parents=True)
    study[0].parent.rename(tmp_path / "src/PA000/ST000/SE004")
    summary = prepare(tmp_path)
    assert cases(summary) == {"P1_4_T2_ax": ("PA000/ST000/SE004/", None)}
