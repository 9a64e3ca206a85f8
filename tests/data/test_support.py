from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data import default_support, label_names, load_support, make_datalist, query_list, resolve_support
from bundle.data.support import SupportScan, check_wanted, keep_labels, showing_entries, slice_spacing

from ..conftest import OBLIQUE, affine_of, save_nifti


@pytest.fixture
def files(tmp_path):
    """A labelled scan in a data set."""
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.nii.gz").touch()
    return {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}


def test_paths_may_be_relative_to_the_data_set(files, tmp_path):
    (resolved,) = resolve_support([files], tmp_path)
    assert resolved == {key: str(tmp_path / path) for key, path in files.items()}
    assert resolve_support([resolved], None) == [resolved]


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ([], "no support: label at least one scan and pass it"),
        ([{"image": "imagesTr/a.nii.gz"}], "a support entry needs the keys 'image' and 'label', got {'image'"),
        (["imagesTr/a.nii.gz"], "a support entry needs the keys 'image' and 'label', got 'imagesTr/a.nii.gz'"),
        ([{"image": "imagesTr/a.nii.gz", "label": "no.nii.gz"}], "no.nii.gz: no such support label; give a path"),
        ([{"image": "labelsTr", "label": "labelsTr/a.nii.gz"}], "labelsTr: no such support image"),
        ([{"image": None, "label": "labelsTr/a.nii.gz"}], "a support's image must be a path, got None"),
        ("imagesTr/a.nii.gz", "support must be a list of {'image': path, 'label': path}, got 'imagesTr/a.nii.gz'"),
        ({"image": "a", "label": "b"}, "support must be a list of {'image': path, 'label': path}, got {'image'"),
    ],
    ids=["empty", "no label", "a string", "missing label", "a folder", "None", "one path", "one entry"],
)
def test_unusable_support_is_named(files, tmp_path, support, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=re.escape(message)):
        resolve_support(support, tmp_path)


def test_default_support_are_the_labelled_scans_and_queries_the_others(tmp_path):
    assert default_support(tmp_path) == []
    assert query_list(tmp_path) == []
    names = [f"imagesTr/{case}.nii.gz" for case in "abcd"] + ["labelsTr/b.nii.gz", "labelsTr/d.nii.gz"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    support = default_support(tmp_path)
    assert [entry["image"][-8:] for entry in support] == ["b.nii.gz", "d.nii.gz"]
    assert [q["image"][-8:] for q in query_list(tmp_path, support)] == ["a.nii.gz", "c.nii.gz"]
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "q.nii.gz").touch()
    assert [q["image"][-8:] for q in query_list(tmp_path, support)] == ["q.nii.gz"]


def scan(image, label):
    """A preprocessing that hands out these arrays whatever the files."""
    made = {"image": MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 2, 7, 1]))), "label": MetaTensor(label)}
    return lambda entry: made


ENTRY = {"image": "d/x.nii.gz", "label": "d/y.nii.gz"}
IMAGE = torch.arange(32.0).reshape(1, 4, 4, 2)


def test_support_scan_holds_what_the_inferer_needs():
    label = torch.zeros(1, 4, 4, 2)
    label[0, 0, 0, 0], label[0, 1, 1, 1], label[0, 2, 2, 1] = 3, 5, 9
    whole = load_support(ENTRY, scan(IMAGE, label))
    assert whole.values == [3, 5, 9]
    assert (whole.name, whole.spacing_mm) == ("x", 7.0)
    assert whole.label.dtype == torch.int64
    assert type(whole.image) is torch.Tensor
    part = load_support(ENTRY, scan(IMAGE, label), labels=[9, 3, 7])
    assert part.values == [3, 9]
    assert part.label[1, 1, 1] == 0


@pytest.mark.parametrize(
    ("image", "label", "labels", "message"),
    [
        (IMAGE, torch.zeros(1, 4, 4, 2), None, "d/y.nii.gz: the support label has no foreground"),
        (IMAGE, torch.ones(1, 4, 4, 3), None, "d/y.nii.gz: label of shape (4, 4, 3) does not fit the image d/x.nii.gz"),
        (
            IMAGE,
            torch.full((1, 4, 4, 2), 0.5),
            None,
            "d/y.nii.gz: label values must be whole numbers from 0, got [0.5]",
        ),
        (IMAGE, -torch.ones(1, 4, 4, 2), None, "whole numbers from 0, got [-1.0]"),
        (IMAGE * torch.nan, torch.ones(1, 4, 4, 2), None, "d/x.nii.gz: contains NaN or infinite values"),
        (IMAGE * 0, torch.ones(1, 4, 4, 2), None, "d/x.nii.gz: every voxel is 0"),
        (IMAGE, torch.ones(1, 4, 4, 2), [2, 3], "none of the wanted label values [2, 3] occurs, only [1]"),
    ],
    ids=["empty", "shape", "fraction", "negative", "NaN", "constant", "other labels"],
)
def test_unusable_scan_is_named_by_its_file(image, label, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_support(ENTRY, scan(image, label), labels)


def test_distance_of_slices():
    assert slice_spacing(torch.zeros(1, 2, 2, 2)) == 1.0
    oblique = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.as_tensor(affine_of(OBLIQUE, (1.5, 1.5, 6.5))))
    assert slice_spacing(oblique) == pytest.approx(6.5)
    batched = MetaTensor(torch.zeros(1, 1, 2, 2, 2), affine=np.stack([affine_of(OBLIQUE, (1.5, 1.5, 6.5))]))
    assert slice_spacing(batched) == pytest.approx(6.5)


def test_a_scan_with_the_name_of_a_support_elsewhere_is_segmented(tmp_path):
    for path in ("atlas/case_1.nii.gz", "hospital/imagesTs/case_1.nii.gz", "hospital/imagesTs/case_2.nii.gz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    hospital, atlas = tmp_path / "hospital", {"label": "l.nii.gz"}
    names = [f"{hospital}/imagesTs/case_{n}.nii.gz" for n in (1, 2)]
    elsewhere = [{**atlas, "image": f"{tmp_path}/atlas/case_1.nii.gz"}]
    assert [entry["image"] for entry in query_list(hospital, elsewhere)] == names
    (tmp_path / "link").symlink_to(hospital)
    for own in ("imagesTs/case_1.nii.gz", names[0], f"{tmp_path}/link/imagesTs/case_1.nii.gz"):
        assert [entry["image"] for entry in query_list(hospital, [{**atlas, "image": own}])] == names[1:]


def labels_of(*values):
    """A label map that shows these values."""
    label = np.zeros((4, 4, 2), np.uint8)
    label.flat[: len(values)] = values
    return label


@pytest.fixture
def mixed(tmp_path):
    """Three support scans that show 1, 2 and 3, and nothing; the second one's 2 is 4 in the result."""
    shown = [labels_of(1), labels_of(2, 3), labels_of()]
    files = [str(save_nifti(tmp_path / f"{index}.nii.gz", label)) for index, label in enumerate(shown)]
    entries = [{"image": file, "label": file} for file in files]
    entries[1]["values"] = {"2": 4, "3": 3}
    return entries


@pytest.mark.parametrize(
    ("labels", "expected"), [([1], [0]), ([4], [1]), ([3, 1], [0, 1]), ([1, 9], [0]), (None, [0, 1])]
)
def test_scans_that_show_a_wanted_label_are_used(mixed, labels, expected):
    assert showing_entries(mixed, labels) == [mixed[index] for index in expected]


def test_labels_that_no_support_shows_are_refused(mixed):
    with pytest.raises(ValueError, match=r"^labels: no support shows 2; supports show 1, 3, 4$"):
        showing_entries(mixed, [2])
    with pytest.raises(ValueError, match=r"^labels: no support shows 2 \(spleen\), 9; supports show 1 \(liver\), 3$"):
        check_wanted([1, 2, 9], [[1], [1, 3]], {1: "liver", 2: "spleen"})
    with pytest.raises(ValueError, match="2.nii.gz: has no foreground"):
        showing_entries([mixed[2], mixed[2]], None)


def test_scans_in_memory_keep_their_wanted_labels():
    first, second = (
        SupportScan(IMAGE, torch.from_numpy(labels_of(*values)).long(), 7.0, "a") for values in ((1, 2), (2,))
    )
    assert keep_labels([first, second], None) == [first, second]
    (kept,) = keep_labels([first, second], [1])
    assert kept.values == [1]
    assert [scan.values for scan in keep_labels([first, second], [2])] == [[2], [2]]
    with pytest.raises(ValueError, match="no support shows 3; supports show 1, 2"):
        keep_labels([first, second], [3])


@pytest.mark.parametrize("name", ["a#b", "#", "a##b", "a#b/c#d"])
def test_a_folder_with_a_number_sign_is_found_as_configs_write_it(tmp_path, name):
    root, written = tmp_path / name, f"{tmp_path}/{name.replace('#', '::')}"
    for case in ("a", "b"):
        save_nifti(root / "imagesTr" / f"{case}.nii.gz", labels_of())
    save_nifti(root / "labelsTr" / "a.nii.gz", labels_of(1))
    (root / "dataset.json").write_text('{"labels": {"1": "liver"}}')
    assert [entry["image"] for entry in make_datalist(written)] == [f"{root}/imagesTr/{case}.nii.gz" for case in "ab"]
    assert label_names(written) == {1: "liver"}
    support = [{"image": f"{written}/imagesTr/a.nii.gz", "label": f"{written}/labelsTr/a.nii.gz"}]
    relative = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    for entries in (support, relative, default_support(written)):
        assert resolve_support(entries, written) == [
            {"image": f"{root}/imagesTr/a.nii.gz", "label": f"{root}/labelsTr/a.nii.gz"}
        ]
        assert [entry["image"] for entry in query_list(written, entries)] == [f"{root}/imagesTr/b.nii.gz"]


def test_a_folder_that_is_called_so_stays(tmp_path):
    for name in ("a::b", "a#b"):
        save_nifti(tmp_path / name / "imagesTr" / f"{name}.nii.gz", labels_of())
    assert [e["image"][-11:] for e in make_datalist(tmp_path / "a::b")] == ["a::b.nii.gz"[-11:]]
