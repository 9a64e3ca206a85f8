from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data import default_support, load_support, query_list, resolve_support
from bundle.data.support import slice_spacing

from ..conftest import OBLIQUE, affine_of


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


def test_default_support_is_the_first_labelled_scan_and_queries_are_the_others(tmp_path):
    assert default_support(tmp_path) == []
    assert query_list(tmp_path) == []
    for name in ("imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTr/c.nii.gz", "labelsTr/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    support = default_support(tmp_path)
    assert [entry["image"][-8:] for entry in support] == ["b.nii.gz"]
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
