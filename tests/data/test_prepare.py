"""Preparation of archives: voxels, geometry, bad cases, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.atomic import PARTIAL
from bundle.data import list_images, make_datalist
from bundle.data.prepare import make_recipe, prepare_dataset, write
from bundle.data.prepare.dicom_volume import read_dicom
from bundle.data.prepare.volume import Volume, guess_modality, resample_label, target_grid

from .archives import scan, write_chaos, write_masks, write_nifti, write_series


def prepare(kind, src, dst, **overrides):
    """Prepare with the recipe of ``kind``; the summary and the lines said."""
    lines: list[str] = []
    summary = prepare_dataset(
        kind, src, dst, make_recipe(kind, **overrides), num_workers=2, progress=False, say=lines.append
    )
    return summary, lines


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a file."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


# -- DICOM geometry


def test_axial_series_in_shuffled_files_lies_where_its_positions_say(tmp_path):
    array = np.zeros((6, 8, 3), np.uint16)  # rows, columns, slices
    array[1, 5, 2] = 9
    write_series(tmp_path, array, pixel_spacing=(2.0, 1.5), names=["IMG-3.dcm", "IMG-1.dcm", "IMG-2.dcm"])
    volume, files = read_dicom(tmp_path)
    assert [f.name for f in files] == ["IMG-3.dcm", "IMG-1.dcm", "IMG-2.dcm"]
    voxel = np.argwhere(volume.array == 9)[0]
    # row 1: -80 + 1 * 2.0 posterior; column 5: -100 + 5 * 1.5 left; slice 2: 30 + 2 * 7.7 superior
    assert np.allclose(volume.affine @ [*voxel, 1], [92.5, 78.0, 45.4, 1])
    assert nib.aff2axcodes(volume.affine) == ("L", "A", "S")
    assert volume.spacing_mm == pytest.approx((1.5, 2.0, 7.7))


def test_series_numbered_from_head_to_feet_is_turned(tmp_path):
    array = np.arange(3, dtype=np.uint16) * np.ones((4, 4, 1), np.uint16)
    write_series(tmp_path, array, step=(0, 0, -5.0))
    volume, files = read_dicom(tmp_path)
    assert volume.array[0, 0].tolist() == [2, 1, 0]
    assert volume.affine[2, 3] == pytest.approx(20.0)
    assert volume.affine[2, 2] == pytest.approx(5.0)
    assert files[0].name == "IMG-0002-00003.dcm"


def test_oblique_series_against_hand_computed_corner(tmp_path):
    # rows run along (0.8, 0.6, 0), columns along (0, 0, -1): normal = row x column = (-0.6, 0.8, 0)
    array = np.zeros((5, 7, 4), np.uint16)
    array[4, 6, 3] = 1
    write_series(tmp_path, array, (10, 20, 30), (-1.8, 2.4, 0.0), (2.0, 1.0), (0.8, 0.6, 0, 0, 0, -1))
    volume, _ = read_dicom(tmp_path)
    voxel = np.argwhere(volume.array == 1)[0]
    # LPS: (10, 20, 30) + 6 * 1 * (0.8, 0.6, 0) + 4 * 2 * (0, 0, -1) + 3 * (-1.8, 2.4, 0) = (9.4, 30.8, 22)
    assert np.allclose(volume.affine @ [*voxel, 1], [-9.4, -30.8, 22.0, 1])
    assert volume.spacing_mm == pytest.approx((1.0, 2.0, 3.0))


def test_rescaled_values_and_modality(tmp_path):
    array = np.full((4, 4, 2), 1000, np.uint16)
    array[0, 0, 0] = 24
    write_series(tmp_path, array, modality="CT", slope=1, intercept=-1024)
    volume, _ = read_dicom(tmp_path)
    assert sorted(np.unique(volume.array)) == [-1000, -24]
    assert guess_modality(volume) == "CT"


def test_uids_of_an_anonymizer_are_not_series(tmp_path):
    write_series(tmp_path, np.ones((4, 4, 3), np.uint16), series=["1.1", "1.2", "1.3"])
    assert read_dicom(tmp_path)[0].array.shape == (4, 4, 3)


# -- resampling


def test_grid_keeps_the_first_voxel_and_stays_inside():
    affine = np.diag([-1.5, 1.5, 9.0, 1.0])
    affine[:3, 3] = (7, 8, 9)
    new_affine, shape = target_grid(Volume(np.zeros((320, 256, 30)), affine), make_recipe("chaos"))
    assert shape == (384, 307, 35)  # floor(319.5 * 1.2) + 1, floor(255.5 * 1.2) + 1, floor(29.5 * 9 / 7.7) + 1
    assert np.allclose(np.diag(new_affine), [-1.25, 1.25, 7.7, 1])
    assert np.allclose(new_affine[:3, 3], (7, 8, 9))


def test_rounded_spacing_is_not_resampled():
    assert target_grid(Volume(np.zeros((9, 9, 9)), np.diag([1.25, 1.25, 7.700004, 1])), make_recipe("chaos")) is None


def test_label_is_won_by_the_larger_share_and_not_by_the_nearest():
    label = np.zeros((2, 2, 1), np.int16)
    label[0, 0, 0] = 3
    affine = np.diag([10.0, 10.0, 1.0, 1.0])
    grid = np.diag([4.0, 4.0, 1.0, 1.0])
    out = resample_label(Volume(label, affine), grid, (2, 2, 1)).array[..., 0]
    # at (4, 4) mm the labeled corner is the nearest, but has 0.6 * 0.6 = 0.36 of the share; at (4, 0) it has 0.6
    assert out.tolist() == [[3, 3], [3, 0]]


def test_three_classes_meet_and_the_largest_wins():
    label = np.array([1, 2, 2, 0], np.int16).reshape(4, 1, 1)
    out = resample_label(Volume(label, np.diag([4.0, 1, 1, 1])), np.diag([1.0, 1, 1, 1]), (13, 1, 1))
    # ties at 2 mm and at 10 mm go to the smaller value
    assert out.array.ravel().tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0]


# -- the archives


def test_chaos_voxel_by_voxel(tmp_path):
    image, label = scan()
    write_chaos(tmp_path / "src", 7, image, label, order=[3, 1, 4, 2])
    summary, lines = prepare("chaos", tmp_path / "src", tmp_path / "dst")
    assert (summary["prepared"], summary["skipped"], lines) == (1, [], [])
    out, affine = load(tmp_path / "dst/imagesTr/chaos_07.nii.gz")
    truth, label_affine = load(tmp_path / "dst/labelsTr/chaos_07.nii.gz")
    assert out.shape == truth.shape == (256, 256, 4)
    assert out.dtype == np.int16
    assert np.array_equal(affine, label_affine)
    stored = np.minimum(image, round(np.percentile(image, 99.5)))[::-1].transpose(1, 0, 2)  # columns, rows upward
    assert np.array_equal(out[110:146, 108:148], stored)  # 36 // 2 - 128 = -110, 40 // 2 - 128 = -108
    assert np.array_equal(truth[110:146, 108:148], label[::-1].transpose(1, 0, 2))
    outside = np.ones(out.shape, bool)
    outside[110:146, 108:148] = False
    assert (out[outside] == image.min()).all()
    assert not truth[outside].any()
    # row 29 - 1, column 12, slice 0 of label 4: LPS (-100 + 12 * 1.25, -80 + 29 * 1.25, 30)
    voxel = np.linalg.inv(affine) @ [85.0, 43.75, 30.0, 1]
    assert np.allclose(voxel, np.rint(voxel))
    assert truth[tuple(np.rint(voxel[:3]).astype(int))] == label[29, 12, 0] == 4
    assert summary["cases"][0]["voxels"] == {str(v): 32 for v in (1, 2, 3, 4)}


def test_chaos_resampled_ramp_keeps_its_world(tmp_path):
    image = np.zeros((200, 200, 3), np.int16) + (10 * np.arange(200, dtype=np.int16))[None, :, None]
    label = np.zeros(image.shape, np.uint8)
    label[50:100, 60:120, 1] = 1
    write_chaos(tmp_path / "src", 1, image, label, pixel_spacing=(2.0, 2.0))
    prepare("chaos", tmp_path / "src", tmp_path / "dst", clip_percent=False)
    out, affine = load(tmp_path / "dst/imagesTr/chaos_01.nii.gz")
    truth, _ = load(tmp_path / "dst/labelsTr/chaos_01.nii.gz")
    assert out.shape == (256, 256, 3)
    columns = (affine @ np.stack([np.arange(256), *np.zeros((2, 256)), np.ones(256)]))[0]
    assert np.abs(out[:, 100, 1] - 10 * (100 - columns) / 2).max() <= 0.5 + 1e-3  # L = -100 + 2 i, R = -L, rounded
    # 60 columns of 2 mm are 96 of 1.25, 50 rows are 80; at one corner the share is 0.625 * 0.625, less than one half
    assert truth[..., 1].sum() == 96 * 80 - 1
    assert truth[..., [0, 2]].sum() == 0


def test_chaos_masks_by_number_when_names_differ(tmp_path):
    image, label = scan()
    folder = write_chaos(tmp_path / "src", 1, image, label)
    for mask in (folder / "Ground").iterdir():
        mask.unlink()
    write_masks(folder / "Ground", label, [f"mask_{k}" for k in (8, 9, 10, 11)])
    prepare("chaos", tmp_path / "src", tmp_path / "dst")
    truth, _ = load(tmp_path / "dst/labelsTr/chaos_01.nii.gz")
    assert np.array_equal(truth[110:146, 108:148], label[::-1].transpose(1, 0, 2))


def test_sabs_voxel_by_voxel(tmp_path):
    x, y = np.mgrid[:132, :134]
    image = np.repeat((x * 4 - 300 + 0 * y)[..., None], 5, axis=2).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[32:60, 32:67, 2] = 6
    affine = np.array([[-0.7, 0, 0, 90.0], [0, 0.7, 0, -60], [0, 0, 3.0, 5], [0, 0, 0, 1]])
    write_nifti(tmp_path / "src/img/img0003.nii.gz", image, affine)
    write_nifti(tmp_path / "src/label/label0003.nii.gz", label, affine)
    summary, _ = prepare("sabs", tmp_path / "src", tmp_path / "dst", size=False)
    out, new_affine = load(tmp_path / "dst/imagesTr/sabs_03.nii.gz")
    truth, _ = load(tmp_path / "dst/labelsTr/sabs_03.nii.gz")
    assert out.shape == (39, 40, 5)  # floor(67.5 / 1.75) + 1, floor(69.5 / 1.75) + 1
    assert np.allclose(np.diag(new_affine), [-1.225, 1.225, 3, 1])
    assert np.allclose(new_affine[:3, 3], [90 - 32 * 0.7, -60 + 32 * 0.7, 5])
    source = np.clip(image[:, 40, 2], -125, 275)
    expected = np.interp(32 + 1.75 * np.arange(39), np.arange(132), source)[:38]
    assert np.abs(out[:38, 3, 2] - expected).max() <= 0.5 + 1e-3
    # 28 source voxels are 16 of 1.75 from the first: centers up to 27 + 0.5, that is to index 15; 35 are 20
    assert np.array_equal(np.unique(np.argwhere(truth)[:, 0]), np.arange(16))
    assert np.array_equal(np.unique(np.argwhere(truth)[:, 1]), np.arange(20))
    assert set(np.unique(truth[..., 2])) == {0, 6}
    assert summary["label_names"]["6"] == "liver"
    prepare("sabs", tmp_path / "src", tmp_path / "framed")
    assert load(tmp_path / "framed/imagesTr/sabs_03.nii.gz")[0].shape == (256, 256, 5)


def test_mscmr_values_and_oblique_affine(tmp_path):
    image, label = scan()
    stored = np.take([0, 200, 500, 600], np.minimum(label, 3)).astype(np.int16)
    cosine, sine = np.cos(0.5), np.sin(0.5)
    turn = np.array([[cosine, -sine, 0], [sine * 0.8, cosine * 0.8, -0.6], [sine * 0.6, cosine * 0.6, 0.8]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.25, 1.25, 8.0], (3, -4, 5)
    for number in (2, 11):
        write_nifti(tmp_path / f"src/image/patient{number}_C0.nii.gz", image, affine)
        write_nifti(tmp_path / f"src/truth/patient{number}_C0_manual.nii.gz", stored, affine)
    write_nifti(tmp_path / "src/image/patient2_LGE.nii.gz", image, affine)
    summary, _ = prepare("mscmr", tmp_path / "src", tmp_path / "dst")
    assert [c["case"] for c in summary["cases"]] == ["mscmr_02", "mscmr_11"]
    truth, new_affine = load(tmp_path / "dst/labelsTr/mscmr_02.nii.gz")
    assert np.allclose(new_affine[:3, :3], affine[:3, :3], atol=1e-5)
    assert np.allclose(new_affine @ [108, 110, 0, 1], affine @ [0, 0, 0, 1], atol=1e-3)
    names = {int(v): n for v, n in summary["label_names"].items()}
    inside = truth[108:148, 110:146]
    for value, name in ((200, "myocardium"), (500, "left ventricle"), (600, "right ventricle")):
        key = next(k for k, n in names.items() if n == name)
        assert np.array_equal(inside == key, stored == value)
    assert list(names.values())[1:] == ["left ventricle", "myocardium", "right ventricle"]


# -- bad cases: one line each, the others go on


def _drop_middle_slice(folder):
    (folder / "DICOM_anon/IMG-0002-00002.dcm").unlink()
    (folder / "Ground/IMG-0002-00002.png").unlink()


def _drop_end_slice(folder):
    (folder / "DICOM_anon/IMG-0002-00004.dcm").unlink()


def _odd_png(folder):
    from PIL import Image

    Image.fromarray(np.zeros((9, 36), np.uint8)).save(folder / "Ground/IMG-0002-00003.png")


def _odd_value(folder):
    from PIL import Image

    Image.fromarray(np.full((40, 36), 100, np.uint8)).save(folder / "Ground/IMG-0002-00003.png")


def _second_series(folder):
    names = [f"IMG-0003-{k}.dcm" for k in range(3)]
    write_series(folder / "DICOM_anon", np.ones((40, 36, 3)), (0, 0, 3.3), names=names, series="9.9")


def _second_phase(folder):
    write_series(folder / "DICOM_anon", np.ones((40, 36, 4)), names=[f"IMG-0003-{k}.dcm" for k in range(4)])


def _truncate_dicom(folder):
    path = folder / "DICOM_anon/IMG-0002-00002.dcm"
    path.write_bytes(path.read_bytes()[:-500])


def _truncate_png(folder):
    path = folder / "Ground/IMG-0002-00002.png"
    path.write_bytes(path.read_bytes()[:60])


def _no_masks(folder):
    for path in (folder / "Ground").iterdir():
        path.unlink()
    (folder / "Ground").rmdir()


def _empty_masks(folder):
    write_masks(folder / "Ground", np.zeros((40, 36, 4), int), [f"IMG-0002-{k:05d}" for k in (1, 2, 3, 4)])


def _other_grid(folder):
    write_series(folder / "DICOM_anon", np.ones((40, 30, 1)), (-100, -80, 37.7), names=["IMG-0002-00002.dcm"])


def _not_dicom(folder):
    (folder / "DICOM_anon/IMG-0002-00002.dcm").write_text("<html>404</html>")


def _no_position(folder):
    import pydicom

    path = folder / "DICOM_anon/IMG-0002-00002.dcm"
    data = pydicom.dcmread(path)
    del data.ImagePositionPatient
    data.save_as(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_drop_middle_slice, "a slice is missing, 15.40 mm between"),
        (_drop_end_slice, "4 PNG masks for 3 DICOM slices"),
        (_odd_png, "IMG-0002-00003.png: mask of (9, 36) pixels does not fit its slice of (40, 36)"),
        (_odd_value, "unknown label values [100]"),
        (_second_series, "2 series in one folder, of 4 and 3 slices"),
        (_second_phase, "lie at the same place"),
        (_truncate_dicom, "IMG-0002-00002.dcm: cannot be read as DICOM"),
        (_truncate_png, "IMG-0002-00002.png: cannot be read as PNG"),
        (_no_masks, "the label is missing"),
        (_empty_masks, "nothing is labeled"),
        (_other_grid, "shape [40, 30] differs"),
        (_not_dicom, "IMG-0002-00002.dcm: cannot be read as DICOM"),
        (_no_position, "lacks ImagePositionPatient"),
    ],
    ids=lambda value: value.__name__[1:] if callable(value) else "",
)
def test_bad_chaos_case_is_named_and_the_others_go_on(tmp_path, spoil, words):
    image, label = scan()
    write_chaos(tmp_path / "src", 1, image, label)
    spoil(write_chaos(tmp_path / "src", 2, image, label))
    summary, lines = prepare("chaos", tmp_path / "src", tmp_path / "dst")
    assert summary["prepared"] == 1
    assert len(lines) == 1
    assert lines[0].startswith("skipped chaos_02: ")
    assert words in lines[0]
    assert "\n" not in lines[0]
    assert summary["skipped"] == [{"case": "chaos_02", "reason": lines[0].removeprefix("skipped chaos_02: ")}]
    assert [Path(p).name for p in list_images(tmp_path / "dst/imagesTr")] == ["chaos_01.nii.gz"]
    assert len(json.loads((tmp_path / "dst/dataset.json").read_text())["training"]) == 1


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda src: _truncate(src / "a.nii.gz"), "a.nii.gz: cannot be read"),
        (lambda src: _truncate(src / "a_label.nii.gz"), "a_label.nii.gz: cannot be read"),
        (lambda src: write_nifti(src / "a.nii.gz", np.zeros((4, 4, 4, 3), np.int16)), "choose a volume with --channel"),
        (lambda src: write_nifti(src / "a.nii.gz", np.ones((40, 36, 4), np.int16)), "every voxel is 1"),
        (lambda src: write_nifti(src / "a.nii.gz", np.full((4, 4, 4), np.nan)), "contains NaN"),
        (lambda src: write_nifti(src / "a_label.nii.gz", np.ones((40, 36, 5), np.uint8)), "does not fit a.nii.gz"),
        (
            lambda src: write_nifti(src / "a_label.nii.gz", np.ones((40, 36, 4), np.uint8), np.diag([1, 1, 3, 1])),
            "lies up to 6.0 mm beside a.nii.gz",
        ),
        (lambda src: write_nifti(src / "a_label.nii.gz", np.full((40, 36, 4), 0.5)), "must be whole numbers"),
    ],
    ids=["truncated", "truncated label", "4D", "constant", "NaN", "shape", "moved", "fractions"],
)
def test_bad_nifti_is_named_and_the_others_go_on(tmp_path, spoil, words):
    image, label = scan()
    for name in "ab":
        write_nifti(tmp_path / f"src/{name}.nii.gz", image)
        write_nifti(tmp_path / f"src/{name}_label.nii.gz", label)
    spoil(tmp_path / "src")
    summary, lines = prepare("folder", tmp_path / "src", tmp_path / "dst")
    assert [c["case"] for c in summary["cases"]] == ["b"]
    assert len(lines) == 1
    assert lines[0].startswith("skipped a: ")
    assert words in lines[0]


def test_nothing_to_prepare_says_what_was_expected(tmp_path):
    (tmp_path / "src").mkdir()
    with pytest.raises(ValueError, match="nothing to prepare; expected Train_Sets/MR"):
        prepare("chaos", tmp_path / "src", tmp_path / "dst")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        prepare("chaos", tmp_path / "none", tmp_path / "dst")


# -- resuming


@pytest.fixture
def archive(tmp_path):
    """Two cases of MS-CMRSeg in ``tmp_path / "src"``."""
    image, label = scan()
    for number in (1, 2):
        write_nifti(tmp_path / f"src/patient{number}_C0.nii.gz", image + number, np.diag([1.25, 1.25, 8, 1]))
        stored = np.take([0, 200, 500, 600], np.minimum(label, 3)).astype(np.int16)
        write_nifti(tmp_path / f"src/patient{number}_C0_manual.nii.gz", stored, np.diag([1.25, 1.25, 8, 1]))
    return tmp_path


def times(dst):
    return {p.name: p.stat().st_mtime_ns for p in sorted(dst.glob("*Tr/*.nii.gz"))}


def test_finished_cases_are_skipped_and_changed_ones_made_anew(archive):
    src, dst = archive / "src", archive / "dst"
    assert prepare("mscmr", src, dst)[0]["prepared"] == 2
    before = times(dst)
    summary, _ = prepare("mscmr", src, dst)
    assert (summary["prepared"], summary["already_there"]) == (0, 2)
    assert times(dst) == before
    image, _ = load(src / "patient2_C0.nii.gz")
    write_nifti(src / "patient2_C0.nii.gz", image * 2, np.diag([1.25, 1.25, 8, 1]))
    summary, _ = prepare("mscmr", src, dst)
    assert [c["case"] for c in summary["cases"] if not c["reused"]] == ["mscmr_02"]
    assert load(dst / "imagesTr/mscmr_02.nii.gz")[0].max() == round(np.percentile(image * 2, 99.5))
    assert prepare("mscmr", src, dst, size=64)[0]["prepared"] == 2
    assert load(dst / "imagesTr/mscmr_01.nii.gz")[0].shape == (64, 64, 4)


@pytest.mark.parametrize("at", ["label of the first", "image of the first", "record of the first"])
def test_run_that_is_killed_is_taken_up(archive, monkeypatch, at):
    src, dst = archive / "src", archive / "dst"

    class Killed(BaseException):
        pass

    def half_save(image, path):
        if path.parent.name == ("labelsTr" if at.startswith("label") else "imagesTr"):
            path.write_bytes(b"\x1f\x8b half of a file")
            raise Killed
        nib.loadsave.save(image, path)

    def half_json(path, content):
        path.with_name(f"{PARTIAL}1.1.{path.name}").write_text('{"case"')  # what a kill leaves
        raise Killed

    with monkeypatch.context() as patch:
        if at.startswith("record"):
            patch.setattr("bundle.data.prepare.run.write_json", half_json)
        else:
            patch.setattr(write.nib, "save", half_save)
        with pytest.raises(Killed):
            prepare("mscmr", src, dst)
    assert all(nib.load(p).get_fdata().shape == (256, 256, 4) for p in dst.glob("*Tr/[!.]*.nii.gz"))
    summary, _ = prepare("mscmr", src, dst)
    assert summary["prepared"] == 2
    assert len(make_datalist(dst)) == 2
    assert not [p for p in dst.rglob("*") if p.suffix == ".started"]
    for entry in make_datalist(dst):
        assert np.asarray(nib.load(entry["image"]).dataobj).shape == np.asarray(nib.load(entry["label"]).dataobj).shape


def test_result_of_a_case_that_went_bad_does_not_stay(archive):
    src, dst = archive / "src", archive / "dst"
    prepare("mscmr", src, dst)
    _truncate(src / "patient1_C0.nii.gz")
    summary, _ = prepare("mscmr", src, dst)
    assert [item["case"] for item in summary["skipped"]] == ["mscmr_01"]
    assert [Path(e["image"]).name for e in make_datalist(dst)] == ["mscmr_02.nii.gz"]


def test_foreign_destination_is_refused(archive):
    src, dst = archive / "src", archive / "dst"
    prepare("mscmr", src, dst)
    with pytest.raises(ValueError, match="holds a data set prepared with 'mscmr'"):
        prepare("folder", src, dst)
    write_nifti(dst / "imagesTr/mine.nii.gz", np.zeros((4, 4, 4), np.int16))
    with pytest.raises(ValueError, match="mine.nii.gz: was not made by prepare"):
        prepare("mscmr", src, dst)
    with pytest.raises(ValueError, match="another folder than src"):
        prepare("mscmr", src, src)


# -- recipes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"window": (5, 5)}, "window must be two rising numbers"),
        ({"clip_percent": 100}, "clip_percent must be in"),
        ({"trim_px": -1}, "trim_px must be a whole number"),
        ({"spacing_mm": (1, 1)}, "spacing_mm must be three positive"),
        ({"spacing_mm": (1, 1, 0)}, "spacing_mm must be three positive"),
        ({"spacing_mm": (1, 1, 1), "spacing_factor": (1, 1, 1)}, "not both"),
        ({"size": 0}, "size must be two positive"),
        ({"modality": "US"}, "modality must be CT or MR"),
    ],
)
def test_bad_numbers_are_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        make_recipe("folder", **overrides)


def test_unknown_recipe():
    with pytest.raises(ValueError, match="recipe must be one of"):
        make_recipe("acdc")
