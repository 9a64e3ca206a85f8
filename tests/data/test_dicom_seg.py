"""Results as DICOM segmentations, opened again by other readers; segmentations as labels."""

from __future__ import annotations

import json

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from bundle.data.dicom_seg import CODES, WHOLE, remembered_series, structure_code, write_case_seg
from bundle.data.prepare import make_recipe, prepare_dataset
from bundle.visualize import label_colors

from .archives import scan, write_nifti, write_series
from .dicom import STUDY, edit, write_enhanced

SHAPE = (40, 36, 6)
UID = "1.2.826.0.1.3680043.8.498.77"
NAMES = {1: "liver", 2: "right kidney", 4: "my structure"}
TILTED = (1.0, 0, 0, 0, np.cos(0.3), np.sin(0.3))


def prepare(tmp_path, **overrides):
    recipe = make_recipe("folder", **overrides)
    return prepare_dataset(
        "folder", tmp_path / "src", tmp_path / "dst", recipe, None, None, 1, False, lambda line: None
    )


def predict(tmp_path, case="p1"):
    """A result on the grid of a prepared scan, and its true label ``(rows, columns, slices)``."""
    image = nib.load(tmp_path / f"dst/imagesTr/{case}.nii.gz")
    label = np.where(scan(SHAPE)[1] == 3, 0, scan(SHAPE)[1])
    array = label[::-1].transpose(1, 0, 2)
    return write_nifti(tmp_path / f"out/{case}/{case}_seg.nii.gz", array, image.affine), label


def series(tmp_path, kind):
    image = scan(SHAPE)[0]
    if kind == "multi-frame":
        files = [write_enhanced(tmp_path / "src/p1/I1", image, order=(3, 0, 5, 1, 4, 2))]
    elif kind == "tilted":
        files = write_series(tmp_path / "src/p1", image, series=UID, step=(0, 0, 5), directions=TILTED)
    elif kind == "head to feet":
        files = write_series(tmp_path / "src/p1", image, series=UID, step=(0, 0, -5))
    else:
        files = write_series(tmp_path / "src/p1", image, series=UID)
    if kind != "anonymous":
        edit(files, **STUDY, SeriesNumber=4, SeriesDescription="T2 ax")
    return files


def by_position(data):
    """Segment numbers ``(rows, columns, slices)`` of an axial segmentation, read frame by frame."""
    found = np.zeros(SHAPE, int)
    for frame, groups in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence):
        place = groups.PlanePositionSequence[0].ImagePositionPatient
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[frame > 0, round((place[2] - 30) / 7.7)] = number
    return found


@pytest.mark.parametrize("kind", ["plain", "head to feet", "tilted", "multi-frame", "anonymous"])
def test_segmentation_lies_on_the_slices_of_its_series(tmp_path, kind):
    files = series(tmp_path, kind)
    prepare(tmp_path)
    result, label = predict(tmp_path)
    if kind == "head to feet":
        label = label[..., ::-1]  # the result's slices run from feet to head
    path, titles = write_case_seg(result, tmp_path / "dst", NAMES, label_colors(NAMES))
    assert path == tmp_path / "out/p1/p1_seg.dcm"
    assert titles == list(NAMES.values())
    read = highdicom.seg.segread(path)
    assert [read.get_segment_description(n).segment_label for n in (1, 2, 3)] == titles
    sources = [pydicom.dcmread(file) for file in files]
    if kind == "multi-frame":
        found = by_position(read)
        assert read.get_volume().spacing == pytest.approx((7.7, 1.25, 1.25))
        assert sources[0].SOPInstanceUID in str(read)
    else:
        uids = [source.SOPInstanceUID for source in sources]
        found = read.get_pixels_by_source_instance(
            uids, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        ).transpose(1, 2, 0)
    assert np.array_equal(np.take([0, 1, 2, 4], found), label)
    assert read.FrameOfReferenceUID == sources[0].get("FrameOfReferenceUID", read.FrameOfReferenceUID)
    if kind != "anonymous":
        assert (read.PatientID, read.StudyInstanceUID) == ("P1", STUDY["StudyInstanceUID"])
        assert read.SeriesNumber == 1004
        assert read.ReferencedSeriesSequence[0].SeriesInstanceUID == sources[0].SeriesInstanceUID


def test_other_readers_see_names_codes_colors_and_voxels(tmp_path):
    import SimpleITK

    series(tmp_path, "plain")
    prepare(tmp_path)
    result, label = predict(tmp_path)
    path, _ = write_case_seg(result, tmp_path / "dst", NAMES, label_colors(NAMES))
    data = pydicom.dcmread(path)
    assert data.Modality == "SEG"
    liver, kidney, other = data.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Liver.value
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeValue == codes.SCT.Kidney.value
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == codes.SCT.Right.value
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Tissue.value
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    rgb = highdicom.color.CIELabColor(*_lab(liver.RecommendedDisplayCIELabValue)).to_rgb()
    assert np.abs(np.subtract(rgb, label_colors([1])[1])).max() <= 2
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert np.array_equal(frames > 0, data.pixel_array > 0)
    assert np.array_equal(np.take([0, 1, 2, 4], by_position(data)), label)


def _lab(stored):
    lightness, a, b = stored
    return lightness / 65535 * 100, a / 65535 * 255 - 128, b / 65535 * 255 - 128


def test_resampled_result_is_brought_back(tmp_path):
    series(tmp_path, "plain")
    prepare(tmp_path, spacing_mm=(2.5, 2.5, 7.7))
    image = nib.load(tmp_path / "dst/imagesTr/p1.nii.gz")
    array = np.zeros(image.shape, np.uint8)
    array[4:10, 4:12, 2] = 1
    result = write_nifti(tmp_path / "out/p1/p1_seg.nii.gz", array, image.affine)
    path, _ = write_case_seg(result, tmp_path / "dst", NAMES, label_colors(NAMES))
    read = highdicom.seg.segread(path)
    assert (read.Rows, read.Columns) == SHAPE[:2]
    assert read.pixel_array.sum() == pytest.approx(4 * array.sum(), rel=0.2)


def test_nothing_labelled_writes_no_file(tmp_path):
    series(tmp_path, "plain")
    prepare(tmp_path)
    result, label = predict(tmp_path)
    write_nifti(result, np.zeros((36, 40, 6), np.uint8), nib.load(result).affine)
    path, titles = write_case_seg(result, tmp_path / "dst", NAMES, label_colors(NAMES))
    assert titles == []
    assert not path.exists()


def test_origin_is_remembered(tmp_path):
    files = series(tmp_path, "plain")
    write_nifti(tmp_path / "src/b.nii.gz", scan(SHAPE)[0])
    prepare(tmp_path)
    content = json.loads((tmp_path / "dst/dicom.json").read_text())
    assert list(content["cases"]) == ["p1"]
    assert "Doe" not in str(content)
    assert remembered_series(tmp_path / "dst", "p1").header.series == UID
    assert remembered_series(tmp_path / "dst", "b") is None
    prepare(tmp_path)  # again, with all cases done
    assert json.loads((tmp_path / "dst/dicom.json").read_text()) == content
    files[0].unlink()
    with pytest.raises(ValueError, match="the DICOM file of p1 is gone"):
        remembered_series(tmp_path / "dst", "p1")


def test_series_is_found_by_the_grid(tmp_path):
    series(tmp_path, "plain")
    write_series(tmp_path / "src/p2", scan((30, 36, 6))[0], series="9.9")
    prepare(tmp_path)
    result, _ = predict(tmp_path)
    path, _ = write_case_seg(result, None, NAMES, label_colors(NAMES), tmp_path / "src", tmp_path / "x.dcm")
    assert pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID == UID
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_case_seg(result, None, NAMES, label_colors(NAMES), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no DICOM series"):
        write_case_seg(result, None, NAMES, label_colors(NAMES), tmp_path / "dst")


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, "ours") for kind in ("plain", "head to feet", "tilted", "multi-frame", "anonymous")),
        *((kind, form) for kind in ("plain", "multi-frame") for form in ("FRACTIONAL", "LABELMAP")),
    ],
)
def test_segmentation_is_read_as_a_label(tmp_path, kind, form):
    files = series(tmp_path, kind)
    prepare(tmp_path)
    result, label = predict(tmp_path)
    path, _ = write_case_seg(result, tmp_path / "dst", NAMES, label_colors(NAMES))
    if form != "ours":
        read = highdicom.seg.segread(path)
        order = (3, 0, 5, 1, 4, 2) if kind == "multi-frame" else range(6)
        numbers = np.searchsorted([0, *NAMES], label).astype(np.uint8).transpose(2, 0, 1)[list(order)]
        array = numbers if form == "LABELMAP" else (numbers[..., None] == [1, 2, 3]) * np.float32(0.9)
        headers = [pydicom.dcmread(file) for file in files]
        for header in headers:
            for name in WHOLE:
                setattr(header, name, header.get(name, ""))
        highdicom.seg.Segmentation(
            headers, array, form, read.SegmentSequence, "1.2.3.4", 7, "1.2.3.5", 1, "m", "m", "1", "1"
        ).save_as(path)
    path.rename(tmp_path / "src/SEG0001")
    summary = prepare(tmp_path)
    assert [(case["image"], case["label"]) for case in summary["cases"]] == [("p1/", "SEG0001")]
    assert summary["label_names"] == {"0": "background", "1": "liver", "2": "right kidney", "3": "my structure"}
    found = np.asarray(nib.load(tmp_path / "dst/labelsTr/p1.nii.gz").dataobj)
    assert np.array_equal(np.take([0, 1, 2, 4], found), label[::-1].transpose(1, 0, 2))


def test_one_segmentation_for_each_structure(tmp_path):
    series(tmp_path, "plain")
    prepare(tmp_path)
    result, label = predict(tmp_path)
    whole, affine = np.asarray(nib.load(result).dataobj).copy(), nib.load(result).affine
    for value in NAMES:
        write_nifti(result, np.where(whole == value, value, 0).astype(np.uint8), affine)
        write_case_seg(result, tmp_path / "dst", NAMES, label_colors(NAMES), path=tmp_path / f"src/seg/{value}.dcm")
    summary = prepare(tmp_path)
    assert [case["label"] for case in summary["cases"]] == ["seg/"]
    assert sorted(summary["cases"][0]["voxels"].values()) == sorted(int((label == value).sum()) for value in NAMES)


def test_segmentation_of_another_grid_is_refused(tmp_path):
    series(tmp_path, "plain")
    prepare(tmp_path)
    result, _ = predict(tmp_path)
    write_case_seg(result, tmp_path / "dst", NAMES, label_colors(NAMES), path=tmp_path / "src/seg.dcm")
    for path in (tmp_path / "src/p1").iterdir():
        edit(path, PixelSpacing=[1.5, 1.5])
    reason = prepare(tmp_path)["skipped"][0]["reason"]
    assert "seg.dcm: " in reason
    assert "of another one?" in reason or "not those of the scan" in reason


@pytest.mark.parametrize(
    ("name", "kind", "side"),
    [
        ("liver", "Liver", None),
        ("Kidney_Left", "Kidney", "Left"),
        ("right kidney", "Kidney", "Right"),
        ("kidneys", "Kidney", None),
        ("Left-Hippocampus", "Hippocampus", "Left"),
        ("left ventricle", "LeftVentricle", None),
        ("LV", "LeftVentricle", None),
        ("heartVentricleLeft", "Tissue", "Left"),
        ("label 3", "Tissue", None),
        ("tumor", "Mass", None),
    ],
)
def test_names_have_codes(name, kind, side):
    _, found, where = structure_code(name)
    assert found[0] == getattr(codes.SCT, kind).value
    assert where == (None if side is None else (getattr(codes.SCT, side).value, side))


def test_codes_are_those_of_the_standard():
    known = {(code.value, code.meaning.lower()) for code in (getattr(codes.SCT, name) for name in codes.SCT.dir())}
    table = {(entry["code"], meaning.lower()) for meaning, entry in json.loads(CODES.read_text()).items()}
    assert table - known == {("74281007", "myocardium")}  # SNOMED CT's, which the standard's lists lack
