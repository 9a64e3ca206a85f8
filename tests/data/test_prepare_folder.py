"""Preparation of folders: which files are scans, which label belongs to which."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bundle.data import label_names, make_datalist
from bundle.data.prepare import Options, format_summary, make_recipe, prepare_dataset
from bundle.data.prepare.folder import find_folder_cases

from .archives import scan, write_nifti, write_series

AFFINE = np.array([[-1.5, 0, 0, 10.0], [0, 1.5, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])


def prepare(src, dst, options=None, **overrides):
    lines: list[str] = []
    names = overrides.pop("label_names", None)
    recipe = make_recipe("folder", **overrides)
    return prepare_dataset("folder", src, dst, recipe, options, names, 1, False, lines.append), lines


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (["a.nii.gz", "b.nii", "a_label.nii.gz", "b_seg.nii.gz"], {"a": "a_label.nii.gz", "b": "b_seg.nii.gz"}),
        (["img01.nii.gz", "label01.nii.gz"], {"img01": "label01.nii.gz"}),
        (["image_1.nii.gz", "label_1.nii.gz", "image_10.nii.gz"], {"image_1": "label_1.nii.gz", "image_10": None}),
        (["volume-3.nii", "segmentation-3.nii"], {"volume-3": "segmentation-3.nii"}),
        (["img/x1.nii.gz", "label/x1.nii.gz"], {"x1": "label/x1.nii.gz"}),
        (["scans/x1.nii.gz", "masks/x1_mask.nii.gz"], {"x1": "masks/x1_mask.nii.gz"}),
        (["imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz"], {"x": "labelsTr/x.nii.gz"}),
        (["p1/image.nii.gz", "p1/label.nii.gz", "p2/image.nii.gz"], {"p1": "p1/label.nii.gz", "p2": None}),
        (["p1/t2.nii.gz", "p1/seg.nii.gz"], {"p1_t2": "p1/seg.nii.gz"}),
        (["p1/t1.nii.gz", "p1/t2.nii.gz", "p1/t2_seg.nii.gz"], {"p1_t1": None, "p1_t2": "p1/t2_seg.nii.gz"}),
        (["p1/p1.nii.gz", "p1/p1_seg.nii.gz"], {"p1": "p1/p1_seg.nii.gz"}),
        (["my scan.nii.gz", "._my scan.nii.gz"], {"my_scan": None}),
        (["x1.nii.gz", "x1_label.nii.gz", "x10_label.nii.gz"], {"x1": "x1_label.nii.gz"}),
        (["x.nii.gz", "x_1.nii.gz", "x_seg.nii.gz"], {"x": "x_seg.nii.gz", "x_1": None}),
        (["x_1.nii.gz", "x_1_2_seg.nii.gz"], {"x_1": None}),
        (["p1/a.nii.gz", "p1/b_seg.nii.gz"], {"p1_a": None}),
        (["train/img/a.nii.gz", "train/label/b.nii.gz", "test/img/b.nii.gz"], {"train_a": None, "test_b": None}),
        (["p1_f01.nii.gz", "p1_f01_gt.nii.gz"], {"p1_f01": "p1_f01_gt.nii.gz"}),
        (["a.nii.gz", "a_ROI.nii.gz"], {"a": "a_ROI.nii.gz"}),
        (["a.nii.gz", "A-Label.nii.gz"], {"a": "A-Label.nii.gz"}),
        (["a.nii.gz", "aSeg.nii.gz"], {"a": "aSeg.nii.gz"}),
        (["a.nii.gz", "a.mask.nii.gz"], {"a": "a.mask.nii.gz"}),
        (["p1/image.nii.gz", "p1/Segmentation.nii.gz"], {"p1": "p1/Segmentation.nii.gz"}),
        (["p1/t2.nii.gz", "p1/Ground Truth/t2.nii.gz"], {"p1_t2": "p1/Ground Truth/t2.nii.gz"}),
        (["a.NII.GZ", "A_GT.nii.gz"], {"a": "A_GT.nii.gz"}),
        (["img/p1/t2.nii.gz", "manual_masks/p1/t2.nii.gz"], {"p1_t2": "manual_masks/p1/t2.nii.gz"}),
        (["data/p1/t2.nii.gz", "labels/t2.nii.gz"], {"data_p1_t2": "labels/t2.nii.gz"}),
        (
            ["sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T2w_dseg.nii.gz"],
            {"sub-01_T2w": "sub-01/anat/sub-01_T2w_dseg.nii.gz"},
        ),
        (
            [
                "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
                "derivatives/x/sub-01/ses-1/anat/sub-01_ses-1_desc-y_dseg.nii.gz",
            ],
            {"sub-01_ses-1_T1w": "derivatives/x/sub-01/ses-1/anat/sub-01_ses-1_desc-y_dseg.nii.gz"},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_labels_find_their_scans(tmp_path, files, pairs):
    for file in files:
        write_nifti(tmp_path / file, np.zeros((2, 2, 2), np.uint8))
    found = find_folder_cases(tmp_path)
    assert {c.name: c.label and c.label.relative_to(tmp_path).as_posix() for c in found.cases} == pairs


def test_label_without_image_is_noted(tmp_path):
    image, label = scan()
    write_nifti(tmp_path / "src/a.nii.gz", image)
    write_nifti(tmp_path / "src/b_label.nii.gz", label)
    summary, lines = prepare(tmp_path / "src", tmp_path / "dst")
    assert lines == []
    assert [item["file"] for item in summary["aside"]] == ["b_label.nii.gz"]
    assert "rename it to a_label.nii.gz after its image" in summary["aside"][0]["reason"]


def test_voxels_and_affine_stay_as_they_are(tmp_path):
    image, label = scan((40, 36, 5))
    oblique = AFFINE.copy()
    oblique[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ AFFINE[:3, :3]
    write_nifti(tmp_path / "src/a.nii", image - 500, oblique)
    write_nifti(tmp_path / "src/a_label.nii", label.astype(np.float64), oblique)
    summary, lines = prepare(tmp_path / "src", tmp_path / "dst", label_names={1: "liver", 2: "spleen"})
    assert lines == []
    out = nib.load(tmp_path / "dst/imagesTr/a.nii.gz")
    assert np.array_equal(np.asarray(out.dataobj), image - 500)
    assert out.get_data_dtype() == np.int16
    assert np.allclose(out.affine, oblique)
    assert np.allclose(out.get_qform(), oblique, atol=1e-4)
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/a.nii.gz"), label)
    assert label_names(tmp_path / "dst") == {1: "liver", 2: "spleen"}
    assert summary["cases"][0]["voxels"] == {str(v): int((label == v).sum()) for v in (1, 2, 3, 4)}
    assert json.loads((tmp_path / "dst/prepare_summary.json").read_text())["prepared"] == 1


def test_fractions_survive_sixteen_bits(tmp_path):
    image = np.random.default_rng(0).random((20, 20, 4)).astype(np.float32)
    write_nifti(tmp_path / "src/a.nii.gz", image)
    prepare(tmp_path / "src", tmp_path / "dst")
    out = nib.load(tmp_path / "dst/imagesTr/a.nii.gz")
    assert out.get_data_dtype() == np.int16
    assert np.abs(out.get_fdata() - image).max() < 1 / 65000


def test_values_beyond_sixteen_bits_survive(tmp_path):
    image = np.arange(20 * 20 * 4, dtype=np.uint16).reshape(20, 20, 4) * 40
    write_nifti(tmp_path / "src/a.nii.gz", image)
    prepare(tmp_path / "src", tmp_path / "dst")
    assert np.abs(nib.load(tmp_path / "dst/imagesTr/a.nii.gz").get_fdata() - image).max() <= 1


def test_label_stored_in_another_axis_order_is_brought_to_its_image(tmp_path):
    image, label = scan((20, 18, 5))
    write_nifti(tmp_path / "src/a.nii.gz", image, AFFINE)
    stored = nib.Nifti1Image(label, AFFINE).as_reoriented([[2, 1], [0, -1], [1, -1]])
    (tmp_path / "src").mkdir(exist_ok=True)
    nib.save(stored, tmp_path / "src/a_label.nii.gz")
    prepare(tmp_path / "src", tmp_path / "dst")
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/a.nii.gz"), label)


def test_label_geometry_can_be_ignored(tmp_path):
    image, label = scan()
    write_nifti(tmp_path / "src/a.nii.gz", image, AFFINE)
    write_nifti(tmp_path / "src/a_label.nii.gz", label)
    assert prepare(tmp_path / "src", tmp_path / "dst")[0]["skipped"]
    prepare(tmp_path / "src", tmp_path / "dst", Options(ignore_label_geometry=True))
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/a.nii.gz"), label)


def test_modality_and_body_box_are_guessed(tmp_path):
    air = np.full((60, 50, 8), -1000, np.int16)
    air[10:40, 15:45] = 40
    write_nifti(tmp_path / "src/ct.nii.gz", air + np.random.default_rng(0).integers(0, 9, air.shape, np.int16), AFFINE)
    summary, lines = prepare(tmp_path / "src", tmp_path / "dst")
    case = summary["cases"][0]
    assert (case["modality"], case["orientation"]) == ("CT", "LAS")
    assert case["body_box"] == [[10, 40], [15, 45], [0, 8]]
    assert lines == []
    dataset = json.loads((tmp_path / "dst/dataset.json").read_text())
    assert dataset["modality"] == {"0": "CT"}
    assert dataset["cases"]["ct"]["spacing_mm"] == [1.5, 1.5, 5.0]
    assert prepare(tmp_path / "src", tmp_path / "dst", modality="mr")[0]["cases"][0]["modality"] == "MR"


def test_mixed_modalities_are_noted(tmp_path):
    image, _ = scan()
    write_nifti(tmp_path / "src/mr.nii.gz", image)
    write_nifti(tmp_path / "src/ct.nii.gz", image * 2 - 1000)
    assert "CT and MR in one folder" in prepare(tmp_path / "src", tmp_path / "dst")[0]["notes"][0]


def test_resampling_follows_the_slice_axis(tmp_path):
    image, label = scan((40, 36, 6))
    sagittal = np.array([[0, 0, 5.0, 0], [1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])  # slices along left-right
    write_nifti(tmp_path / "src/a.nii.gz", image.transpose(2, 0, 1), sagittal[:, [2, 0, 1, 3]])
    write_nifti(tmp_path / "src/a_label.nii.gz", label.transpose(2, 0, 1), sagittal[:, [2, 0, 1, 3]])
    case = prepare(tmp_path / "src", tmp_path / "dst", spacing_mm=(3, 3, 10), size=24)[0]["cases"][0]
    assert case["spacing_mm"] == [10, 3, 3]
    assert case["shape"] == [3, 24, 24]


def test_dicom_folders(tmp_path):
    image, label = scan()
    write_series(tmp_path / "src/p1/DICOM", image)
    write_series(tmp_path / "src/p2", image, names=[f"I{k}" for k in range(4)])
    stored = label[::-1].transpose(1, 0, 2)
    write_nifti(tmp_path / "src/p1/label.nii.gz", stored, np.diag([-1.25, 1.25, 7.7, 1]))
    (tmp_path / "src/p2/notes.txt").write_text("hello")
    summary, _ = prepare(tmp_path / "src", tmp_path / "dst", Options(ignore_label_geometry=True))
    assert [(c["case"], bool(c["voxels"])) for c in summary["cases"]] == [("p1", True), ("p2", False)]
    assert summary["cases"][0]["modality"] == "MR"
    assert np.array_equal(voxels(tmp_path / "dst/imagesTr/p2.nii.gz"), image[::-1].transpose(1, 0, 2))
    assert [(c["image"], c["label"]) for c in summary["cases"]] == [("p1/DICOM/", "p1/label.nii.gz"), ("p2/", None)]
    assert "p2    p2/        none: to be segmented" in " ".join(format_summary(summary).splitlines())


def test_nnunet_folder(tmp_path):
    image, label = scan()
    src = tmp_path / "src"
    for name in ("a", "b"):
        write_nifti(src / f"imagesTr/{name}_0000.nii.gz", image)
        write_nifti(src / f"imagesTr/{name}_0001.nii.gz", image + 5)
        write_nifti(src / f"labelsTr/{name}.nii.gz", label)
    write_nifti(src / "imagesTs/c_0000.nii.gz", image)
    content = {
        "channel_names": {"0": "T2", "1": "T1"},
        "labels": {"background": 0, "liver": 1, "kidneys": [2, 3], "spleen": 4},
    }
    (src / "dataset.json").write_text(json.dumps({**content, "numTraining": 2, "file_ending": ".nii.gz"}))
    summary, lines = prepare(src, tmp_path / "dst")
    assert [(c["case"], c["subset"]) for c in summary["cases"]] == [("a", "Tr"), ("b", "Tr"), ("c", "Ts")]
    assert np.array_equal(voxels(tmp_path / "dst/imagesTr/a.nii.gz"), image)
    assert np.array_equal(voxels(tmp_path / "dst/labelsTr/b.nii.gz"), label)
    assert (tmp_path / "dst/imagesTs/c.nii.gz").is_file()
    assert label_names(tmp_path / "dst") == {1: "liver", 4: "spleen"}
    assert summary["layout"] == "nnU-Net"
    assert lines == []
    assert summary["notes"][0].startswith("imagesTr: 2 files of further channels are left aside, channel 0000 is taken")
    prepare(src, tmp_path / "other", Options(image="1"))
    assert np.array_equal(voxels(tmp_path / "other/imagesTr/a.nii.gz"), image + 5)


def test_decathlon_folder(tmp_path):
    image, label = scan()
    src = tmp_path / "src"
    write_nifti(src / "imagesTr/spleen_10.nii.gz", np.stack([image, image + 7], -1))
    write_nifti(src / "imagesTr/._spleen_10.nii.gz", image)
    write_nifti(src / "labelsTr/spleen_10.nii.gz", (label == 4).astype(np.uint8))
    (src / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "spleen"}}))
    summary, _ = prepare(src, tmp_path / "dst", Options(channel=1))
    assert summary["layout"] == "Medical Segmentation Decathlon"
    assert np.array_equal(voxels(tmp_path / "dst/imagesTr/spleen_10.nii.gz"), image + 7)
    assert label_names(tmp_path / "dst") == {1: "spleen"}
    assert "2 more" not in str(summary["notes"])
    _, lines = prepare(src, tmp_path / "dst", Options(channel=2))
    assert "channel 2 is wanted, but there are 2" in lines[0]


def test_studies_folder_maps_names_and_not_numbers(tmp_path):
    image, label = scan()
    src = tmp_path / "src"
    swapped = np.take([0, 2, 1, 0, 0], label).astype(np.uint8)
    for name, stored in (("a", np.where(label < 3, label, 0)), ("b", swapped), ("c", None)):
        write_nifti(src / f"{name}.nii.gz", image)
        if stored is not None:
            write_nifti(src / f"labels/final/{name}.nii.gz", stored)
    write_nifti(src / "labels/original/c.nii.gz", label)

    def entry(*names):
        info = [{"name": n, "idx": i} for i, n in enumerate(names, 1)]
        return {"labels": {"final": {"ext": ".nii.gz", "info": {"label_info": info}}}}

    objects = {"a": entry("Liver", "Spleen"), "b": entry("Spleen", "Liver"), "c": {"labels": {}}}
    (src / "datastore_v2.json").write_text(json.dumps({"name": "x", "objects": objects}))
    summary, _ = prepare(src, tmp_path / "dst")
    assert summary["layout"] == "MONAI Label studies"
    assert label_names(tmp_path / "dst") == {1: "liver", 2: "spleen"}
    a, b = (voxels(tmp_path / f"dst/labelsTr/{name}.nii.gz") for name in "ab")
    assert np.array_equal(a, np.where(label < 3, label, 0))
    assert np.array_equal(a, b)
    assert ["label" in e for e in make_datalist(tmp_path / "dst")] == [True, True, False]


def test_studies_folder_whose_labels_agree_keeps_their_values(tmp_path):
    image, label = scan()
    src = tmp_path / "src"
    write_nifti(src / "a.nii.gz", image)
    write_nifti(src / "labels/final/a.nii.gz", (label == 1) * np.uint8(7))
    info = {"label_info": [{"name": "liver", "idx": 7}]}
    objects = {"a": {"labels": {"final": {"ext": ".nii.gz", "info": info}}}}
    (src / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    prepare(src, tmp_path / "dst")
    assert label_names(tmp_path / "dst") == {7: "liver"}
    assert voxels(tmp_path / "dst/labelsTr/a.nii.gz").max() == 7


def test_broken_dataset_json_is_named(tmp_path):
    image, _ = scan()
    write_nifti(tmp_path / "imagesTr/a.nii.gz", image)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="dataset.json: not valid JSON"):
        prepare(tmp_path, tmp_path.parent / "dst")


def test_result_below_the_source_is_not_prepared_again(tmp_path):
    image, _ = scan()
    write_nifti(tmp_path / "a.nii.gz", image)
    for _ in range(2):
        summary, _ = prepare(tmp_path, tmp_path / "dst")
    assert [c["case"] for c in summary["cases"]] == ["a"]
    assert summary["already_there"] == 1
