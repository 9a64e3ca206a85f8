from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bundle.atomic import PARTIAL, STALE_S, replacing, write_json, write_text


def test_a_file_appears_as_a_whole_with_its_folder(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, OSError])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, kind):
    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half of the new")
            raise kind

    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(kind):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a.json: cannot be written \(.+\); free some space or choose another"):
        write_json(tmp_path / "file" / "a.json", {})


def test_pytorch_that_cannot_write_is_one_line(tmp_path):
    def fail():
        with replacing(tmp_path / "a.pt"):
            raise RuntimeError("PytorchStreamWriter failed\nenforce fail")

    with pytest.raises(OSError, match=r"a.pt: cannot be written \(PytorchStreamWriter failed\); free"):
        fail()


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    texts = [str(n) * 20000 for n in range(8)]

    def write(text):
        seen = set()
        for _ in range(20):
            write_text(tmp_path / "a.txt", text)
            seen.add((tmp_path / "a.txt").read_text())
        return seen

    with ThreadPoolExecutor(len(texts)) as pool:
        seen = set().union(*pool.map(write, texts))  # and what a writer raises
    assert seen <= set(texts)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path):
    old, new = (tmp_path / f"{PARTIAL}1.{name}" for name in ("old.txt", "new.txt"))
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 2 * STALE_S,) * 2)
    write_text(tmp_path / "a.txt", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [new.name, "a.txt"]
