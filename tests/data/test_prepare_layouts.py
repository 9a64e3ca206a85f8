"""Preparation of the layouts and file formats that people have: what becomes of every file."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bundle.data import case_name, default_support, label_names, query_list
from bundle.data.prepare import Options, format_summary, formats, make_recipe, prepare_dataset
from bundle.data.prepare.look import judge

from .archives import scan, write_itk, write_nifti, write_series, write_volume

SHAPE = (40, 36, 6)
OBLIQUE = np.array([[-1.2, -0.9, 0, 10.0], [-0.9, 1.2, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])
NAMES = ("liver", "kidney_left", "kidney_right", "spleen")


def prepare(src, dst, **options):
    lines: list[str] = []
    summary = prepare_dataset(
        "folder", src, dst, make_recipe("folder"), Options(**options), None, 1, False, lines.append
    )
    assert lines == [f"skipped {item['case']}: {item['reason']}" for item in summary["skipped"]]
    return summary


def pairs(summary):
    return {case["case"]: (case["image"], case["label"]) for case in summary["cases"]}


def aside(summary):
    return {item["file"]: item["reason"] for item in summary["aside"]}


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("suffix", [".nii", ".NII", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".img"])
@pytest.mark.parametrize("label_suffix", [".nii.gz", None], ids=["label as NIfTI", "label in the same format"])
def test_every_format_keeps_its_voxels_and_its_place(tmp_path, suffix, label_suffix):
    image, label = scan(SHAPE)
    write_volume(tmp_path / f"src/a{suffix}", image, OBLIQUE)
    if label_suffix:
        write_nifti(tmp_path / "src/a_seg.nii.gz", label, OBLIQUE)
    else:
        write_volume(tmp_path / f"src/a_seg{suffix}", label, OBLIQUE)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert pairs(summary) == {"a": (f"a{suffix}", f"a_seg{label_suffix or suffix}")}
    assert aside(summary) == {}
    out = nib.load(tmp_path / "dst/imagesTr/a.nii.gz")
    assert np.array_equal(np.asarray(out.dataobj), image)
    assert np.allclose(out.affine, OBLIQUE, atol=1e-4)
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/a.nii.gz"), label)


def test_analyze_is_read_and_its_missing_orientation_is_said(tmp_path):
    image, label = scan(SHAPE)
    (tmp_path / "src").mkdir()
    nib.save(nib.AnalyzeImage(image, None), tmp_path / "src/a.img")
    nib.save(nib.AnalyzeImage(label.astype(np.int16), None), tmp_path / "src/a_label.img")
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert summary["notes"] == ["a.img: Analyze files do not say which side is left; check it in a viewer"]
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/a.nii.gz"), label)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_missing_package_is_named(tmp_path, monkeypatch, suffix):
    write_volume(tmp_path / f"src/a{suffix}", scan(SHAPE)[0], OBLIQUE)
    monkeypatch.setattr(formats, "HAS_SITK", False)
    reason = prepare(tmp_path / "src", tmp_path / "dst")["skipped"][0]["reason"]
    assert reason.endswith(f"a{suffix}: reading {suffix} needs SimpleITK: pip install SimpleITK")


def segments(*entries):
    """The header of a segmentation of 3D Slicer from ``(name, value, layer)``."""
    keys = ("Name", "LabelValue", "Layer")
    return {f"Segment{i}_{key}": str(v) for i, entry in enumerate(entries) for key, v in zip(keys, entry)}


def test_segmentation_of_slicer_is_placed_by_its_header_and_keeps_its_names(tmp_path):
    image, label = scan(SHAPE)
    write_itk(tmp_path / "src/p1/image.nrrd", image, OBLIQUE)
    start = np.eye(4)
    start[:3, 3] = 9, 10, 0
    texts = segments(*((name, value, 0) for value, name in enumerate(NAMES, 1)))
    write_itk(tmp_path / "src/p1/Segmentation.seg.nrrd", label[9:35, 10:25], OBLIQUE @ start, texts)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert pairs(summary) == {"p1": ("p1/image.nrrd", "p1/Segmentation.seg.nrrd")}
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/p1.nii.gz"), label)
    assert label_names(tmp_path / "dst") == dict(enumerate(NAMES, 1))


def test_segments_are_one_structure_by_their_names_whatever_their_numbers(tmp_path):
    image, label = scan(SHAPE)
    for case, order in (("a", (1, 2)), ("b", (2, 1))):
        write_itk(tmp_path / f"src/{case}.nrrd", image + len(case))
        stored = np.select([label == 1, label == 2], order).astype(np.uint8)
        write_itk(
            tmp_path / f"src/{case}.seg.nrrd", stored, texts=segments(("Liver", order[0], 0), ("spleen", order[1], 0))
        )
    prepare(tmp_path / "src", tmp_path / "dst")
    first, second = (voxels(tmp_path / f"dst/labelsTr/{case}.nii.gz") for case in "ab")
    assert np.array_equal(first, np.where(label < 3, label, 0))
    assert np.array_equal(first, second)
    assert label_names(tmp_path / "dst") == {1: "Liver", 2: "spleen"}


def test_labels_with_and_without_names_are_kept_apart(tmp_path):
    image, label = scan(SHAPE)
    for index, case in enumerate("ab"):
        write_itk(tmp_path / f"src/{case}.nrrd", image + index)
    texts = segments(("liver", 1, 0), ("spleen", 2, 0))
    write_itk(tmp_path / "src/a.seg.nrrd", np.where(label < 3, label, 0).astype(np.uint8), texts=texts)
    write_itk(tmp_path / "src/b-label.nrrd", (label == 1).astype(np.uint8))
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert label_names(tmp_path / "dst") == {1: "label 1", 2: "liver", 3: "spleen"}
    assert [list(case["voxels"]) for case in summary["cases"]] == [["2", "3"], ["1"]]
    assert summary["notes"][0].startswith("labels of b keep their values, the other cases are numbered by the names")


def test_layers_that_overlap_keep_the_smaller_structure(tmp_path):
    image, label = scan(SHAPE)
    tumor = np.zeros_like(label)
    tumor[12, 13, 1] = 1
    layers = np.stack([(label == 1).astype(np.uint8), tumor], -1)
    write_itk(tmp_path / "src/a.nrrd", image)
    texts = segments(("liver", 1, 0), ("tumor", 1, 1))
    write_itk(tmp_path / "src/a.seg.nrrd", layers, texts=texts, layers=True)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    out = voxels(tmp_path / "dst/labelsTr/a.nii.gz")
    assert label_names(tmp_path / "dst") == {1: "liver", 2: "tumor"}
    assert np.array_equal(out == 2, tumor == 1)
    assert np.array_equal(out > 0, label == 1)
    assert "overlap in 1 voxels" in summary["notes"][0]


def test_masks_of_totalsegmentator_become_one_label_map(tmp_path):
    for case, there in (("s0001", (1, 2, 3, 4)), ("s0002", (1, 4)), ("s0003", ())):
        image, label = scan(SHAPE, seed=len(there))
        write_nifti(tmp_path / f"src/{case}/ct.nii.gz", image - 1000)
        for value, name in enumerate(NAMES, 1) if there else ():
            mask = (label == value) & (value in there)
            write_nifti(tmp_path / f"src/{case}/segmentations/{name}.nii.gz", mask.astype(np.uint8) * 255)
    _, label = scan(SHAPE)
    write_nifti(tmp_path / "src/s0001/segmentations/liver.nii.gz", ((label == 1) | (label == 4)).astype(np.uint8))
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert pairs(summary) == {
        "s0001_ct": ("s0001/ct.nii.gz", "s0001/segmentations/"),
        "s0002_ct": ("s0002/ct.nii.gz", "s0002/segmentations/"),
        "s0003_ct": ("s0003/ct.nii.gz", None),
    }
    assert label_names(tmp_path / "dst") == {1: "kidney_left", 2: "kidney_right", 3: "liver", 4: "spleen"}
    ours = np.take([0, 3, 1, 2, 4], label)
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/s0001_ct.nii.gz"), ours)
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/s0002_ct.nii.gz"), np.where(ours > 2, ours, 0))
    assert summary["notes"] == [
        "s0001_ct: liver.nii.gz and spleen.nii.gz overlap in 32 voxels, which go to spleen.nii.gz"
    ]


@pytest.mark.parametrize(
    ("file", "files"),
    [
        ("a", ("a_liver_mask", "a_spleen_mask")),
        ("a", ("masks/a_liver", "masks/a_spleen")),
        ("a", ("liver_masks/a", "spleen_masks/a")),
        ("ct", ("liver", "spleen")),
        ("p1/imaging", ("p1/liver", "p1/spleen")),
        ("sub-01_T1w", ("sub-01_label-liver_mask", "sub-01_label-spleen_mask")),
    ],
)
def test_masks_beside_their_scan_become_one_label_map(tmp_path, file, files):
    image, label = scan(SHAPE)
    write_nifti(tmp_path / f"src/{file}.nii.gz", image)
    for value, mask in enumerate(files, 1):
        write_nifti(tmp_path / f"src/{mask}.nii.gz", (label == value).astype(np.uint8))
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert label_names(tmp_path / "dst") == {1: "liver", 2: "spleen"}
    name = summary["cases"][0]["case"]
    assert np.array_equal(voxels(tmp_path / f"dst/labelsTr/{name}.nii.gz"), np.where(label < 3, label, 0))
    assert len(summary["cases"]) == 1


def test_one_file_of_slicer_for_each_structure_and_two_images(tmp_path):
    image, label = scan(SHAPE)
    for case in ("case_01", "case_02"):
        place = tmp_path / f"src/{case}"
        write_itk(place / f"{case}_IMG_CT.nrrd", image - 1000, OBLIQUE)
        write_itk(place / f"{case}_IMG_MR_T1.nrrd", image[1:], OBLIQUE)
        for value, name in enumerate(NAMES, 1):
            mask = (label == value).astype(np.uint8)
            write_itk(place / f"{case}_OAR_{name}.seg.nrrd", mask, OBLIQUE, segments((name, 1, 0)))
    found = pairs(prepare(tmp_path / "src", tmp_path / "dst", image="CT"))
    assert found == {f"{case}_IMG_CT": (f"{case}/{case}_IMG_CT.nrrd", f"{case}/") for case in ("case_01", "case_02")}
    assert sorted(label_names(tmp_path / "dst").values()) == sorted(NAMES)
    assert (voxels(tmp_path / "dst/labelsTr/case_02_IMG_CT.nii.gz") > 0).sum() == (label > 0).sum()


def test_values_of_no_segment_are_said(tmp_path):
    image, label = scan(SHAPE)
    write_itk(tmp_path / "src/a.nrrd", image)
    write_itk(tmp_path / "src/a.seg.nrrd", label, texts=segments(("liver", 1, 0)))
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert summary["notes"] == ["a.seg.nrrd: the label values [2, 3, 4] belong to no segment and are left out"]


def test_results_of_bids_and_probabilities_are_no_scans(tmp_path):
    image, label = scan(SHAPE)
    raw = "sub-01/anat/sub-01_T1w.nii.gz"
    write_nifti(tmp_path / "src" / raw, image)
    results = "derivatives/prep/sub-01/anat"
    write_nifti(tmp_path / f"src/{results}/sub-01_desc-preproc_T1w.nii.gz", image + 1)
    write_nifti(tmp_path / f"src/{results}/sub-01_label-GM_probseg.nii.gz", image / 1000)
    write_nifti(tmp_path / f"src/{results}/sub-01_dseg.nii.gz", label)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert pairs(summary) == {"sub-01_T1w": (raw, f"{results}/sub-01_dseg.nii.gz")}
    assert sorted(path.rpartition("_")[2] for path in aside(summary)) == ["T1w.nii.gz", "probseg.nii.gz"]


def test_two_drawings_of_one_structure_are_no_two_structures(tmp_path):
    image, label = scan(SHAPE)
    write_nifti(tmp_path / "src/a.nii.gz", image)
    for name in ("anna", "bert"):
        write_nifti(tmp_path / f"src/a_{name}_mask.nii.gz", (label == 1).astype(np.uint8))
    assert "show the same structure; keep one" in prepare(tmp_path / "src", tmp_path / "dst")["skipped"][0]["reason"]
    assert pairs(prepare(tmp_path / "src", tmp_path / "dst", label="bert"))["a"][1] == "a_bert_mask.nii.gz"


@pytest.mark.parametrize("names", [("a_seg_1", "a_seg_2"), ("a_rater1_seg", "a_rater2_seg"), ("a_seg", "labels/a")])
def test_several_labels_of_a_scan_are_left_aside_by_name(tmp_path, names):
    image, label = scan(SHAPE)
    write_nifti(tmp_path / "src/a.nii.gz", image)
    for name in names:
        write_nifti(tmp_path / f"src/{name}.nii.gz", label)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert pairs(summary) == {"a": ("a.nii.gz", None)}
    assert sorted(aside(summary)) == sorted(f"{name}.nii.gz" for name in names)


def test_subjects_of_freesurfer_are_one_case_each(tmp_path):
    image, label = scan(SHAPE)
    for subject in ("bert", "ernie"):
        for index, state in enumerate(("orig", "T1", "nu", "norm", "brain", "brainmask")):
            write_volume(tmp_path / f"src/{subject}/mri/{state}.mgz", image + index, OBLIQUE)
    write_volume(tmp_path / "src/bert/mri/aseg.mgz", label * 10, OBLIQUE)
    write_volume(tmp_path / "src/bert/mri/aparc+aseg.mgz", label.astype(np.int32) * 1000, OBLIQUE)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert pairs(summary) == {"bert": ("bert/mri/T1.mgz", "bert/mri/aseg.mgz"), "ernie": ("ernie/mri/T1.mgz", None)}
    assert len(aside(summary)) == 6 + 5
    chosen = prepare(tmp_path / "src", tmp_path / "other", image="norm", label="aparc+aseg")
    assert pairs(chosen)["bert"] == ("bert/mri/norm.mgz", "bert/mri/aparc+aseg.mgz")


@pytest.mark.parametrize("form", ["BraTS20_{}/BraTS20_{}_{}", "BraTS-GLI-{}-000/BraTS-GLI-{}-000-{}", "{}/{}_{}"])
def test_one_label_of_four_modalities(tmp_path, form):
    image, label = scan(SHAPE)
    for patient in ("00001", "00002"):
        for index, kind in enumerate(("t1", "t1ce", "t2", "flair")):
            write_nifti(tmp_path / f"src/{form.format(patient, patient, kind)}.nii.gz", image + index)
    seg = f"{form.format('00001', '00001', 'seg')}.nii.gz"
    write_nifti(tmp_path / "src" / seg, label)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert [label for _, label in pairs(summary).values()].count(seg) == 4
    assert len(summary["cases"]) == 8
    assert "is the label of 4 images" in summary["notes"][0]
    chosen = prepare(tmp_path / "src", tmp_path / "other", image="t1")
    first, second = (f"{form.format(patient, patient, 't1')}.nii.gz" for patient in ("00001", "00002"))
    assert list(pairs(chosen).values()) == [(first, seg), (second, None)]
    assert set(aside(chosen).values()) == {"not chosen by --image t1"}
    with pytest.raises(ValueError, match="--image t7: no image has this word in its name; there are"):
        prepare(tmp_path / "src", tmp_path / "third", image="t7")


def test_frames_of_acdc(tmp_path):
    image, label = scan(SHAPE)
    for frame in ("01", "12"):
        write_nifti(tmp_path / f"src/patient001/patient001_frame{frame}.nii.gz", image + int(frame))
        write_nifti(tmp_path / f"src/patient001/patient001_frame{frame}_gt.nii.gz", label)
    found = pairs(prepare(tmp_path / "src", tmp_path / "dst"))
    assert found["patient001_frame12"][1] == "patient001/patient001_frame12_gt.nii.gz"
    assert sorted(found) == ["patient001_frame01", "patient001_frame12"]


@pytest.mark.parametrize(
    ("series", "label"),
    [
        ("p1/DICOM", "p1/label"),
        ("p1", "p1/mask"),
        ("p1", "p1_seg"),
        ("p1", "labels/p1"),
        ("dicom/p1", "labels/p1"),
        ("p1/T2", "p1/T2_gt"),
        ("p1/T2", "p1/segmentation"),
        ("p1/study/T2", "labels/p1/study/T2"),
    ],
)
def test_label_of_a_dicom_series(tmp_path, series, label):
    image, values = scan(SHAPE)
    write_series(tmp_path / "src" / series, image)
    affine = np.diag([-1.25, 1.25, 7.7, 1])
    affine[:3, 3] = 100, 80 - 1.25 * (SHAPE[0] - 1), 30
    stored = values[::-1].transpose(1, 0, 2)
    write_nifti(tmp_path / f"src/{label}.nii.gz", stored, affine)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert list(pairs(summary).values()) == [(f"{series}/", f"{label}.nii.gz")]
    case = summary["cases"][0]["case"]
    assert np.array_equal(voxels(tmp_path / f"dst/labelsTr/{case}.nii.gz"), stored)


@pytest.mark.parametrize(
    ("file", "stored", "words"),
    [
        ("drawing", "label", "has the voxels of a label map (values 1, 2, 3, 4)"),
        ("c_mask", "image", "named as a label, but it has the voxels of a scan"),
        ("images/c", "label", "named as a scan, but it has the voxels of a label map"),
        ("coarse", "coarse", "may be a scan or a label, it has 8 values"),
        ("c_seg", "label", "a label without an image"),
    ],
)
def test_what_is_unsure_is_named_and_never_a_scan(tmp_path, file, stored, words):
    image, label = scan(SHAPE)
    coarse = np.random.default_rng(0).integers(0, 8, SHAPE).astype(np.uint8)
    for name in "ab":
        write_nifti(tmp_path / f"src/{name}.nii.gz", image + ord(name))
    write_nifti(tmp_path / f"src/{file}.nii.gz", {"label": label, "image": image, "coarse": coarse}[stored])
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert sorted(pairs(summary)) == ["a", "b"]
    assert words in aside(summary)[f"{file}.nii.gz"]
    assert f"left aside {file}.nii.gz: " in format_summary(summary)


@pytest.mark.parametrize("file", ["a_liver", "a_JD_final", "a_ROI_v2", "a_Untitled"])
def test_label_is_told_by_its_voxels_where_its_name_goes_on(tmp_path, file):
    image, label = scan(SHAPE)
    write_nifti(tmp_path / "src/a.nii.gz", image)
    write_nifti(tmp_path / "src/b.nii.gz", image[:-1])
    write_nifti(tmp_path / f"src/{file}.nii.gz", label * 0.9999967)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert pairs(summary) == {"a": ("a.nii.gz", f"{file}.nii.gz"), "b": ("b.nii.gz", None)}
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/a.nii.gz"), label)
    assert "rounded to whole numbers" in summary["notes"][0]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda image, label: image, "image"),
        (lambda image, label: (image // 4).astype(np.uint8), "image"),
        (lambda image, label: np.where(label > 0, -image, -1000), "image"),
        (lambda image, label: np.where(label > 0, image, 24), "image"),  # a CT whose air is no 0
        (lambda image, label: image / 1000, "image"),
        (lambda image, label: label, "label"),
        (lambda image, label: label.astype(np.float64) * 1000, "label"),
        (lambda image, label: (label == 2) * 255, "label"),
        (lambda image, label: np.zeros(label.shape), ""),
        (lambda image, label: np.full(label.shape, np.nan), ""),
    ],
)
def test_voxels_tell_a_scan_from_a_label_map(make, kind):
    assert judge(make(*scan(SHAPE)))[0] == kind


def test_data_set_with_scans_of_other_formats(tmp_path):
    image, label = scan(SHAPE)
    src = tmp_path / "src"
    write_nifti(src / "imagesTr/a.nii.gz", image, OBLIQUE)
    write_nifti(src / "labelsTr/a.nii.gz", label, OBLIQUE)
    write_itk(src / "imagesTr/b.nrrd", image + 1)
    write_itk(src / "labelsTr/b.mha", label)
    write_itk(src / "imagesTs/c.mha", image + 2)
    write_series(src / "imagesTs/d/series", image)
    (src / "imagesTs/e.png").write_bytes(b"")
    write_nifti(src / "labelsTr/f.nii.gz", label)
    (src / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    summary = prepare(src, tmp_path / "dst")
    assert pairs(summary)["b"] == ("imagesTr/b.nrrd", "labelsTr/b.mha")
    assert [case["case"] for case in summary["cases"] if case["subset"] == "Ts"] == ["c", "d_series"]
    assert sorted(aside(summary)) == ["imagesTs/e.png", "labelsTr/f.nii.gz"]
    assert "expected f.nii.gz in imagesTr" in aside(summary)["labelsTr/f.nii.gz"]
    assert label_names(tmp_path / "dst") == {1: "liver"}
    support = default_support(tmp_path / "dst")
    queries = query_list(tmp_path / "dst", support)
    assert [case_name(entry["image"]) for entry in queries] == ["c", "d_series"]


def test_next_steps_fit_the_data(tmp_path):
    image, label = scan(SHAPE)
    write_nifti(tmp_path / "src/a.nii.gz", image)
    text = format_summary(prepare(tmp_path / "src", tmp_path / "my data"))
    assert "no scan has a label" in text
    assert "save the label beside its image as a_label.nii.gz" in text
    assert f"python -m scripts.check '{tmp_path}/my data'" in text
    assert "inference" not in text
    write_nifti(tmp_path / "src/a_label.nii.gz", label)
    assert "every scan has a label" in format_summary(prepare(tmp_path / "src", tmp_path / "my data"))
    write_nifti(tmp_path / "src/b.nii.gz", image + 1)
    text = format_summary(prepare(tmp_path / "src", tmp_path / "my data"))
    assert "then segment 1 scan\n" in text
    assert f"--dataset_dir '{tmp_path}/my data' --output_dir '{tmp_path}/my data/segmented'" in text
    assert "none: to be segmented" in text
