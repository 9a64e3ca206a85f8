from __future__ import annotations

import dataclasses

import pytest
import torch

from bundle.data import query_chunks, support_slices
from bundle.data.support import SupportScan
from bundle.inferers import SliceCompletion

from .build import make_inferer
from .test_few_shot import CountingNetwork, noise, query_of, squares


def only(label, value):
    return torch.where(label == value, label, torch.zeros_like(label))


def segment(scans):
    inferer = make_inferer(num_slices=1)
    inferer.set_support(scans)
    scores = inferer(query_of(noise(0)), CountingNetwork())
    values = [0, *scores.meta["label_values"].flatten().tolist()]
    return torch.tensor(values)[scores[0].as_subclass(torch.Tensor).argmax(dim=0)]


def test_scans_that_annotate_different_organs_do_not_speak_against_each_other():
    first = SupportScan(noise(0), only(squares(), 1), 7.0, "a", annotated=(1,))
    second = SupportScan(noise(0), only(squares(), 3), 7.0, "b", annotated=(3,))
    both = segment([first, second])
    assert (both == squares()).float().mean() > 0.98  # upsampling blurs the borders of the cells
    assert ((both == squares()) | (squares() == 0)).float().mean() > 0.99


def test_scans_that_are_annotated_for_all_outvote_one_that_shows_an_organ():
    first = SupportScan(noise(0), only(squares(), 1), 7.0, "a")
    second, third = (SupportScan(noise(0), only(squares(), 3), 7.0, name, (1, 3)) for name in "bc")
    found = segment([first, second, third])
    assert (found != 1).all()
    assert ((found == 3) == (squares() == 3)).float().mean() > 0.98


def test_a_support_twice_is_the_support_once():
    once = SupportScan(noise(0), squares(), 7.0, "a")
    assert torch.equal(segment([once]), segment([once, once]))


def test_single_labelled_slices_leave_the_others_unknown():
    label = squares()
    sparse = torch.zeros_like(label)
    for index in (3, 5, 7):
        sparse[..., index] = label[..., index]
    auto = SupportScan(noise(0), sparse, 7.0, "a")
    assert auto.annotated_slices == [3, 5, 7]
    assert dataclasses.replace(auto, slices="all").annotated_slices == list(range(label.shape[-1]))
    assert SupportScan(noise(0), label, 7.0, "a").annotated_slices == list(range(label.shape[-1]))
    assert SupportScan(noise(0), label, 7.0, "a", slices="labelled").annotated_slices == list(range(2, 9))
    found = segment([auto])
    labelled = [3, 5, 7]
    assert ((found == label)[..., labelled]).float().mean() > 0.98
    assert (found[..., :2] == 0).all()
    assert (found[..., 9:] == 0).all()
    with pytest.raises(ValueError, match="slices"):
        SupportScan(noise(0), label, 7.0, "a", slices="some")


def test_one_annotated_set_for_all_scans_changes_nothing():
    scans = [SupportScan(noise(seed), squares(), 7.0, str(seed)) for seed in (0, 1)]
    marked = [dataclasses.replace(scan, annotated=(1, 3)) for scan in scans]
    assert torch.equal(segment(scans), segment(marked))


@pytest.mark.parametrize(
    ("annotated", "value", "expected"), [(None, 3, True), (None, 7, False), ((1, 7), 7, True), ((1, 3), 2, False)]
)
def test_annotates(annotated, value, expected):
    assert SupportScan(noise(0), squares(), 7.0, "a", annotated).annotates(value) is expected


def still_life():
    """A scan whose slices are much alike, and its organ, which is in all of them."""
    image = noise(1, depth=1).expand(-1, -1, -1, 10) + 0.2 * noise(2)
    label = torch.zeros(64, 64, 10, dtype=torch.int64)
    label[8:32, 16:40, 1:9] = 1
    return image, label


def test_slices_between_annotated_ones_are_completed():
    image, label = still_life()
    sparse = torch.zeros_like(label)
    sparse[..., [2, 5]] = label[..., [2, 5]]
    network, found = CountingNetwork(), {}
    for complete in (False, True):
        inferer = make_inferer(completion=SliceCompletion(margin=1.0) if complete else None)
        inferer.set_support([SupportScan(image, sparse, 7.0, "a")])
        [found[complete]] = inferer.support_encoder.encode_all(network, inferer.registration)
    assert found[False].answering.tolist() == found[False].slices.tolist() == [2, 5]
    completed = found[True]
    assert completed.slices.tolist() == [2, 5]
    assert completed.answering.tolist() == [1, 2, 3, 4, 5, 6]  # half of the gap beyond the outermost
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[1:4, 2:5] = True
    for index in (1, 3, 4, 6):
        assert torch.equal(completed.foreground[index, 0] > 0.5, truth)
        assert not ((completed.background[index] > 0.5) & truth).any()
        assert completed.shows[index].all()
    assert not completed.foreground[[0, 7, 8, 9]].any()
    assert completed.extent(1) == [2, 5]  # the label's own slices, by which protocols choose


def test_labels_of_a_support_that_was_completed_are_less_sure_and_the_same():
    sparse = torch.zeros_like(squares())
    sparse[..., 3::4] = squares()[..., 3::4]

    def scores(label, discount, annotated=(None,)):
        inferer = make_inferer(num_slices=1, completion=SliceCompletion(discount=discount))
        inferer.set_support([SupportScan(noise(0), label, 7.0, "a", values) for values in annotated])
        return inferer(query_of(noise(0)), CountingNetwork()).as_subclass(torch.Tensor)

    assert torch.equal(scores(squares(), 0.0), scores(squares(), 0.5))  # annotated throughout
    found = []
    for annotated in ((None,), (None, None, None, None), ({1: 1}, {3: 3})):
        plain, discounted = scores(sparse, 0.0, annotated), scores(sparse, 0.5, annotated)
        labelled = (plain.argmax(dim=1, keepdim=True) > 0).expand_as(plain)
        assert torch.equal(plain[~labelled], discounted[~labelled])
        ratio = (plain / discounted)[labelled & (plain != 0)]
        assert ratio.max() - ratio.min() < 1e-4
        found.append(float(ratio.mean()) - 1)
    alone, four, apart = found
    assert 0.2 < alone < 0.5
    assert four == pytest.approx(alone / 2, abs=1e-3)
    assert apart == pytest.approx(alone, abs=1e-3)  # only what annotates a label shares its discount


def test_labels_beside_those_of_a_protocol_are_not_looked_at():
    image, label = still_life()
    spoiled = label.clone()
    kept = support_slices(range(1, 9), 3)
    for index in set(range(2, 8)) - set(kept):  # the extent stays
        spoiled[..., index] = 0
        spoiled[40:48, 40:48, index] = 1
    chunks = query_chunks([False, *[True] * 8, False], 3)[None]
    scores = []
    for given in (label, spoiled):
        inferer = make_inferer(num_slices=3, completion=SliceCompletion())
        inferer.set_support([SupportScan(image, given, 7.0, "a")])
        scores.append(inferer(query_of(image, chunks=chunks, num_chunks=3), CountingNetwork()))
    assert torch.equal(scores[0].as_subclass(torch.Tensor), scores[1].as_subclass(torch.Tensor))
    found = scores[0][0, 0].as_subclass(torch.Tensor) > 0
    assert (found == (label == 1)).float().mean() > 0.98


def test_a_scan_labelled_on_some_slices_weighs_by_their_similarity_and_leaves_the_rest_to_others():
    whole, sparse = squares(), torch.zeros_like(squares())
    sparse[..., 5] = whole[..., 5]
    own = SupportScan(noise(0), sparse, 7.0, "own", slices="labelled")
    other = SupportScan(noise(0) + 0.2 * noise(1), whole, 7.0, "other")
    alone, both = segment([own]), segment([own, other])
    assert (alone[..., :4] == 0).all()  # it reaches a slice further alone
    found = ((both > 0) & (whole > 0))[..., 2:4].sum() / (whole > 0)[..., 2:4].sum()
    assert found > 0.9
