from __future__ import annotations

import threading
import zipfile

import numpy as np
import pytest

from bundle.data import cache
from bundle.data.cache import ArrayCache
from bundle.transforms import Superpixelsd

ARRAYS = {
    "image": np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32),
    "superpixels": np.arange(128, dtype=np.int16).reshape(2, 1, 8, 8),
    "none": np.zeros((0, 3)),
}


@pytest.fixture
def asked(tmp_path):
    """Two files, and a question about them that counts how often it is answered by computing."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    calls = []

    def ask(files=("a",), settings=1, folder="cache"):
        def compute():
            calls.append(files)
            return ARRAYS

        chosen = None if folder is None else tmp_path / folder
        arrays = ArrayCache(chosen, settings).get({name: tmp_path / name for name in files}, compute)
        for name, array in ARRAYS.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)
        return len(calls)

    return ask


def test_arrays_are_computed_once_and_come_back_bit_by_bit(asked, tmp_path):
    assert asked() == 1
    assert asked() == 1
    (entry,) = (tmp_path / "cache").iterdir()
    (tmp_path / "cache" / entry.name).rename(tmp_path / "kept")
    assert asked() == 2
    assert (tmp_path / "kept").read_bytes() == entry.read_bytes()  # no time in it


def test_without_a_folder_everything_is_computed(asked, tmp_path):
    assert [asked(folder=None), asked(folder=None)] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"files": ("b",)}, id="another file"),
        pytest.param({"files": ("a", "b")}, id="one file more"),
        pytest.param({"settings": 2}, id="setting"),
    ],
)
def test_whatever_decides_makes_an_entry_of_its_own(asked, change):
    assert asked() == 1
    assert asked(**change) == 2
    assert [asked(), asked(**change)] == [2, 2]


def test_content_counts_and_not_the_name(asked, tmp_path):
    assert asked() == 1
    (tmp_path / "a").write_text("other")
    assert asked() == 2
    (tmp_path / "a").write_text("a longer text")
    assert asked() == 3
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").write_text("other")
    assert asked() == 3


def test_versions_count(asked, monkeypatch):
    assert asked() == 1
    monkeypatch.setattr(cache, "installed_versions", lambda _: {"torch": "0"})
    assert asked() == 2


def test_threads_of_superpixels_do_not_count():
    def name(**settings):
        return ArrayCache("folder", Superpixelsd(**settings))._shared

    assert name(num_workers=4) == name()
    assert name(min_piece=5) != name()
    assert name(parameters={"scale": 2}) != name(parameters={"scale": 1})


def test_run_that_dies_while_it_writes_leaves_no_entry(asked, tmp_path, monkeypatch):
    def dies(file, array, **_):
        file.write(b"half of an")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", dies)
        with pytest.raises(KeyboardInterrupt):
            asked()
    assert list((tmp_path / "cache").iterdir()) == []
    assert [asked(), asked()] == [2, 2]


def flip(path):
    """Change one byte in the middle of the image's numbers."""
    content = bytearray(path.read_bytes())
    content[content.index(ARRAYS["image"].tobytes()) + 99] ^= 1
    path.write_bytes(content)


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"text"),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit": flip,
    "another kind": lambda path: np.save(path.open("wb"), np.zeros(3)),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_an_entry_that_cannot_be_read_is_computed_again_with_a_line(asked, tmp_path, damage, caplog):
    asked()
    (entry,) = (tmp_path / "cache").iterdir()
    damage(entry)
    assert caplog.messages == []
    assert asked() == 2
    (line,) = caplog.messages
    assert line.startswith(f"{entry}: cannot be read (")
    assert "\n" not in line
    assert asked() == 2  # it is whole again
    assert zipfile.ZipFile(entry).testzip() is None


def test_a_folder_that_cannot_be_written_costs_a_line_and_no_run(asked, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    assert [asked(), asked()] == [1, 2]
    assert all("cannot be written" in line for line in caplog.messages[-1:])


def test_writers_of_one_entry_do_not_disturb_each_other(asked, tmp_path):
    threads = [threading.Thread(target=asked) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = asked()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert asked() == made
