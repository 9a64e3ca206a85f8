"""The generated abdomen: the same twice, anatomically in place, and no easy prey."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from bundle.data.phantom import PHANTOM_LABELS, make_phantom, write_phantom

SMALL = {"shape": (40, 40, 12), "spacing_mm": (8.0, 8.0, 14.0)}
LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN = 1, 2, 3, 4
VOLUME_ML = {LIVER: (450, 1800), RIGHT_KIDNEY: (60, 300), LEFT_KIDNEY: (60, 300), SPLEEN: (40, 450)}


@pytest.fixture(scope="module")
def patients():
    """Four patients at full size: (image, label, affine) each."""
    return [make_phantom(subject) for subject in range(4)]


def center_mm(label, affine, value):
    """World coordinates of the middle of a structure."""
    return affine[:3, :3] @ np.argwhere(label == value).mean(0) + affine[:3, 3]


def dice(a, b):
    """Dice of two masks in percent."""
    return 200 * np.sum(a & b) / (a.sum() + b.sum())


@pytest.mark.parametrize("modality", ["mr", "ct"])
def test_same_arguments_give_the_same_scan(modality):
    first, second = (make_phantom(2, 5, modality, **SMALL) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("other", [{"subject": 2, "seed": 0}, {"subject": 1, "seed": 1}], ids=["subject", "seed"])
def test_another_subject_or_seed_is_another_patient(other):
    image, label, affine = make_phantom(1, 0, **SMALL)
    other_image, other_label, other_affine = make_phantom(**other, **SMALL)
    assert not np.array_equal(label, other_label)
    assert not np.allclose(affine, other_affine)
    tissue = (label == LIVER) & (other_label == LIVER)
    assert abs(image[tissue].mean() / other_image[tissue].mean() - 1) > 0.01


def test_mr_and_ct_of_a_patient_share_the_anatomy():
    mr, ct = (make_phantom(3, 0, modality, **SMALL) for modality in ("mr", "ct"))
    np.testing.assert_array_equal(mr[1], ct[1])
    np.testing.assert_array_equal(mr[2], ct[2])


def test_types_and_shapes(patients):
    for image, label, affine in patients:
        assert image.shape == label.shape == (160, 160, 24)
        assert (image.dtype, label.dtype, affine.shape) == (np.int16, np.uint8, (4, 4))


def test_every_organ_has_a_sensible_volume(patients):
    for _, label, affine in patients:
        assert set(np.unique(label)) == set(PHANTOM_LABELS)
        voxel_ml = np.linalg.det(affine[:3, :3]) / 1000
        for value, (low, high) in VOLUME_ML.items():
            assert low < (label == value).sum() * voxel_ml < high


def test_volumes_do_not_depend_on_the_grid():
    volumes = []
    for grid in ({"shape": (160, 160, 24), "spacing_mm": (2, 2, 7)}, {"shape": (80, 80, 42), "spacing_mm": (4, 4, 4)}):
        _, label, affine = make_phantom(1, **grid)
        volumes.append(np.bincount(label.ravel())[1:] * np.linalg.det(affine[:3, :3]))
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.1)


def test_affine_is_right_handed_oblique_and_in_millimeters(patients):
    for _, _, affine in patients:
        assert np.linalg.det(affine[:3, :3]) == pytest.approx(28, rel=1e-4)
        assert nib.aff2axcodes(affine) == ("R", "A", "S")
        direction = affine[:3, :3] / (2, 2, 7)
        np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-5)
        assert 1e-3 < np.abs(direction - np.eye(3)).max() < 0.15


def test_organs_lie_where_they_belong(patients):
    for _, label, affine in patients:
        liver, right, left, spleen = (center_mm(label, affine, v) for v in (LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN))
        assert 90 < right[0] - left[0] < 180  # world x grows to the patient's right
        assert 80 < liver[0] - spleen[0] < 220
        assert min(liver[1], spleen[1]) > max(right[1], left[1])  # kidneys lie at the back
        assert liver[2] > right[2]  # the liver sits on the right kidney
        assert spleen[2] > left[2]


def test_organs_end_at_different_slices_inside_the_scan(patients):
    for _, label, _ in patients:
        ends = [tuple(np.flatnonzero((label == v).any((0, 1)))[[0, -1]]) for v in VOLUME_ML]
        assert len(set(ends)) >= 3
        assert max(last for _, last in ends) < label.shape[2]
        areas = (label == LIVER).sum((0, 1))
        assert areas[ends[0][0]] < areas.max() / 2  # rounded, no prism
        assert areas[ends[0][1]] < areas.max() / 2


def test_mr_intensities_are_like_fat_suppressed_t2(patients):
    for image, label, _ in patients:
        assert image.min() >= 0
        assert image.max() < 4095
        liver, right, left, spleen = (np.median(image[label == v]) for v in VOLUME_ML)
        assert 1.2 * liver < min(right, left, spleen)
        assert np.median(image[:6, :6]) < 40  # air


def test_ct_intensities_are_hounsfield_units():
    for subject in range(3):
        image, label, _ = make_phantom(subject, modality="ct")
        medians = [np.median(image[label == v]) for v in VOLUME_ML]
        for median, (low, high) in zip(medians, [(70, 140), (100, 220), (100, 220), (80, 160)], strict=True):
            assert low < median < high
        assert np.median(image[:6, :6]) == pytest.approx(-1000, abs=10)
        assert 300 < image.max() <= 3071  # bone
        assert ((image > -130) & (image < -70)).mean() > 0.03  # fat


def test_copying_a_neighbors_mask_is_no_solution(patients):
    scores = [
        [dice(a[1] == value, b[1] == value) for value in VOLUME_ML]
        for i, a in enumerate(patients)
        for j, b in enumerate(patients)
        if i < j
    ]
    assert 40 < np.mean(scores) < 65


@pytest.mark.parametrize("modality", ["mr", "ct"])
def test_no_intensity_window_finds_an_organ(modality):
    image, label, _ = make_phantom(1, 0, modality)
    best = {}
    for value in VOLUME_ML:
        mask = label == value
        lows = np.quantile(image[mask], (0.02, 0.1, 0.2, 0.3))
        highs = np.quantile(image[mask], (0.7, 0.8, 0.9, 0.98))
        best[value] = max(dice((image >= low) & (image <= high), mask) for low in lows for high in highs)
    assert best[LIVER] < 80
    assert max(best[v] for v in (RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN)) < 65


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "us"}, "modality must be one of .*'us'"),
        ({"subject": -1}, "subject and seed must be 0 or larger, got -1 and 0"),
        ({"seed": -3}, "subject and seed must be 0 or larger, got 1 and -3"),
        ({"shape": (8, 8)}, "shape must be three sizes"),
        ({"shape": (8, 8, 1)}, "shape must be three sizes"),
        ({"spacing_mm": (1, 0, 1)}, "spacing_mm must be three positive"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(**{"subject": 1, **change})


def test_written_folder_has_the_decathlon_layout(tmp_path):
    root = write_phantom(tmp_path / "phantom", num_subjects=2, num_test=1, modality="ct", seed=4, **SMALL)
    described = json.loads((root / "dataset.json").read_text())
    assert described["labels"] == {
        "0": "background",
        "1": "liver",
        "2": "right kidney",
        "3": "left kidney",
        "4": "spleen",
    }
    assert (described["modality"], described["numTraining"]) == ({"0": "CT"}, 2)
    assert described["test"] == ["./imagesTs/phantom_03.nii.gz"]
    written = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.nii.gz"))
    assert written == [
        "imagesTr/phantom_01.nii.gz",
        "imagesTr/phantom_02.nii.gz",
        "imagesTs/phantom_03.nii.gz",
        "labelsTr/phantom_01.nii.gz",
        "labelsTr/phantom_02.nii.gz",
        "labelsTs/phantom_03.nii.gz",
    ]
    image, label, affine = make_phantom(2, 4, "ct", **SMALL)
    for kind, voxels in (("image", image), ("label", label)):
        nifti = nib.load(root / described["training"][1][kind])
        np.testing.assert_array_equal(np.asarray(nifti.dataobj), voxels)
        assert nifti.get_data_dtype() == voxels.dtype
        np.testing.assert_allclose(nifti.get_sform(), affine, atol=1e-4)
        np.testing.assert_allclose(nifti.get_qform(), affine, atol=1e-3)


def test_numbers_of_patients_are_checked(tmp_path):
    with pytest.raises(ValueError, match="num_subjects must be at least 1 .* got 0 and 0"):
        write_phantom(tmp_path, num_subjects=0)
    with pytest.raises(ValueError, match="got 1 and -1"):
        write_phantom(tmp_path, num_subjects=1, num_test=-1)


def test_command_writes_and_refuses(tmp_path):
    command = [sys.executable, "-m", "scripts.phantom", "--dst", str(tmp_path), "--num_subjects", "1"]
    done = subprocess.run([*command, "--seed", "3"], capture_output=True, text=True, check=True)
    assert str(tmp_path) in done.stdout
    assert (tmp_path / "labelsTr" / "phantom_01.nii.gz").is_file()
    failed = subprocess.run([*command, "--modality", "us"], capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert failed.stderr.strip().splitlines()[-1] == "error: modality must be one of ['ct', 'mr'], got 'us'"
