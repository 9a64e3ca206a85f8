from __future__ import annotations

import os

import numpy as np
import torch
from monai.transforms import LoadImaged

from bundle import identity
from bundle.identity import code_digest, describe, file_digest, installed_versions
from bundle.transforms import RandView


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


def test_digest_of_a_file_follows_its_content(tmp_path):
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    copy.write_bytes(b"one")
    first = file_digest(path)
    assert file_digest(copy) == first
    path.write_bytes(b"two")
    os.utime(path, (1, 1))  # clocks of file systems may be too coarse to see a change at once
    assert file_digest(path) != first


def test_digest_of_code_follows_the_parts_that_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    for name in ("a.py", "part/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("pass")
    digests = {}
    for step in ("before", "after"):
        code_digest.cache_clear()
        digests[step] = [code_digest(*parts) for parts in ([], ["part"], ["a.py"], ["a.py", "part"])]
        (tmp_path / "part/b.py").write_text("...")
    code_digest.cache_clear()
    assert [a == b for a, b in zip(*digests.values())] == [False, False, True, False]
    assert len(set(digests["before"][:3])) == 3


def test_versions_are_those_of_installed_packages():
    assert installed_versions(["torch", "no-such-package"]) == {"torch": torch.__version__}
