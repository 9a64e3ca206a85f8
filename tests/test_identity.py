from __future__ import annotations

import importlib
import os

import numpy as np
import torch
from monai.transforms import LoadImaged

from bundle import identity
from bundle.identity import code_digest, describe, file_digest, installed_versions
from bundle.transforms import RandView

from .conftest import save_nifti


def test_functions_and_views_are_told_apart():
    assert describe(lambda x: x > 1) != describe(lambda x: x > 2)
    assert describe(torch.relu) == describe(torch.relu)
    assert describe(RandView(zoom=(1, 2))) != describe(RandView(zoom=(1, 3)))
    inner: list = []
    inner.append(inner)
    assert describe(inner) == ["above"]


def test_inner_transforms_count():
    assert describe(LoadImaged("image")) == describe(LoadImaged("image"))
    assert describe(LoadImaged("image")) != describe(LoadImaged("image", dtype=np.float64))


def test_use_changes_nothing(tmp_path):
    load = LoadImaged("image")
    before = describe(load)
    load({"image": save_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4)))})
    assert describe(load) == before


def test_digest_of_a_file_follows_its_content(tmp_path):
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    copy.write_bytes(b"one")
    first = file_digest(path)
    assert file_digest(copy) == first
    path.write_bytes(b"two")
    os.utime(path, (1, 1))  # clocks of file systems may be too coarse to see a change at once
    assert file_digest(path) != first


def test_code_counts(tmp_path, monkeypatch):
    (tmp_path / "some_transform.py").write_text("class Add:\n    number = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    add = importlib.import_module("some_transform").Add
    before, before_type = describe(add()), describe(add)
    assert describe(add()) == before
    (tmp_path / "some_transform.py").write_text("class Add:\n    number = 20\n")
    identity.module_digest.cache_clear()
    assert describe(add()) != before
    assert describe(add) != before_type


def test_digest_of_the_package_follows_each_file(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    digests = set()
    for name, text in (("a.py", "1"), ("part/b.py", "1"), ("part/b.py", "2"), ("a.py", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        code_digest.cache_clear()
        digests.add(code_digest())
    code_digest.cache_clear()
    assert len(digests) == 4


def test_versions_are_those_of_installed_packages():
    assert installed_versions(["torch", "no-such-package"]) == {"torch": torch.__version__}
