from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing

from bundle.segmenter import Segmentation
from scripts import volumes as module
from scripts.volumes import (
    CONDITIONS,
    calibration_error,
    count_bins,
    crop,
    flip,
    format_table,
    keep_slices,
    measure,
    orient,
    resample,
    tilt,
    turn,
    volumes,
)

from ..conftest import GEOMETRIES, TINY_NETWORK, world_grid

SETTINGS = {"device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}


def scan(values, affine=None):
    affine = np.diag([2.0, 2.0, 6.0, 1.0]) if affine is None else affine
    return MetaTensor(torch.as_tensor(np.asarray(values))[None].float(), affine=torch.as_tensor(affine))


def height_pair(name="RAS"):
    """A scan that shows how far towards the head each voxel lies, in mm, and the same as its label."""
    affine, shape = GEOMETRIES[name]
    height = world_grid(affine, shape)[..., 2]
    return scan(height, affine), scan(height, affine)


def heights(image):
    """Where the voxels lie by their affine."""
    return world_grid(image.affine.numpy(), image.shape[1:])[..., 2]


@pytest.mark.parametrize("name", ["RAS", "LPS", "permuted SPL", "oblique"])
@pytest.mark.parametrize(
    "change",
    [
        lambda pair: crop(pair, True),
        lambda pair: crop(pair, False),
        lambda pair: flip(pair, True),
        lambda pair: orient(pair, "LPS"),
        lambda pair: orient(pair, "ASL"),
    ],
    ids=["upper half", "lower half", "reversed", "LPS", "ASL"],
)
def test_voxels_stay_where_they_are_in_the_patient(name, change):
    for changed in change(orient(height_pair(name))):
        np.testing.assert_allclose(changed[0].numpy(), heights(changed), atol=1e-3)


def test_the_halves_are_the_whole():
    pair = orient(height_pair("permuted SPL"))
    upper, lower = crop(pair, True)[0], crop(pair, False)[0]
    assert upper.shape[-1] + lower.shape[-1] == pair[0].shape[-1]
    assert upper.min() > lower.max()


def test_a_wrong_header_stays():
    pair = orient(height_pair("RAS"))
    flipped = flip(pair, False)[0]
    np.testing.assert_allclose(flipped.affine, pair[0].affine)
    np.testing.assert_array_equal(flipped.numpy(), pair[0].numpy()[..., ::-1])
    turned = turn(pair)[1]
    np.testing.assert_allclose(turned.affine, pair[1].affine)
    np.testing.assert_array_equal(turned.numpy(), np.rot90(pair[1].numpy(), axes=(1, 2)))


def test_resampling_multiplies_the_spacing():
    affine, shape = GEOMETRIES["oblique"]
    label = np.zeros(shape)
    label[10:30, 10:30, 2:6] = 4
    pair = orient((height_pair("oblique")[0], scan(label, affine)))
    image, truth = resample(pair)
    np.testing.assert_allclose(affine_to_spacing(image.affine, 3), [1.6, 1.6, 9.0], rtol=1e-4)
    assert image.shape == truth.shape
    assert truth.unique().tolist() == [0, 4]
    volumes_mm3 = [float((t == 4).sum()) * np.prod(affine_to_spacing(t.affine, 3).numpy()) for t in (pair[1], truth)]
    assert volumes_mm3[1] == pytest.approx(volumes_mm3[0], rel=0.35)  # 4 slices are 2 or 3 of the thicker ones


def test_a_tilted_patient_keeps_its_voxels():
    pair = height_pair("RAS")
    tilted = tilt(pair)[0]
    np.testing.assert_array_equal(tilted.numpy(), pair[0].numpy())
    directions = tilted.affine.numpy()[:3, :3] / [2.0, 2.0, 6.0]
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-12)
    assert np.rad2deg(np.arccos(directions[2, 2])) == pytest.approx(15.0)


def test_three_slices_of_the_extent_of_all_labels_stay():
    label = np.zeros((8, 8, 20))
    label[1:3, 1:3, 2:8] = 1
    label[4:6, 4:6, 5:14] = 2  # together slices 2 to 13
    kept = keep_slices(scan(label), 3)
    assert kept[0].flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist() == [4, 8, 12]
    assert torch.equal(kept[..., 4].as_subclass(torch.Tensor), scan(label)[..., 4].as_subclass(torch.Tensor))


@pytest.fixture
def result():
    """Two organs, of which the second lies in the part of the scan that was cut away."""
    whole = np.zeros((16, 16, 8))
    whole[2:6, 2:6, 4:8] = 1  # 64 voxels
    whole[8:12, 8:12, 0:4] = 2  # 64 voxels
    truth = whole[..., 4:]
    label = np.zeros(truth.shape)
    label[2:6, 2:4, :] = 1  # half of the first organ
    label[8, 8, :2] = 2  # two voxels of the second
    confidence = np.full(label.shape, 95.0)
    confidence[label == 1], confidence[label == 2] = 80, 60
    image = np.random.default_rng(0).normal(size=truth.shape)
    image[1:15, 1:15] += 100
    found = Segmentation(scan(label).to(torch.uint8), scan(confidence).to(torch.uint8), 0.5, {1: 0.8}, {})
    return measure(found, (scan(image), scan(truth)), {1: "one", 2: "two"}, scan(whole))


def test_what_is_measured_by_hand(result):
    assert result["dice"] == {"one": pytest.approx(66.67), "two": None}
    assert result["false_volume"] == {"two": 3.125}
    assert result["confidence"] == {"one": 80.0, "two": 60.0}
    organs = result["calibration"]["organs"]
    assert sum(organs["count"]) == 34
    assert 34 < sum(result["calibration"]["body"]["count"]) < 16 * 16 * 4  # neither the organs nor all voxels
    assert sum(organs["correct"]) == 32
    assert sum(organs["confidence"]) == pytest.approx(32 * 0.8 + 2 * 0.6)


def test_calibration_error_by_hand():
    sure = count_bins(torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([True, True, True, False]))
    half = count_bins(torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([True, True, False, False]))
    assert calibration_error([sure]) == pytest.approx(0.25)
    assert calibration_error([sure, half]) == pytest.approx(0.125)
    assert np.isnan(calibration_error([]))


def test_the_table_gives_means_over_folds(result):
    rows = [
        {**result, "condition": "upper half", "fold": fold, "seed": 0, "case": str(fold), "seconds": 2.0}
        for fold in (0, 1)
    ]
    rows[1] = {**rows[1], "dice": {"one": 76.67, "two": None}, "false_volume": {"two": 1.125}}
    table = format_table(rows, ["one", "two"])
    assert "| upper half | 71.67 ± 7.07 |  | 71.67 ± 7.07 |" in table
    assert "| upper half | 2.12 (3.12) | 0.224 |" in table


@pytest.fixture(scope="module")
def runs(tiny_weights, tmp_path_factory):
    """What a training of fold 0 leaves."""
    root = tmp_path_factory.mktemp("runs")
    (root / "setting1" / "fold0_seed0" / "models").mkdir(parents=True)
    shutil.copy(tiny_weights, root / "setting1" / "fold0_seed0" / "models" / "model_final.pt")
    return root


def test_the_command_goes_on_where_it_was(phantom_dir, runs, tmp_path, monkeypatch):
    names = ["1 support", "lower half", "resampled", "LPS", "1 support, 3 pseudo-supports", "3 supports, 3 slices"]
    arguments = {"folds": [0], "conditions": names, "num_folds": 2, "overrides": SETTINGS}
    table = volumes(str(phantom_dir), str(runs), str(tmp_path), cases=["phantom_02"], **arguments)
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|") and "±" in line]
    assert rows == names
    assert (tmp_path / "volumes.md").read_text() == table + "\n"
    assert len((tmp_path / "volumes.csv").read_text().splitlines()) == 1 + len(names)
    head, *lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert head.startswith("condition,label,dice,sd,false volume of absent organs (largest),")
    (mean,) = (line for line in lines if line.startswith("1 support,mean,"))
    assert f"| {' ± '.join(mean.split(',')[2:4])} |" in table
    assert f"| {' | '.join(mean.split(',')[5:])} |" in table
    assert {file.stem for file in tmp_path.glob("*.png")} == {f"worst_{CONDITIONS[n].slug}" for n in names}
    results = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "cases").rglob("*.json")}
    assert results["1_support"]["dice"] == results["LPS"]["dice"]  # another order of axes is the same scan
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    monkeypatch.setattr(module, "set_support", lambda *_: pytest.fail("a finished case is measured again"))
    assert volumes(str(phantom_dir), str(runs), str(tmp_path), cases=["phantom_02"], **arguments) == table
    assert stored == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}


def test_the_support_is_never_a_query(phantom_dir, runs, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(module, "set_support", lambda _, entries, slices: used.append((entries, slices)))
    monkeypatch.setattr(module, "measure", lambda *_: {"dice": {}})
    monkeypatch.setattr(module, "_draw_if_worst", lambda *_: None)
    split = module.data.evaluation_split(phantom_dir, "volume", 0, 2)

    given = []

    class Segmenter:
        def segment(self, image, confidence):
            return Segmentation(image, image, 0.0, {}, {})

        def set_pseudo_supports(self, images):
            given.append(images)

    chosen = [
        CONDITIONS[n] for n in ("1 support", "3 supports", "1 support, 3 pseudo-supports", "5 supports, 3 slices")
    ]
    module.measure_fold(Segmenter(), split, split["queries"], chosen, {1: "one"}, tmp_path, {"fold": 0, "seed": 0})
    assert [(len(entries), slices) for entries, slices in used] == [(1, 0), (2, 0), (1, 0), (2, 3)]  # one scan trains
    assert given == [[], [], [split["train"][0]["image"]], []]
    queries = {entry["image"] for entry in split["queries"]}
    assert not [entry for entries, _ in used for entry in entries if entry["image"] in queries]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": ["upside down"]}, r"conditions must be among \['1 support'.* got \['upside down'\]"),
        ({"cases": ["phantom_77"]}, r"no such queries in folds \[0\]: \['phantom_77'\]"),
    ],
)
def test_bad_input_ends_in_one_line(phantom_dir, runs, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        volumes(str(phantom_dir), str(runs), str(tmp_path), folds=[0], num_folds=2, overrides=SETTINGS, **options)


def test_labels_need_names(phantom_dir, runs, tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        shutil.copytree(phantom_dir / folder, tmp_path / "data" / folder)
    assert nib.load(next((tmp_path / "data" / "imagesTr").iterdir())).ndim == 3
    with pytest.raises(ValueError, match="dataset.json must name the labels"):
        volumes(str(tmp_path / "data"), str(runs), str(tmp_path / "out"))
