"""The measurement of completed scans."""

from __future__ import annotations

import numpy as np

from scripts.completion import completion, dice, draw, spread

from ..conftest import TINY_NETWORK


def test_drawn_slices_and_the_others():
    label = np.zeros((3, 9, 3), int)
    label[:, 1:8] = 2
    drawn, others = draw(label, 1, 3)
    assert np.flatnonzero(drawn.any(axis=(0, 2))).tolist() == [1, 4, 7]
    assert others.tolist() == [2, 3, 5, 6]
    drawn, others = draw(label, 1, "every second")
    assert others.tolist() == [2, 4, 6]
    found = label.copy()
    found[:, 2] = 0
    assert dice(label, label, 1, others) == 100
    assert dice(found, label, 1, others) == 200 * 18 / (18 + 27)


def test_slices_in_the_middle_leave_all_others_to_be_judged():
    label = np.zeros((3, 14, 3), int)
    label[:, 2:12] = 2
    drawn, others = draw(label, 1, 3, middle=1 / 3)
    assert np.flatnonzero(drawn.any(axis=(0, 2))).tolist() == [5, 6, 8]
    assert others.tolist() == [0, 1, 2, 3, 4, 7, 9, 10, 11, 12, 13]
    assert np.flatnonzero(draw(label, 1, 1, middle=1 / 3)[0].any(axis=(0, 2))).tolist() == [6]


def test_slices_spread_over_others_are_the_middles_of_equal_parts():
    assert [spread(np.arange(2, 11), count) for count in (1, 3, 20)] == [[6], [3, 6, 9], list(range(2, 11))]


def test_table_of_a_phantom(phantom_dir, tiny_weights, tmp_path):
    overrides = {"ckpt_path": str(tiny_weights), "device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}
    table = completion(str(phantom_dir), str(tmp_path), slices=[3], scans=[0], overrides=overrides)
    assert (tmp_path / "completion.md").read_text() == table + "\n"
    _, _, row, mean = (line.split("|")[2:-1] for line in table.splitlines())
    assert row[0].strip() == "phantom_01"
    images, shapes, both = map(float, row[1:])
    assert len({images, shapes, both}) == 3
    assert [float(cell.strip(" *")) for cell in mean[1:]] == [images, shapes, both]


def test_growth_of_a_phantom(phantom_dir, tiny_weights, tmp_path):
    overrides = {"ckpt_path": str(tiny_weights), "device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}
    options = {"growth": True, "slices": [1, 3], "scans": [0], "overrides": overrides}
    table = completion(str(phantom_dir), str(tmp_path), **options)
    assert (tmp_path / "growth.md").read_text() == table + "\n"
    head, _, evenly, least_sure, *_ = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert head == ["slices chosen", "scan", "1", "3"]
    assert evenly[:3] == ["evenly", "phantom_01", least_sure[2]]  # the first slice is the same
    assert float(evenly[3]) > float(evenly[2])
    assert float(least_sure[3]) > float(least_sure[2])


def test_another_scan_beside_three_slices(phantom_dir, tiny_weights, tmp_path):
    overrides = {"ckpt_path": str(tiny_weights), "device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}
    table = completion(str(phantom_dir), str(tmp_path), scans=[0, 1], other=2, overrides=overrides)
    assert (tmp_path / "other.md").read_text() == table + "\n"
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert head == ["scan", "own slices alone", "the other scan alone", "both"]
    assert [row[0] for row in rows] == ["phantom_01", "phantom_02"]
    alone = completion(str(phantom_dir), str(tmp_path / "own"), scans=[1], other=3, overrides=overrides)
    assert alone.splitlines()[2].split("|")[2] == f" {rows[1][1]} "  # no other scan has helped
