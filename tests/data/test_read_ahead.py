from __future__ import annotations

import threading

import pytest
import torch

from bundle.data import ReadAheadLoader


class Scans(torch.utils.data.Dataset):
    """Numbers that say when they are read; ``bad`` cannot be."""

    def __init__(self, bad=None):
        self.bad = bad
        self.read = [threading.Event() for _ in range(4)]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.read[index].set()
        if index == self.bad:
            raise OSError(f"scan {index} cannot be read")
        return index


def test_next_scan_is_read_while_one_is_used_and_no_further():
    scans = Scans()
    seen = []
    for batch in ReadAheadLoader(scans, batch_size=1):
        seen.append(int(batch))
        if seen[-1] < 3:
            assert scans.read[seen[-1] + 1].wait(30)
        assert not any(event.is_set() for event in scans.read[seen[-1] + 2 :])
    assert seen == [0, 1, 2, 3]


def test_error_comes_with_its_scan_and_not_before():
    seen = []
    with pytest.raises(OSError, match="scan 2 cannot be read"):  # noqa: PT012 - the scans before it have to come
        for batch in ReadAheadLoader(Scans(bad=2), batch_size=1):
            seen.append(int(batch))
    assert seen == [0, 1]


def test_loop_that_is_left_early_and_started_again():
    loader = ReadAheadLoader(Scans(), batch_size=2)
    for batch in loader:
        assert batch.tolist() == [0, 1]
        break
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
