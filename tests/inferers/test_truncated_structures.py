from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bundle.data.support import SupportScan
from bundle.inferers import TruncatedStructures
from bundle.inferers.scores import leave_out

from .build import make_inferer
from .test_few_shot import CountingNetwork, noise, squares


def scores_of(winner, margin):
    """Scores (D, 3, 8, 8) by which the classes of a label map (D, 8, 8) win by so much."""
    return margin * torch.nn.functional.one_hot(winner, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("end", [0, -1])
def test_a_truncated_structure_is_small_unsure_and_at_an_end(end):
    winner = torch.zeros(5, 8, 8, dtype=torch.int64)
    winner[end, :4, :4] = 2  # a quarter of a slice
    winner[2, 4:, 4:] = 1  # not at an end
    scores = scores_of(winner, 0.5)

    def find(truncated_structures, volume=2.0):
        """With a support that shows so many slices' areas of each label, on slices of the query's distance."""
        scan = SimpleNamespace(volume=lambda value, length_mm: 7.0 * volume * (value < 9) * (length_mm == 35.0))
        unseen = SimpleNamespace(volume=lambda value, length_mm: 0.0)
        return truncated_structures.find(scores, [scan, unseen], [1, 2], 7.0).tolist()

    assert find(TruncatedStructures(0.2, 0.8)) == [False, True]
    assert find(TruncatedStructures(0.1, 0.8)) == [False, False]  # not small
    assert find(TruncatedStructures(0.2, 0.8), 1.0) == [False, False]  # small structures are as large as this
    assert find(TruncatedStructures(0.2, 0.4)) == [False, False]  # sure enough


def test_what_is_left_out_becomes_background_and_no_other_label():
    winner = torch.zeros(3, 8, 8, dtype=torch.int64)
    winner[:, :4], winner[:, 4:, 4:] = 1, 2
    scores = scores_of(winner, 1.0)
    scores[:, 2] -= 0.5  # the second best of the first label's coordinates is the background or the second label
    left = leave_out(scores, torch.tensor([False, True]))
    assert torch.equal(left.argmax(dim=1), torch.where(winner == 1, 0, winner))
    assert torch.equal(leave_out(scores, torch.tensor([True, True])), scores)


def test_the_volume_of_a_label_is_what_a_stack_of_slices_can_show():
    inferer = make_inferer(num_slices=1)
    label = squares()
    label[..., 6][label[..., 6] == 1] = 0
    label[8:16, 16:24, 6] = 1  # one slice of organ 1 is smaller
    inferer.set_support([SupportScan(noise(0), label, 7.0, "a")])
    (scan,) = inferer.support_encoder.encode_all(CountingNetwork(), inferer.registration)
    large, small = 24 * 24 / 64**2, 8 * 8 / 64**2
    for length_mm, slices in ((1.0, large), (7.0, large), (28.0, 4 * large), (700.0, 4 * large + small)):
        assert scan.volume(1, length_mm) == pytest.approx(7 * slices)
    assert scan.volume(5, 70.0) == 0
