from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data import fingerprint
from bundle.data.fingerprint import Finding, check_entries, check_folder, check_label_file, read_fingerprint
from bundle.data.grid import grid_difference
from bundle.data.preflight import check_training, leave_out
from scripts.check import check

from ..conftest import GEOMETRIES, save_nifti


def test_fingerprint_by_hand(tmp_path):
    values = np.zeros((4, 3, 2), np.int16)
    values[1, 2, 0], values[0, 0, 1] = 7, 300
    path = save_nifti(tmp_path / "a.nii.gz", values, np.diag([-1.5, 2, 5, 1]))
    image, label = read_fingerprint(path), read_fingerprint(path, is_label=True)
    assert image.shape == label.shape == (4, 3, 2)
    assert image.spacing_mm == (1.5, 2, 5)
    assert (image.dtype, image.low, image.high) == ("int16", 0, 300)
    assert image.values is None
    assert label.values == (7, 300)
    plain = save_nifti(tmp_path / "b.nii", values.astype(np.float32)[..., None])
    assert read_fingerprint(plain).digest == image.digest  # the same numbers in another format and file
    values[0, 0, 0] = 1
    assert read_fingerprint(save_nifti(tmp_path / "c.nii", values)).digest != image.digest
    big = nib.Nifti1Image(values, np.eye(4)).as_reoriented([[0, 1], [1, 1], [2, 1]])
    nib.save(nib.Nifti1Image(values, np.eye(4), nib.Nifti1Header(endianness=">")), tmp_path / "d.nii")
    nib.save(nib.Nifti2Image(np.asarray(big.dataobj), np.eye(4)), tmp_path / "e.nii.gz")
    for name in ("d.nii", "e.nii.gz"):
        assert read_fingerprint(tmp_path / name).digest == read_fingerprint(tmp_path / "c.nii").digest


def test_each_file_is_opened_once_and_again_when_it_changes(tmp_path, phantom_dir, monkeypatch):
    opened: Counter[str] = Counter()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.update([path.name]) or read(path))
    rng = np.random.default_rng(0)
    for name in "abc":
        save_nifti(tmp_path / "imagesTr" / f"{name}.nii.gz", rng.normal(size=(4, 4, 4)))
    entries = [{"image": str(tmp_path / "imagesTr" / f"{name}.nii.gz")} for name in "abc"]
    for _ in range(2):
        assert check_entries(entries) == []
    assert set(opened.values()) == {1}
    save_nifti(tmp_path / "imagesTr" / "b.nii.gz", np.zeros((4, 4, 4)))
    os.utime(tmp_path / "imagesTr" / "b.nii.gz", (1, 1))
    (finding,) = check_entries(entries)
    assert finding.index == 1
    assert "b.nii.gz: every voxel is 0" in finding.line


def test_what_was_good_is_remembered_and_what_was_bad_is_not(tmp_path, monkeypatch):
    """With a cache, a later process, which has forgotten all, looks into no file that was good."""
    checked = []
    look = fingerprint._read_fingerprint.__wrapped__
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 4, 4), np.uint8)
    entries = []
    for name in "abc":
        labels[1, 1, 1] = ord(name)
        image = save_nifti(tmp_path / "imagesTr" / f"{name}.nii", rng.normal(size=(4, 4, 4)))
        label = save_nifti(tmp_path / "labelsTr" / f"{name}.nii", labels)
        entries.append({"image": str(image), "label": str(label)})
    save_nifti(tmp_path / "labelsTr" / "c.nii", np.zeros((4, 4, 4), np.uint8))

    def start(entries=entries, **settings):
        checked.clear()
        forgetful = lru_cache(lambda path, *rest: checked.append(Path(path).name) or look(path, *rest))
        monkeypatch.setattr(fingerprint, "_read_fingerprint", forgetful)
        return [finding.line for finding in check_entries(entries, num_workers=1, cache_dir=tmp_path / "s", **settings)]

    (first,) = start()
    assert "c.nii: has no foreground" in first
    assert sorted(checked) == ["a.nii", "a.nii", "b.nii", "b.nii", "c.nii", "c.nii"]
    assert start() == [first]
    assert checked == ["c.nii", "c.nii"]
    assert start([entries[0], {"image": str(save_nifti(tmp_path / "d.nii", rng.normal(size=(4, 4, 4))))}]) == []
    assert checked == ["d.nii"]
    known = {read_fingerprint(entries[0]["image"]).digest: "the support"}
    (double,) = start([entries[0], {"image": str(tmp_path / "d.nii")}], known=known)
    assert "a.nii: holds the same voxels as the support" in double
    assert checked == []
    Path(entries[1]["label"]).write_bytes(Path(entries[0]["label"]).read_bytes()[:-1])
    assert len(start()) == 2
    (tmp_path / "b.nii.gz").write_bytes(Path(entries[1]["image"]).read_bytes())  # good content, wrong suffix
    (wrong,) = start([{"image": str(tmp_path / "b.nii.gz")}])
    assert "not compressed, as its suffix says" in wrong


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "AIR"])
def test_order_and_direction_of_axes_are_no_difference(name, codes, tmp_path):
    affine, shape = GEOMETRIES[name]
    values = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    image = nib.Nifti1Image(values, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    label = image.as_reoriented(turn)
    turned, distance_mm = grid_difference(label.shape, label.affine, shape, affine)
    assert turned == shape
    assert distance_mm == pytest.approx(0, abs=1e-3)
    nib.save(image, tmp_path / "i.nii")
    nib.save(label, tmp_path / "l.nii")
    check_label_file(tmp_path / "l.nii", tmp_path / "i.nii")


def test_distance_of_a_corner_by_hand():
    moved = np.diag([2.0, 2, 5, 1])
    moved[:3, 3] = 3, 0, 4
    assert grid_difference((4, 4, 4), moved, (4, 4, 4), np.diag([2.0, 2, 5, 1])) == ((4, 4, 4), pytest.approx(5))
    longer = np.diag([2.0, 2, 6, 1])  # 1 mm more a slice, over 3 slices
    assert grid_difference((4, 4, 4), longer, (4, 4, 4), np.diag([2.0, 2, 5, 1]))[1] == pytest.approx(3)


def test_findings_leave_out_what_they_spoil():
    entries, said = list("abcd"), []
    leave_out(entries, [Finding("b is bad", 1), Finding("a folder is odd"), Finding("d is bad", 3)], say=said.append)
    assert entries == ["a", "c"]
    assert said == ["left out: b is bad", "a folder is odd", "left out: d is bad"]
    with pytest.raises(ValueError, match=r"^x \(1 more above\)$"):
        leave_out(entries, [Finding("y"), Finding("x", 0)], strict=True, say=said.append)
    with pytest.raises(ValueError, match="^only$"):
        leave_out(["z"], [Finding("only", 0)], say=said.append)
    assert entries == ["a", "c"]
    assert said[3:] == ["y"]  # what ends the run is said by its error alone


def test_a_training_without_images_is_told_by_the_training(tmp_path):
    assert check_training([], tmp_path, [tmp_path / "out"]) == []


def test_a_good_data_set_has_no_findings(phantom_dir, capsys):
    assert check_folder(phantom_dir) == []
    check(str(phantom_dir), strict=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{phantom_dir}: 5 scans, 5 usable, 0 findings"
    assert "shape: 48 x 48 x 12" in lines
    assert "label 1 liver: in 5 of 5" in lines


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mgz", ".img", ".NII.GZ"])
def test_files_beside_the_scans_of_a_plain_folder_that_are_not_read_are_named(tmp_path, capsys, suffix):
    scans = np.random.default_rng(0).random((2, 6, 5, 4), np.float32)
    save_nifti(tmp_path / "y.nii.gz", scans[0])
    save_nifti(tmp_path / "labels" / "y.nii.gz", (scans[1] > 0.5).astype(np.uint8))
    names = [f"x{suffix}", f"x-label{suffix}"]
    for name in [*names, "x.hdr", "notes.txt"]:
        (tmp_path / name).write_text("")
    check(str(tmp_path))
    out = capsys.readouterr().out
    assert f"{tmp_path}: 1 scans, 1 usable, 2 findings" in out
    for name in names:
        assert f"{tmp_path / name}: is not read, " in out
    assert suffix == ".NII.GZ" or f"python -m scripts.prepare folder --src {tmp_path} " in out


def test_a_scan_given_as_label_is_refused(tmp_path):
    values = np.arange(600, dtype=np.int16).reshape(10, 10, 6)
    image = save_nifti(tmp_path / "a.nii.gz", values)
    (tmp_path / "link.nii.gz").symlink_to(image)
    for label in (image, tmp_path / "link.nii.gz"):
        with pytest.raises(ValueError, match=rf"^{label}: is given as image and as label; give the label map of this"):
            check_label_file(label, image)
    copied = save_nifti(tmp_path / "b.nii.gz", values)
    with pytest.raises(ValueError, match=r"b.nii.gz: has 599 values, as a scan has; a label map has at most 500: give"):
        check_label_file(copied, image)
    check_label_file(copied, image, max_values=599)


@pytest.mark.parametrize(
    ("change", "fine"), [("shear", True), ("atlas", True), ("atlas, twice as large", False), ("scaled", False)], ids=str
)
def test_registered_headers_may_have_two_spacings(tmp_path, change, fine):
    affine = np.diag([2.0, 2, 5, 1])
    if change == "shear":  # of a tilted gantry: the slices' distance along the table is longer
        affine[1, 2] = 3
    elif change != "atlas, twice as large":
        affine[2, 2] *= 1.2
    else:
        affine[2, 2] *= 2.5
    image = nib.Nifti1Image(np.random.default_rng(0).random((6, 5, 4), np.float32), np.diag([2.0, 2, 5, 1]))
    image.set_qform(np.diag([2.0, 2, 5, 1]), 1)
    image.header.set_sform(affine, 4 if "atlas" in change else 1)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "i.nii")
    if fine:
        found = read_fingerprint(tmp_path / "i.nii")
        np.testing.assert_allclose(found.affine, affine)
        np.testing.assert_allclose(found.other_affine, np.diag([2.0, 2, 5, 1]), atol=1e-6)
    else:
        with pytest.raises(ValueError, match="the header gives two spacings"):
            read_fingerprint(tmp_path / "i.nii")


def test_label_that_a_tool_saved_by_the_qform_alone_is_on_its_image(tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).random((6, 5, 4), np.float32), np.diag([2.0, 2, 5, 1]))
    moved = np.diag([2.0, 2, 5, 1])
    moved[:3, 3] = 30, -12, 40
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "i.nii")
    nib.save(nib.Nifti1Image(np.ones((6, 5, 4), np.uint8), moved), tmp_path / "l.nii")
    check_label_file(tmp_path / "l.nii", tmp_path / "i.nii")
