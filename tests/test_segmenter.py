from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import bundle
from bundle import FewShotSegmenter
from bundle.transforms.spatial import slice_axis

from .conftest import GEOMETRIES, ROOT, TINY_NETWORK, save_nifti

SETTINGS = {"device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}


def scan_of(root, number, folder="imagesTr"):
    return str(root / folder / f"phantom_{number:02d}.nii.gz")


def load(path):
    """Values and affine of a file."""
    file = nib.load(path)
    return np.asarray(file.dataobj), file.affine


@pytest.fixture(scope="module")
def segmenter(tiny_weights, phantom_dir):
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS)
    made.set_support(scan_of(phantom_dir, 1), scan_of(phantom_dir, 1, "labelsTr"))
    return made


@pytest.fixture(scope="module")
def query(phantom_dir):
    return scan_of(phantom_dir, 5, "imagesTs")


@pytest.fixture(scope="module")
def expected(segmenter, query):
    return segmenter.segment(query)


def test_a_file_gives_what_the_command_line_saves(run_config, phantom_dir, query, expected):
    support = [{"image": "imagesTr/phantom_01.nii.gz", "label": "labelsTr/phantom_01.nii.gz"}]
    out = run_config("inference", support=support, datalist=[{"image": query}], save_confidence=True)
    saved, affine = load(out / "phantom_05" / "phantom_05_seg.nii.gz")
    assert isinstance(expected, MetaTensor)
    np.testing.assert_array_equal(expected.numpy(), saved)
    np.testing.assert_allclose(expected.affine, affine)
    assert len(np.unique(saved)) > 2


def test_no_file_is_written(segmenter, query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter.segment(query, confidence=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channel", [False, True], ids=["3D", "channel first"])
@pytest.mark.parametrize("kind", ["array", "tensor", "meta tensor"])
def test_the_result_has_the_type_and_shape_of_the_scan(segmenter, query, expected, kind, channel):
    values, affine = load(query)
    values = values[None] if channel else values
    given = values if kind == "array" else torch.as_tensor(values.astype(np.int16))
    if kind == "meta tensor":
        given = MetaTensor(given, affine=torch.as_tensor(affine))
    result = segmenter.segment(given, affine=None if kind == "meta tensor" else affine)
    assert type(result) is type(given)
    assert result.shape == given.shape
    np.testing.assert_array_equal(np.asarray(result).squeeze(), expected.numpy())
    if kind == "meta tensor":
        np.testing.assert_allclose(result.affine, affine)


@pytest.mark.parametrize("axes", ["LPS", "RAI", "SAR"])
def test_other_orientation_in_same_orientation_out(segmenter, query, expected, axes):
    file = nib.load(query)
    turn = nib.orientations.ornt_transform(nib.io_orientation(file.affine), nib.orientations.axcodes2ornt(tuple(axes)))
    turned = file.as_reoriented(turn)
    result = segmenter.segment(np.asarray(turned.dataobj), affine=turned.affine)
    truth = nib.orientations.apply_orientation(expected.numpy(), turn)
    assert result.shape == truth.shape
    assert (result != truth).mean() < 1e-3  # the frame's pixel grid is not symmetric to the last bit


def test_the_spacing_stands_for_an_affine(segmenter, query):
    values, affine = load(query)
    upright = nib.as_closest_canonical(nib.load(query))
    values, affine = np.asarray(upright.dataobj), upright.affine
    spacing = nib.affines.voxel_sizes(affine)
    by_spacing = segmenter.segment(values, spacing=spacing)
    np.testing.assert_array_equal(by_spacing, segmenter.segment(values, affine=np.diag([*spacing, 1.0])))
    assert not np.array_equal(by_spacing, segmenter.segment(values))  # slices a millimeter apart look smoother


def test_the_scan_given_is_not_changed(segmenter, query):
    values = load(query)[0].astype(np.float32)
    tensor = torch.from_numpy(values.copy())
    segmenter.segment(tensor)
    np.testing.assert_array_equal(tensor.numpy(), values)


def test_arrays_as_support_equal_files(tiny_weights, phantom_dir, query, expected):
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS)
    (image, affine), (label, _) = load(scan_of(phantom_dir, 1)), load(scan_of(phantom_dir, 1, "labelsTr"))
    made.set_support(image, label, affine=affine)
    np.testing.assert_array_equal(made.segment(query).numpy(), expected.numpy())
    made.set_support(MetaTensor(torch.as_tensor(image.astype(np.float32)), affine=affine), torch.as_tensor(label))
    np.testing.assert_array_equal(made.segment(query).numpy(), expected.numpy())
    made.set_support(scan_of(phantom_dir, 1), label[None])  # the label takes its image's affine
    np.testing.assert_array_equal(made.segment(query).numpy(), expected.numpy())


def test_each_support_has_its_own_values(tiny_weights, phantom_dir, query):
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS)
    images = [scan_of(phantom_dir, n) for n in (1, 2)]
    labels = [scan_of(phantom_dir, n, "labelsTr") for n in (1, 2)]
    made.set_support(images, labels, values=[{1: 7}, {2: 300}])
    result = made.segment(query)
    assert set(np.unique(result)) <= {0, 7, 300}
    assert result.dtype == torch.int16
    assert result.meta["label_values"].flatten().tolist() == [7, 300]


def test_unlabelled_slices_are_unknown_if_said(tiny_weights, phantom_dir, query):
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS)
    image, label = scan_of(phantom_dir, 1), load(scan_of(phantom_dir, 1, "labelsTr"))[0].copy()
    shown = np.flatnonzero(label.any(axis=(0, 1)))
    label[..., np.setdiff1d(shown, shown[len(shown) // 2 - 1 : len(shown) // 2 + 1])] = 0  # two neighbors stay
    volume = {}
    for slices in ("all", "labelled"):
        made.set_support(image, label, slices=slices)
        volume[slices] = int((made.segment(query) > 0).sum())
    assert volume["all"] < volume["labelled"]  # there, slices without a label say that no organ is there
    with pytest.raises(ValueError, match="slices of a support must be"):
        made.set_support([image], [label], slices=["some"])


def test_pseudo_supports_as_arrays_equal_files(run_config, tiny_weights, phantom_dir, query, expected):
    others = [scan_of(phantom_dir, number) for number in (2, 3)]
    arrays = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), num_pseudo_supports=2, **SETTINGS)
    arrays.set_support(scan_of(phantom_dir, 1), scan_of(phantom_dir, 1, "labelsTr"))
    held = [MetaTensor(torch.as_tensor(v.astype(np.float32)), affine=affine) for v, affine in map(load, others)]
    arrays.set_pseudo_supports(held)
    found = arrays.segment(query)
    assert not torch.equal(found, expected)
    support = [{"image": "imagesTr/phantom_01.nii.gz", "label": "labelsTr/phantom_01.nii.gz"}]
    images = [{"image": path} for path in (others[0], query, others[1])]  # a query is no pseudo-support to itself
    queries = [{"image": query}]
    out = run_config(
        "inference", support=support, datalist=queries, num_pseudo_supports=2, pseudo_support_images=images
    )
    np.testing.assert_array_equal(found.numpy(), load(out / "phantom_05" / "phantom_05_seg.nii.gz")[0])
    arrays.set_pseudo_supports([])
    assert torch.equal(arrays.segment(query), expected)


def test_pseudo_supports_must_be_wanted(segmenter, query):
    with pytest.raises(RuntimeError, match="num_pseudo_supports"):
        segmenter.set_pseudo_supports(query)


def test_labels_of_the_config_are_the_ones_segmented(tiny_weights, phantom_dir, query):
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), labels=[2], **SETTINGS)
    made.set_support(scan_of(phantom_dir, 1), scan_of(phantom_dir, 1, "labelsTr"))
    assert set(np.unique(made.segment(query))) <= {0, 2}


def test_confidence_tells_how_sure_each_voxel_is(segmenter, query, expected):
    found = segmenter.segment(load(query)[0], affine=load(query)[1], confidence=True)
    np.testing.assert_array_equal(found.label, expected.numpy())
    assert found.confidence.shape == found.label.shape
    assert found.confidence.dtype == np.uint8
    assert 100 / 20 < found.confidence[found.label > 0].min() <= found.confidence.max() <= 100
    assert -1 <= found.support_similarity <= 1


def test_a_scan_segments_itself(tiny_weights, phantom_dir):
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS, num_slices=1)
    label = load(scan_of(phantom_dir, 1, "labelsTr"))[0]
    made.set_support(scan_of(phantom_dir, 1), (label == 1).astype(np.uint8))
    result = np.asarray(made.segment(scan_of(phantom_dir, 1)))
    overlap = 2 * ((result == 1) & (label == 1)).sum() / ((result == 1).sum() + (label == 1).sum())
    assert overlap > 0.5


def test_whatever_the_geometry_the_grid_stays(segmenter, geometry):
    affine, shape = geometry
    values = np.random.default_rng(0).normal(size=shape)
    result = segmenter.segment(values, affine=affine)
    assert result.shape == shape


@pytest.mark.parametrize("padded", ["query", "support", "both"])
def test_empty_slices_change_nothing(tiny_weights, phantom_dir, query, padded):
    # what follows the histogram of a whole scan is given here, since empty slices have a part in it
    known = {"body_threshold": 60, "intensity#upper_percentile": 100}
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS, **known)

    def scan(path, name):
        """Array and affine of a file, with empty slices around its own if wanted."""
        file = nib.load(path)
        values, affine = np.asarray(file.dataobj), file.affine.copy()
        axis = slice_axis(affine)
        if padded not in (name, "both"):
            return values, affine, ...
        affine[:3, 3] -= 9 * affine[:3, axis]
        sides = [(9, 5) if own == axis else (0, 0) for own in range(3)]
        inside = tuple(slice(before, -after or None) for before, after in sides)
        return np.pad(values, sides, constant_values=values.min()), affine, inside

    made.set_support(scan_of(phantom_dir, 1), scan_of(phantom_dir, 1, "labelsTr"))
    expected = np.asarray(made.segment(query))
    image, affine, _ = scan(scan_of(phantom_dir, 1), "support")
    made.set_support(image, scan(scan_of(phantom_dir, 1, "labelsTr"), "support")[0], affine=affine)
    image, affine, inside = scan(query, "query")
    found = np.asarray(made.segment(image, affine=affine))
    np.testing.assert_array_equal(found[inside], expected)
    assert (found > 0).sum() == (expected > 0).sum() > 0


def test_nothing_works_before_a_support_is_set(tiny_weights, query):
    made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS)
    with pytest.raises(RuntimeError, match=r"no support: call set_support\(images, labels\) before"):
        made.segment(query)


@pytest.mark.parametrize(
    ("scan", "kind", "message"),
    [
        (np.ones((4, 4)), ValueError, r"image: expected one volume .*got shape \(4, 4\)"),
        (np.ones((2, 8, 8, 4)), ValueError, r"image: expected one volume .*got shape \(2, 8, 8, 4\)"),
        (np.ones((8, 8, 4)), ValueError, "image: every voxel is 1"),
        (np.full((8, 8, 4), np.nan), ValueError, "image: contains NaN"),
        (np.ones((8, 8, 4), complex), TypeError, "image: expected a path, or an array .* got an array of complex128"),
        (None, TypeError, "image: expected a path, or an array or tensor .* got NoneType"),
        ("nothing.nii.gz", FileNotFoundError, "nothing.nii.gz: no such file"),
    ],
    ids=["2D", "two channels", "constant", "NaN", "complex", "None", "no file"],
)
def test_a_bad_scan_ends_in_one_line(segmenter, scan, kind, message):
    with pytest.raises(kind, match=message) as caught:
        segmenter.segment(scan)
    assert "\n" not in str(caught.value)


IMAGE, LABEL = np.random.default_rng(1).normal(size=(16, 16, 4)), np.ones((16, 16, 4), int)


@pytest.mark.parametrize(
    ("image", "label", "options", "kind", "message"),
    [
        (IMAGE, LABEL[:8], {}, ValueError, r"support label 1: label of shape \(8, 16, 4\) does not fit the image supp"),
        (IMAGE, 0 * LABEL, {}, ValueError, "support label 1: the support label has no foreground"),
        (IMAGE, 0.5 * LABEL, {}, ValueError, "support label 1: label values must be whole numbers from 0"),
        ([IMAGE, IMAGE], [LABEL], {}, ValueError, "a label for each image and one at least, got 1 of 2"),
        ([], [], {}, ValueError, "a label for each image and one at least, got 0 of 0"),
        (
            [IMAGE],
            [LABEL],
            {"values": [{1: 2}, None]},
            ValueError,
            "values must be one for all scans .* each of 1, got 2",
        ),
        (IMAGE, LABEL, {"values": {5: 1}}, ValueError, r"none of the annotated values \[5\] occurs"),
        (IMAGE, LABEL, {"affine": np.eye(3)}, ValueError, r"support image 1: affine must be of shape \(4, 4\)"),
        (IMAGE, LABEL, {"affine": np.zeros((4, 4))}, ValueError, "support image 1: the header has no valid geometry"),
        (IMAGE, LABEL, {"affine": np.eye(4), "spacing": 1.0}, ValueError, "give affine or spacing, not both"),
        (IMAGE, "nothing.nii.gz", {}, FileNotFoundError, "nothing.nii.gz: no such file"),
    ],
    ids=[
        "other shape",
        "empty",
        "not whole",
        "a label missing",
        "nothing",
        "too many values",
        "values that are not there",
        "affine",
        "singular",
        "affine and spacing",
        "no file",
    ],
)
def test_a_bad_support_ends_in_one_line(segmenter, image, label, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        segmenter.set_support(image, label, **options)
    assert "\n" not in str(caught.value)


def test_a_label_beside_its_image_is_refused(segmenter, tmp_path):
    affine = GEOMETRIES["RAS"][0]
    moved = affine.copy()
    moved[:3, 3] += 30
    path = save_nifti(tmp_path / "label.nii.gz", LABEL.astype(np.uint8), moved)
    with pytest.raises(ValueError, match=r"label.nii.gz: lies up to 52.0 mm beside its image support image 1"):
        segmenter.set_support(IMAGE, str(path), affine=affine)


def test_an_unknown_id_is_refused(tiny_weights):
    with pytest.raises(ValueError, match="num_slice: the configs have no such id; did you mean num_slices"):
        FewShotSegmenter.from_bundle(ROOT, num_slice=3)
    with pytest.raises(FileNotFoundError, match="no such config; path must be the bundle's folder"):
        FewShotSegmenter.from_bundle(ROOT / "docs")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        FewShotSegmenter.from_bundle(ROOT, ckpt_path="nothing.pt", **SETTINGS)


def test_the_lines_of_the_readme_run_where_the_bundle_is_installed(
    tiny_weights, phantom_dir, query, expected, tmp_path
):
    lines = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    package = tmp_path / "installed" / "fewshot_alpnet"
    for part in ("configs", "models"):
        (package / part).mkdir(parents=True)
    shutil.copytree(ROOT / "bundle", package / "bundle", ignore=shutil.ignore_patterns("__pycache__"))
    config = json.loads((ROOT / "configs" / "inference.json").read_text()) | SETTINGS
    (package / "configs" / "inference.json").write_text(json.dumps(config))
    shutil.copy(tiny_weights, package / "models" / "model.pt")
    names = {"image": scan_of(phantom_dir, 1), "label": scan_of(phantom_dir, 1, "labelsTr"), "query": query}
    given = "".join(f"{name} = {str(path)!r}\n" for name, path in names.items())
    program = f"{given}{lines}\nimport numpy\nnumpy.save('label_map.npy', label_map.numpy())\n"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "label_map.npy"), expected.numpy())


def test_the_package_has_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'Segmenter'"):
        bundle.Segmenter  # noqa: B018


def test_supports_that_show_no_wanted_label_are_left_aside(tiny_weights, phantom_dir, query):
    images = [scan_of(phantom_dir, n) for n in (1, 2)]
    labels = [load(scan_of(phantom_dir, n, "labelsTr"))[0] for n in (1, 2)]
    labels = [np.where(label == value, label, 0) for label, value in zip(labels, (1, 2))]
    found = {}
    for wanted, used in ((1, 2), (1, 1)):
        made = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), labels=[wanted], **SETTINGS)
        made.set_support(images[:used], labels[:used])
        found[used] = made.segment(query)
    assert torch.equal(found[1], found[2])
    with pytest.raises(ValueError, match="no support shows 3; supports show 1, 2"):
        FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), labels=[3], **SETTINGS).set_support(
            images, labels
        )


def partly_labelled(phantom_dir, number=2):
    """Image and label of a scan, and its label on every third of the slices that show it."""
    (image, affine), (label, _) = (load(scan_of(phantom_dir, number, folder)) for folder in ("imagesTr", "labelsTr"))
    kept = np.flatnonzero((label > 0).any(axis=(0, 1)))[::3]
    part = np.zeros_like(label)
    part[..., kept] = label[..., kept]
    return image, affine, label, part, kept


def test_a_scan_of_which_some_slices_are_labelled_is_completed(segmenter, phantom_dir, query, expected):
    image, affine, label, part, kept = partly_labelled(phantom_dir)
    found = segmenter.complete(image, part, affine=affine)
    assert found.dtype == expected.numpy().dtype
    np.testing.assert_array_equal(found[..., kept], label[..., kept])
    between = np.setdiff1d(np.arange(kept[0], kept[-1]), kept)
    segmenter.inferer.shape_interpolation, stage = None, segmenter.inferer.shape_interpolation
    by_images = segmenter.complete(image, part, affine=affine)
    segmenter.inferer.shape_interpolation = stage

    def dice(result):
        shown, truth = (array[..., between] > 0 for array in (result, label))
        return 2 * (shown & truth).sum() / (shown.sum() + truth.sum())

    assert dice(found) > max(0.75, dice(by_images))  # by an untrained network
    np.testing.assert_array_equal(segmenter.segment(query), expected)  # its support is what it was


def test_files_are_completed_without_another_support(tiny_weights, phantom_dir, tmp_path):
    image, affine, label, part, kept = partly_labelled(phantom_dir)
    drawn = save_nifti(tmp_path / "part.nii.gz", part, affine)
    segmenter = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), **SETTINGS)
    found = segmenter.complete(scan_of(phantom_dir, 2), drawn, confidence=True)
    np.testing.assert_array_equal(found.label.numpy()[..., kept], label[..., kept])
    assert np.median(found.confidence.numpy()[..., kept]) == 100
    assert set(found.reverse_dice) == set(found.expected_dice) == set(np.unique(part)) - {0}
    assert all(0 < each.low < each.dice < each.high < 100 for each in found.expected_dice.values())
    with pytest.raises(RuntimeError, match="no support"):
        segmenter.segment(scan_of(phantom_dir, 3))
    with pytest.raises(ValueError, match="empty.nii.gz: the support label has no foreground"):
        segmenter.complete(scan_of(phantom_dir, 2), save_nifti(tmp_path / "empty.nii.gz", 0 * part, affine))


def test_of_a_completed_scan_wanted_labels_alone_are_kept(tiny_weights, phantom_dir):
    image, affine, label, part, kept = partly_labelled(phantom_dir)
    segmenter = FewShotSegmenter.from_bundle(ROOT, ckpt_path=str(tiny_weights), labels=[1], **SETTINGS)
    found = segmenter.complete(image, part, affine=affine)
    assert set(np.unique(found)) == {0, 1}
    shown = kept[(label == 1)[..., kept].any(axis=(0, 1))]
    np.testing.assert_array_equal(found[..., shown], (label == 1)[..., shown])
