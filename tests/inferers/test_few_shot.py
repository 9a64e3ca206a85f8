from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from torch import nn

from bundle.data import query_chunks, support_slices
from bundle.data.support import SupportScan
from bundle.inferers import (
    AtlasFallback,
    CellRegistration,
    FewShotInferer,
    InPlaneOrientation,
    MirrorCheck,
    Quality,
    ScanFusion,
    SliceCompletion,
    TruncatedStructures,
    slice_registration,
)
from bundle.networks import ALPNet
from bundle.transforms import OrientSlicesd, SliceFramed

from ..conftest import make_tiny, save_nifti
from .build import make_inferer

SIZE, DEPTH = 64, 10


class PatchEncoder(nn.Module):
    """Random projection of 8x8 patches: each patch of noise is like itself and like no other."""

    in_channels, out_channels, stride = 1, 64, 8

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(1, 64, 8, 8, bias=False)
        with torch.no_grad():
            self.project.weight.copy_(torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, image):
        return self.project(image)


class CountingNetwork(ALPNet):
    """Counts the slices that it encodes."""

    def __init__(self, **arguments):
        super().__init__(PatchEncoder(), foreground_gate="off", testing_window=1, temperature=200.0, **arguments)
        self.encoded = 0
        self.eval()

    def encode(self, images):
        self.encoded += len(images)
        return super().encode(images)


def noise(seed, depth=DEPTH):
    return torch.randn(1, SIZE, SIZE, depth, generator=torch.Generator().manual_seed(seed))


def squares(depth=DEPTH):
    """Two organs on the 8 px grid: 1 in slices 2 to 6, 3 in slices 5 to 8."""
    label = torch.zeros(SIZE, SIZE, depth, dtype=torch.int64)
    label[8:32, 16:40, 2:7] = 1
    label[40:56, 8:24, 5:9] = 3
    return label


def query_of(image, spacing_mm=7.0, **meta):
    """A query as the data loader hands it over: (1, C, H, W, D)."""
    affine = torch.diag(torch.tensor([2.0, 2.0, spacing_mm, 1.0], dtype=torch.float64))[None]
    return MetaTensor(image[None], affine=affine, meta={"filename_or_obj": "q.nii.gz", **meta})


def segment(inferer, network, query):
    """Label map (H, W, D) as the postprocessing makes it."""
    with torch.no_grad():
        scores = inferer(query, network)
    values = torch.tensor([0, *torch.as_tensor(scores.meta["label_values"]).flatten().tolist()])
    return values[scores.as_subclass(torch.Tensor)[0].argmax(dim=0)], scores


def given(*scans, **arguments):
    inferer = make_inferer(**arguments)
    inferer.set_support(scans)
    return inferer


@pytest.mark.parametrize("num_slices", [1, 3])
@pytest.mark.parametrize("slice_batch_size", [1, 4, 64])
def test_support_as_query_gives_its_mask_back(num_slices, slice_batch_size):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    inferer = given(scan, num_slices=num_slices, slice_batch_size=slice_batch_size)
    found, scores = segment(inferer, CountingNetwork(), query_of(noise(0)))
    # upsampling blurs the borders of the cells by less than half a cell
    assert scores.shape == (1, 3, SIZE, SIZE, DEPTH)
    assert (found == squares()).float().mean() > 0.98
    inner = torch.zeros_like(squares(), dtype=torch.bool)
    inner[11:29, 19:37] = inner[43:53, 11:21] = True
    assert (found == squares())[inner].all()
    for z in (0, 1, 9):
        assert (found[..., z] == 0).all()


def test_organ_outside_of_the_range_of_the_support_gives_none():
    # the query reaches further in both directions: slices 0 to 1 and 8 to 9 have no counterpart
    scan = SupportScan(noise(0)[..., 2:8], torch.ones(SIZE, SIZE, 6, dtype=torch.int64), 7.0, "a")
    scan.label[:8] = 0
    found, scores = segment(given(scan, num_slices=1), CountingNetwork(), query_of(noise(0)))
    assert (found[12:, :, 2:8] == 1).all()
    assert (found[..., [0, 1, 8, 9]] == 0).all()
    assert (scores[:, 1:, ..., [0, 1, 8, 9]] < -1e3).all()


def test_label_can_appear_only_where_an_answering_slice_shows_it():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    _, scores = segment(given(scan, num_slices=3), CountingNetwork(), query_of(noise(0)))
    shown = {0: range(8), 1: range(4, DEPTH)}  # a slice beyond the organ on each side; slice 0 asks 0, 1 and 2
    for row, slices in shown.items():
        for z in range(DEPTH):
            assert (scores[0, 1 + row, ..., z].max() > -1e3) == (z in slices)


def test_smoothing_stays_off_slices_where_a_label_cannot_appear():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    network = CountingNetwork()
    _, plain = segment(given(scan, num_slices=1), network, query_of(noise(0)))
    wide = given(scan, num_slices=1, smoothing_mm=8.0, smoothing_share=9.0)  # the height sets no bound
    _, smooth = segment(wide, network, query_of(noise(0)))
    torch.testing.assert_close(smooth < -1e3, plain < -1e3)
    steps = torch.arange(2.0, 7.0)
    for z in range(2, 7):  # slices where organ 1 can appear
        weights = torch.exp(-0.5 * ((steps - z) * 7.0 / 8.0) ** 2)
        expected = (plain[0, 1, ..., 2:7].as_subclass(torch.Tensor) * (weights / weights.sum())).sum(dim=-1)
        torch.testing.assert_close(smooth[0, 1, ..., z].as_subclass(torch.Tensor), expected, atol=1e-2, rtol=1e-3)


def test_wanted_labels_come_in_the_given_order_and_an_absent_one_never_appears():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    found, scores = segment(given(scan, labels=[3, 7]), CountingNetwork(), query_of(noise(0)))
    assert scores.meta["label_values"].tolist() == [[3, 7]]
    assert set(found.unique().tolist()) == {0, 3}
    assert (scores[0, 2] < -1e3).all()


def test_duplicated_and_reordered_supports_change_nothing():
    network, query = make_tiny(), query_of(noise(3))
    first, second = (SupportScan(noise(s), squares(), 7.0, str(s)) for s in (1, 2))
    _, one = segment(given(first), network, query)
    _, twice = segment(given(first, first), network, query)
    torch.testing.assert_close(one, twice, atol=1e-3, rtol=1e-4)
    _, both = segment(given(first, second), network, query)
    _, reversed_ = segment(given(second, first), network, query)
    torch.testing.assert_close(both, reversed_, atol=1e-3, rtol=1e-4)
    assert (one - both).abs().max() > 1e-2


@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize("spans", [[(0, 9), (4, 5)], [(3, 3), (2, 2)], [(1, 8), None]], ids=["long", "single", "none"])
def test_chunk_mode_equals_a_literal_loop_of_the_network(shots, spans):
    network = make_tiny()
    scans = [SupportScan(noise(s), squares(), 7.0, str(s)) for s in range(shots)]
    image = noise(9)
    chunks = []
    for span in spans:
        shown = np.zeros(DEPTH, bool)
        if span:
            shown[span[0] : span[1] + 1] = True
        chunks.append(query_chunks(shown, 3))
    query = query_of(image, chunks=torch.as_tensor(np.stack(chunks))[None], num_chunks=torch.tensor([3]))
    with torch.no_grad():
        scores = given(*scans, labels=[1, 3])(query, network)
        assert scores.shape == (1, 2, SIZE, SIZE, DEPTH)
        for row, value in enumerate((1, 3)):
            for z in range(DEPTH):
                if chunks[row][z] < 0:
                    assert (scores[0, row, ..., z] < -1e3).all()
                    continue
                margins = []
                for scan in scans:
                    bearing = [s for s in range(DEPTH) if (scan.label[..., s] == value).any()]
                    chosen = support_slices(bearing, 3)[chunks[row][z]]
                    mask = (scan.label[..., chosen] == value).float()
                    logits = network(
                        image[None, ..., z], scan.image[None, None, None, ..., chosen], mask[None, None, None]
                    )
                    margins.append(logits[0, 1] - logits[0, 0])  # (H, W)
                expected = torch.stack(margins).mean(dim=0)
                torch.testing.assert_close(
                    scores[0, row, ..., z].as_subclass(torch.Tensor), expected, atol=1e-3, rtol=1e-4
                )


def test_query_without_any_tested_organ_gives_nothing_under_a_chunk_protocol():
    chunks = torch.full((1, 2, DEPTH), -1)
    query = query_of(noise(9), chunks=chunks, num_chunks=torch.tensor([3]))
    scores = given(SupportScan(noise(0), squares(), 7.0, "a"), labels=[1, 3])(query, make_tiny())
    assert (scores < -1e3).all()


def test_equal_calls_give_equal_answers():
    network, inferer = make_tiny(), given(SupportScan(noise(0), squares(), 7.0, "a"))
    _, first = segment(inferer, network, query_of(noise(4)))
    segment(inferer, network, query_of(noise(5)))
    _, again = segment(inferer, network, query_of(noise(4)))
    torch.testing.assert_close(first, again, atol=0, rtol=0)


# ---- supports from files -------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Two labelled scans in a folder."""
    affine = np.diag([2.0, 2.0, 7.0, 1.0])  # as the queries have it
    for name, seed in (("a", 0), ("b", 1)):
        save_nifti(tmp_path / f"{name}.nii.gz", noise(seed)[0].numpy(), affine)
        save_nifti(tmp_path / f"{name}_label.nii.gz", squares().numpy().astype(np.uint8), affine)
    return tmp_path


def entry(name):
    return {"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"}


def from_files(folder, *names, **arguments):
    steps = Compose(
        [
            LoadImaged(["image", "label"], allow_missing_keys=True),
            EnsureChannelFirstd(["image", "label"], allow_missing_keys=True),
            OrientSlicesd(["image", "label"], allow_missing_keys=True),
            SliceFramed(["image", "label"], None, (SIZE, SIZE), ["bilinear", "nearest"], allow_missing_keys=True),
        ]
    )
    return make_inferer([entry(name) for name in names], steps, dataset_dir=folder, **arguments)


def count_encoded(inferer, network, query):
    before = network.encoded
    segment(inferer, network, query)
    return network.encoded - before


def test_files_give_what_scans_in_memory_give(files):
    network = make_tiny()
    _, stored = segment(from_files(files, "a"), network, query_of(noise(4)))
    _, held = segment(given(SupportScan(noise(0), squares(), 7.0, "a")), network, query_of(noise(4)))
    torch.testing.assert_close(stored, held)


def test_support_is_encoded_once(files):
    network, inferer = CountingNetwork(), from_files(files, "a", "b")
    assert count_encoded(inferer, network, query_of(noise(4))) == 3 * DEPTH
    assert count_encoded(inferer, network, query_of(noise(5, 7))) == 7


def test_support_is_encoded_anew_when_its_label_changes(files):
    network, inferer = CountingNetwork(), from_files(files, "a")
    before, _ = segment(inferer, network, query_of(noise(0)))
    assert set(before.unique().tolist()) == {0, 1, 3}
    save_nifti(files / "a_label.nii.gz", (squares().numpy() == 3).astype(np.uint8) * 5)
    os.utime(files / "a_label.nii.gz", ns=(1, 1))
    assert count_encoded(inferer, network, query_of(noise(0))) == 2 * DEPTH
    after, _ = segment(inferer, network, query_of(noise(0)))
    assert set(after.unique().tolist()) == {0, 5}


@pytest.mark.parametrize("how", ["load_state_dict", "assign", "data", "optimizer", "another network"])
def test_support_is_encoded_anew_when_the_weights_change(files, how):
    network, inferer = CountingNetwork(), from_files(files, "a")
    count_encoded(inferer, network, query_of(noise(4)))
    if how == "load_state_dict":
        network.load_state_dict({key: 0.5 * value for key, value in network.state_dict().items()})
    elif how == "assign":
        network.load_state_dict({key: 0.5 * value for key, value in network.state_dict().items()}, assign=True)
    elif how == "data":  # no version tells
        network.encoder.project.weight.data[0, 0, 0] *= -1
    elif how == "optimizer":
        network.encoder.project.weight.grad = torch.ones_like(network.encoder.project.weight)
        torch.optim.SGD(network.parameters(), lr=0.1).step()
    else:
        network = CountingNetwork()
    assert count_encoded(inferer, network, query_of(noise(4))) == 2 * DEPTH
    assert count_encoded(inferer, network, query_of(noise(4))) == DEPTH
    _, scores = segment(inferer, network, query_of(noise(4)))
    _, fresh = segment(from_files(files, "a"), network, query_of(noise(4)))
    torch.testing.assert_close(scores, fresh)


def test_oldest_support_leaves_a_full_cache(files):
    network, inferer = CountingNetwork(), from_files(files, cache_size=1)

    def ask(name):
        return count_encoded(inferer, network, query_of(noise(4), support=[json.dumps([entry(name)])])) - DEPTH

    assert [ask(name) for name in "aabab"] == [DEPTH, 0, DEPTH, DEPTH, DEPTH]


def test_query_may_bring_its_own_support(files):
    save_nifti(files / "b_label.nii.gz", 9 * (squares().numpy() == 3).astype(np.uint8))
    network, inferer = CountingNetwork(), from_files(files, "a")
    own = query_of(noise(1), support=json.dumps([entry("b")]))
    assert set(segment(inferer, network, own)[0].unique().tolist()) == {0, 9}
    assert json.loads(segment(inferer, network, own)[1].meta["support"]) == [entry("b")]
    assert torch.equal(inferer(query_of(noise(1)), network, support=[entry("b")]), segment(inferer, network, own)[1])
    with pytest.raises(TypeError, match="supports"):
        inferer(query_of(noise(1)), network, supports=[entry("b")])
    assert set(segment(inferer, network, query_of(noise(0)))[0].unique().tolist()) == {0, 1, 3}


def test_two_threads_give_the_answers_of_each_alone(files):
    network = make_tiny()
    queries = [query_of(noise(s), support=json.dumps([entry("ab"[s % 2])])) for s in range(8)]
    alone = [segment(from_files(files), network, query)[1] for query in queries]
    shared, results = from_files(files, cache_size=1), {}

    def work(part):
        for index in part:
            results[index] = segment(shared, network, queries[index])[1]

    threads = [threading.Thread(target=work, args=(range(start, 8, 2),)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))
    for index, expected in enumerate(alone):
        torch.testing.assert_close(results[index], expected, atol=0, rtol=0)


def test_the_sides_of_each_label_are_the_geometric_mean_of_the_supports():
    sides = [{1: [40.0, 30.0, 20.0]}, {1: [10.0, 30.0, 5.0]}, {}]
    scans = [SupportScan(noise(s), squares(), 7.0, str(s), sides_mm=known) for s, known in enumerate(sides)]
    _, scores = segment(given(*scans), CountingNetwork(), query_of(noise(0)))
    first, second = scores.meta["support_sides_mm"][0]
    torch.testing.assert_close(first, torch.tensor([20.0, 30.0, 10.0]))
    assert second.isnan().all()


def in_plane_orientation(**arguments):
    """What an inferer needs to try all turns of a query, whatever its similarity."""
    return {
        "registration": CellRegistration(reach=0, pooling=1),
        "in_plane_orientation": InPlaneOrientation(**{"below": 2.0, **arguments}),
    }


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_a_query_that_is_turned_in_the_plane_is_found_and_comes_back_turned(turn):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    inferer = given(scan, num_slices=1, keep_similarity=True, **in_plane_orientation())
    _, upright = segment(inferer, CountingNetwork(), query_of(noise(0)))
    label_map, turned = segment(inferer, CountingNetwork(), query_of(noise(0).rot90(turn, (1, 2))))
    for key in ("support_similarity", "reverse_dice"):
        torch.testing.assert_close(turned.meta[key], upright.meta[key], atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.meta["similarity"], upright.meta["similarity"].rot90(turn, (1, 2)))
    assert (label_map == squares().rot90(turn, (0, 1))).float().mean() > 0.98
    scores = turned.as_subclass(torch.Tensor).rot90(-turn, (2, 3))
    torch.testing.assert_close(scores, upright.as_subclass(torch.Tensor), atol=1e-3, rtol=1e-4)


def test_each_support_scan_has_its_own_turn():
    label = squares()
    scans = [
        SupportScan(noise(0), torch.where(label == 1, 1, 0), 7.0, "a", {1: 1}),
        SupportScan(noise(0).rot90(1, (1, 2)), torch.where(label == 3, 3, 0).rot90(1, (0, 1)), 7.0, "b", {3: 3}),
    ]
    found, _ = segment(given(*scans, num_slices=1, **in_plane_orientation()), CountingNetwork(), query_of(noise(0)))
    assert (found == label).float().mean() > 0.98


def test_a_turned_query_is_found_within_known_extents_too():
    image, label = noise(0).rot90(1, (1, 2)), squares().rot90(1, (0, 1))
    rows = [query_chunks((label == value).flatten(0, 1).any(dim=0).numpy(), 3) for value in (1, 3)]
    meta = {"chunks": torch.as_tensor(np.stack(rows)), "num_chunks": 3}
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    inferer = given(scan, labels=[1, 3], num_slices=1, completion=SliceCompletion(), **in_plane_orientation())
    scores = inferer(query_of(image, **meta), CountingNetwork())[0].as_subclass(torch.Tensor)
    truth = torch.stack([label == 1, label == 3])
    extent = truth.flatten(1, 2).any(dim=1)[:, None, None].expand_as(truth)
    assert ((scores > 0) == truth)[extent].float().mean() > 0.9
    cells = inferer.registration.cells
    still = given(scan, labels=[1, 3], num_slices=1, completion=SliceCompletion(), registration=cells)
    scores = still(query_of(image, **meta), CountingNetwork())[0].as_subclass(torch.Tensor)
    assert ((scores > 0) & truth).sum() < 0.5 * truth.sum()


def test_a_label_that_looks_unlike_the_support_is_found_by_its_place_within_its_known_extent():
    label = squares()
    image = torch.where(label == 1, noise(5), noise(0))  # organ 1 looks like nothing on the support
    rows = [query_chunks((label == value).flatten(0, 1).any(dim=0).numpy(), 3) for value in (1, 3)]
    query = query_of(image, chunks=torch.as_tensor(np.stack(rows)), num_chunks=3)
    scan = SupportScan(noise(0), label, 7.0, "a")
    registration = CellRegistration(smoothing=(0.2,), smoothing_mm=(8.0,), reach=0, pooling=1)
    truth = torch.stack([label == 1, label == 3])
    shares, scores, fallbacks = [], [], []
    options = {"labels": [1, 3], "num_slices": 1, "completion": SliceCompletion(), "registration": registration}
    for fallback in (None, AtlasFallback(below=0.6, band=0, reach=0)):
        inferer = given(scan, **options, atlas_fallback=fallback)
        result = inferer(query, CountingNetwork())
        scores.append(result[0].as_subclass(torch.Tensor))
        fallbacks.append(result.meta["atlas_fallback"].tolist())
        found = scores[-1] > 0
        shares.append((found & truth).flatten(1).sum(dim=1) / truth.flatten(1).sum(dim=1))
    (missed, plain), (placed, same) = shares
    assert missed < 0.1
    assert plain == same > 0.7
    assert placed > 0.8 * plain  # nearly as well as what looks like the support
    assert fallbacks == [[[0, 0]], [[1, 0]]]
    given_, sure = options | {"atlas_fallback": fallback}, AtlasFallback(below=0.6, band=0, reach=0, discount=0.0)
    undiscounted = given(scan, **(given_ | {"atlas_fallback": sure}))(query, CountingNetwork())[0].as_subclass(
        torch.Tensor
    )
    torch.testing.assert_close(2 * scores[1][0], undiscounted[0])  # less sure
    assert torch.equal(scores[1][1], undiscounted[1])


def test_turns_are_tried_only_where_the_similarity_is_low_and_on_some_slices():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    for arguments, encoded in (
        ({"below": 0.5}, 2 * DEPTH),  # the support and the query, which is similar enough
        ({}, 2 * DEPTH + 4 * 5),
        ({"turns": (2,)}, 2 * DEPTH + 2 * 5),
    ):
        network = CountingNetwork()
        segment(
            given(scan, num_slices=1, trial_slices=5, **in_plane_orientation(**arguments)), network, query_of(noise(0))
        )
        assert network.encoded == encoded


def test_what_is_nearly_as_similar_is_told_apart_by_its_reverse_dice(monkeypatch):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    query = query_of(noise(0).rot90(1, (1, 2)))
    asked = []
    rate = FewShotInferer._rate

    def reverse_dice(inferer, *arguments):
        asked.append(rate(inferer, *arguments))
        return asked[-1]

    monkeypatch.setattr(FewShotInferer, "_rate", reverse_dice)
    for margin, below, number in ((0.06, 0.0, 0), (2.0, 2.0, 4)):
        asked.clear()
        inferer = given(scan, num_slices=1, **in_plane_orientation(margin=margin, reverse_dice_below=below))
        found, _ = segment(inferer, CountingNetwork(), query)
        assert (found == squares().rot90(1, (0, 1))).float().mean() > 0.98
        assert len(asked) == number
    assert sorted(asked)[-1] > 0.95
    assert sorted(asked)[-2] < 0.5
    found, _ = segment(
        given(scan, num_slices=1, **in_plane_orientation(margin=2.0, reverse_dice_below=0.0)), CountingNetwork(), query
    )
    assert (found == squares().rot90(1, (0, 1))).float().mean() < 0.95  # where nothing tells, a query stays as it is


def test_a_frame_that_is_not_square_is_turned_upside_down_alone():
    scan = SupportScan(noise(0)[:, 8:56], squares()[8:56], 7.0, "a")
    inferer = given(scan, num_slices=1, **in_plane_orientation())
    query = query_of(noise(0)[:, 8:56].rot90(2, (1, 2)))
    found, _ = segment(inferer, CountingNetwork(), query)
    assert (found == squares()[8:56].rot90(2, (0, 1))).float().mean() > 0.98


def similarity_of(inferer, query, network=None):
    """Similarity (h, w, D) that the inferer keeps."""
    with torch.no_grad():
        found = inferer(query, network or CountingNetwork()).meta["similarity"]
    assert found.shape == (1, SIZE // 8, SIZE // 8, query.shape[-1])
    return found[0]


@pytest.mark.parametrize("slice_batch_size", [3, 64])
def test_similarity_is_1_for_the_support_itself_and_low_where_it_has_nothing_like_the_query(slice_batch_size):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    inferer = given(scan, keep_similarity=True, slice_batch_size=slice_batch_size)
    torch.testing.assert_close(similarity_of(inferer, query_of(noise(0))), torch.ones(8, 8, DEPTH))
    strange = noise(0)
    strange[:, 24:40, 16:32, 3:6] = 3.0  # a constant patch, cells 3 to 4 and 2 to 3
    found = similarity_of(inferer, query_of(strange))
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[3:5, 2:4, 3:6] = True
    assert found[inside].max() < 0.8
    assert found[inside].min() >= 0
    torch.testing.assert_close(found[~inside], torch.ones_like(found[~inside]))


def test_similarity_is_0_where_no_support_slice_answers():
    scan = SupportScan(noise(0)[..., 2:8], torch.ones(SIZE, SIZE, 6, dtype=torch.int64), 7.0, "a")
    found = similarity_of(given(scan, keep_similarity=True), query_of(noise(0)))
    torch.testing.assert_close(found[..., 2:8], torch.ones(8, 8, 6))
    assert (found[..., [0, 1, 8, 9]] == 0).all()


def test_similarity_by_chunks_is_the_largest_cosine_to_the_slices_of_the_chunks():
    scan, network = SupportScan(noise(0), squares(), 7.0, "a"), CountingNetwork()
    chunks = torch.full((2, DEPTH), -1)
    chunks[0, 2:7] = torch.tensor([0, 0, 1, 1, 2])
    chunks[1, 5:8] = torch.tensor([0, 1, 2])
    query = query_of(noise(3), chunks=chunks, num_chunks=3)
    found = similarity_of(given(scan, keep_similarity=True), query, network)
    with torch.no_grad():
        queries, support = (network.encode(noise(seed)[0].movedim(-1, 0)[:, None]) for seed in (3, 0))
    chosen = [support_slices(shown, 3) for shown in (list(range(2, 7)), list(range(5, 9)))]
    for z in range(DEPTH):
        slices = [chosen[row][chunks[row, z]] for row in range(2) if chunks[row, z] >= 0]
        cosine = [
            torch.cosine_similarity(queries[z].flatten(1)[:, :, None], support[s].flatten(1)[:, None], dim=0).amax(1)
            for s in slices
        ]
        expected = torch.stack(cosine).amax(dim=0).clamp(min=0) if slices else torch.zeros(64)
        torch.testing.assert_close(found[..., z].flatten(), expected, atol=1e-5, rtol=0)


def test_similarity_is_kept_only_when_asked_and_changes_no_score():
    scan, query = SupportScan(noise(0), squares(), 7.0, "a"), query_of(noise(1))
    plain, more = (segment(given(scan, keep_similarity=keep), make_tiny(), query)[1] for keep in (False, True))
    assert set(more.meta) - set(plain.meta) == {"similarity"}
    torch.testing.assert_close(more, plain, atol=0, rtol=0)
    [single] = decollate_batch(more)
    assert single.meta["similarity"].shape == (SIZE // 4, SIZE // 4, DEPTH)
    torch.testing.assert_close(single.meta["similarity"], more.meta["similarity"][0])


def test_result_carries_the_meta_data_of_the_query():
    query = query_of(noise(4), original_affine="kept")
    _, scores = segment(given(SupportScan(noise(0), squares(), 7.0, "a")), make_tiny(), query)
    assert scores.meta["original_affine"] == "kept"
    torch.testing.assert_close(scores.affine, query.affine)


@pytest.mark.parametrize("shape", [(1, SIZE, SIZE, DEPTH), (2, 1, SIZE, SIZE, DEPTH), (1, 1, SIZE, SIZE)], ids=str)
def test_query_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"expected one volume \(1, C, H, W, D\), got"):
        given(SupportScan(noise(0), squares(), 7.0, "a"))(torch.rand(shape), make_tiny())


def test_query_with_nan_names_its_file():
    image = noise(0)
    image[0, 3, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="q.nii.gz: contains NaN"):
        given(SupportScan(noise(0), squares(), 7.0, "a"))(query_of(image), make_tiny())


def test_inferer_without_support_says_what_to_call():
    with pytest.raises(RuntimeError, match="no support yet: call set_support first"):
        make_inferer()(query_of(noise(0)), make_tiny())


def test_empty_support_list_is_named(files):
    with pytest.raises(ValueError, match="no support: label at least one scan"):
        from_files(files)(query_of(noise(0)), make_tiny())


def test_reverse_dice_is_high_with_the_scan_itself_and_nothing_with_another_body():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    _, same = segment(given(scan), CountingNetwork(), query_of(noise(0)))
    label_map, other = segment(given(scan, min_reverse_dice=0.8), CountingNetwork(), query_of(noise(7)))
    assert same.meta["reverse_dice"].shape == (1, 2)
    assert same.meta["reverse_dice"].min() > 0.95
    assert other.meta["reverse_dice"].max() < 0.8
    assert (label_map == 0).all()  # a label that of low reverse Dice is absent


def test_body_that_lies_elsewhere_agrees_once_its_cells_are_registered():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    moved = torch.roll(noise(0), (16, 8, 1), dims=(1, 2, 3))  # two cells down, one to the right, a slice up
    network = CountingNetwork(position_weight=100.0, depth_weight=0.3)
    _, stayed = segment(given(scan), network, query_of(moved))
    registration = CellRegistration(smoothing=[0.3, 0.1], smoothing_mm=[24.0, 8.0], temperature=200.0, pooling=1)
    found, registered = segment(given(scan, registration=registration), network, query_of(moved))
    truth = torch.roll(squares(), (16, 8, 1), dims=(0, 1, 2))
    assert (found == truth).float().mean() > 0.97
    assert registered.meta["reverse_dice"].min() > 0.9
    assert registered.meta["reverse_dice"].min() > stayed.meta["reverse_dice"].min() + 0.1


def test_half_an_organ_agrees_and_one_out_of_view_does_not():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    _, half = segment(given(scan), CountingNetwork(), query_of(noise(0)[..., :5]))  # label 3 begins in slice 5
    assert half.meta["reverse_dice"][0, 0] > 0.8  # slices 2 to 4 of 2 to 6, and 5 by its neighbor
    assert half.meta["reverse_dice"][0, 1] < 0.35


def test_of_the_likely_lines_the_one_whose_cells_match_counts(monkeypatch):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    right, wrong = torch.arange(float(DEPTH)), torch.arange(float(DEPTH)) + 3
    monkeypatch.setattr(slice_registration, "align_scans", lambda *_, **__: [(wrong, 0.9), (right, 0.1)])
    stay = CellRegistration([], [])
    found, scores = segment(given(scan, registration=stay), CountingNetwork(), query_of(noise(0)))
    assert (found == squares()).float().mean() > 0.98
    assert float(scores.meta["support_similarity"]) == pytest.approx(1.0, abs=1e-3)
    # without a registration nothing tells better than the slice_maps themselves
    found, _ = segment(given(scan), CountingNetwork(), query_of(noise(0)))
    assert (found[..., 8:] == 0).all()
    assert (found[8:32, 16:40, 4] != 1).any()


def test_at_least_one_slice_is_tried():
    with pytest.raises(ValueError, match="trial_slices must be at least 1, got 0"):
        make_inferer(trial_slices=0)


@pytest.mark.parametrize(("flip_penalty", "upright"), [(0.0, False), (3.0, True)])
def test_a_query_must_be_more_similar_by_the_penalty_to_count_as_upside_down(flip_penalty, upright, monkeypatch):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    up = torch.arange(float(DEPTH))
    monkeypatch.setattr(slice_registration, "align_scans", lambda *_, **__: [(up, 0.9), (up.flip(0), 0.1)])
    inferer = given(scan, registration=CellRegistration([], []), flip_penalty=flip_penalty)
    found, scores = segment(inferer, CountingNetwork(), query_of(noise(0).flip(-1)))
    assert ((found == squares().flip(-1)).float().mean() > 0.98) == (not upright)
    assert (float(scores.meta["support_similarity"]) > 0.9) == (not upright)


@pytest.mark.parametrize(("trial_slices", "tried"), [(12, DEPTH), (5, 5), (3, 3)])
def test_candidates_are_tried_on_some_slices(trial_slices, tried, monkeypatch):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    sizes = []
    rate = slice_registration.registered_similarities
    monkeypatch.setattr(
        slice_registration,
        "registered_similarities",
        lambda query, support, placed, spacing_mm: (
            sizes.extend([len(query)] * len(placed)) or rate(query, support, placed, spacing_mm)
        ),
    )
    inferer = given(scan, registration=CellRegistration([], []), trial_slices=trial_slices, alignment={"candidates": 3})
    found, _ = segment(inferer, CountingNetwork(), query_of(noise(0)))
    assert (found == squares()).float().mean() > 0.98
    assert sizes == [tried] * 3 + ([] if tried == DEPTH else [DEPTH])  # the chosen one once, on all of them


def test_what_looks_like_an_absent_label_becomes_background(monkeypatch):
    monkeypatch.setattr(Quality, "reverse_dice", lambda *_: torch.tensor([0.9, 0.1]))
    label = squares()
    label[16:24, 24:32, 2:7] = 3  # in the middle of the other organ
    scan = SupportScan(noise(0), label, 7.0, "a")
    kept, _ = segment(given(scan), CountingNetwork(), query_of(noise(0)))
    found, scores = segment(given(scan, min_reverse_dice=0.5), CountingNetwork(), query_of(noise(0)))
    assert (kept == 3).any()
    assert (found != 3).all()
    assert (found[18:22, 26:30, 2:7] == 0).all()
    assert ((found == 1) == (kept == 1)).float().mean() > 0.995
    assert (scores[0, 2] < -1e3).all()


def test_a_label_that_does_not_give_the_supports_back_is_less_sure_and_the_same(monkeypatch):
    monkeypatch.setattr(Quality, "reverse_dice", lambda *_: torch.tensor([0.5, 1.0]))
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    found, scores = segment(given(scan), CountingNetwork(), query_of(noise(0)))
    same, discounted = segment(given(scan, reverse_dice_discount=3.0), CountingNetwork(), query_of(noise(0)))
    assert torch.equal(found, same)
    for value, divisor in ((0, 1.0), (1, 2.5), (3, 1.0)):
        at = (found == value).expand_as(scores[0])
        assert at.any()
        torch.testing.assert_close(discounted[0][at], scores[0][at] / divisor)
    _, shared = segment(given(*[scan] * 4, reverse_dice_discount=3.0), CountingNetwork(), query_of(noise(0)))
    at = (found == 1).expand_as(scores[0])
    torch.testing.assert_close(shared[0][at], scores[0][at] / 1.75)  # a half of the discount


def test_what_is_left_of_a_structure_at_the_end_of_a_query_must_be_sure():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    unsure, sure = (
        given(scan, num_slices=1, truncated_structures=TruncatedStructures(0.4, margin)) for margin in (1e6, 0.0)
    )
    cut = query_of(noise(0)[..., :3])  # one slice of organ 1, of which three could show
    assert (segment(sure, CountingNetwork(), cut)[0] == 1).any()
    assert not (segment(unsure, CountingNetwork(), cut)[0] == 1).any()
    whole = query_of(noise(0)[..., :7])  # all of organ 1, and half of organ 3
    for inferer in (sure, unsure):
        assert set(segment(inferer, CountingNetwork(), whole)[0].unique().tolist()) == {0, 1, 3}


def test_labels_are_smoothed_by_their_own_height_on_the_support():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    inferer = given(scan, smoothing_mm=8.0, smoothing_share=0.05)
    [encoded] = inferer.support_encoder.encode_all(CountingNetwork(), inferer.registration)
    heights = [encoded.height_mm(value) for value in encoded.values]
    assert heights == [7.0 * len(encoded.extent(value)) for value in encoded.values]
    widths = inferer.fusion.widths_mm([encoded], [*encoded.values, 99])
    torch.testing.assert_close(widths, torch.tensor([*(0.05 * height for height in heights), 0.0]))
    inferer.fusion.smoothing_share = 9.0
    assert inferer.fusion.widths_mm([encoded], encoded.values).tolist() == [8.0] * len(heights)


def test_a_thin_label_keeps_its_scores_where_a_tall_one_is_smoothed():
    scores = torch.zeros(9, 3, 1, 1)
    scores[4, 1:] = 1.0
    smooth = ScanFusion.smooth(scores, torch.ones(9, 3, dtype=torch.bool), True, torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(smooth[:, 1], scores[:, 1])
    assert 0 < smooth[4, 2] < 0.3
    assert (smooth[:, 0] == 0).all()


def organ(value):
    """One organ, the first of the squares, under a value."""
    return torch.where(squares() == 1, value, 0)


def counted_supports(inferer, query, network=None):
    """Values of the result, and the numbers of the support scans that answered."""
    seen = []
    match = FewShotInferer._place

    def register(self, network, query, scan, views):
        seen.append(scan)
        return match(self, network, query, scan, views)

    FewShotInferer._place, network = register, network or CountingNetwork()
    try:
        _, scores = segment(inferer, network, query)
    finally:
        FewShotInferer._place = match
    return scores.meta["label_values"].flatten().tolist(), seen


def test_of_many_supports_the_most_similar_answer():
    scans = [SupportScan(noise(seed), organ(1), 7.0, str(seed)) for seed in (5, 6, 0, 7)]
    for count, number in ((1, 1), (3, 3), (4, 4), (9, 4), (None, 4)):
        inferer = given(*scans, num_slices=1, num_supports=count)
        values, answering = counted_supports(inferer, query_of(noise(0)))
        assert (values, len(answering)) == ([1], number)
    inferer = given(*scans, num_slices=1, num_supports=1)
    found, scores = segment(inferer, CountingNetwork(), query_of(noise(0)))
    assert (found == organ(1)).float().mean() > 0.98
    assert scores.meta["support_similarity"].item() > 0.99  # the query itself
    with pytest.raises(ValueError, match="num_supports must be at least 1"):
        given(num_supports=0)
    with pytest.raises(ValueError, match="extension must be at least 0"):
        given(extension=-1)


def test_a_label_that_only_a_distant_support_shows_is_found_too():
    near, other = (SupportScan(noise(0) + 0.1 * noise(seed), organ(1), 7.0, "a") for seed in (1, 2))
    far = SupportScan(noise(5), organ(3), 7.0, "c")
    values, answering = counted_supports(given(near, other, far, num_supports=1), query_of(noise(0)))
    assert values == [1, 3]
    assert [scan.values for scan in answering] == [[1], [3]]


def test_supports_that_do_not_answer_are_encoded_once_and_not_kept():
    scans = [SupportScan(noise(seed), organ(1), 7.0, str(seed)) for seed in range(6)]
    inferer, network = given(*scans, num_slices=1, num_supports=1, cache_size=1), CountingNetwork()
    segment(inferer, network, query_of(noise(5)))  # the last one, which is still there
    assert network.encoded == 7 * DEPTH
    assert len(inferer.support_encoder._scans) == 1
    segment(inferer, network, query_of(noise(2)))
    assert network.encoded == 9 * DEPTH  # the query and the one that answers
    with torch.no_grad():
        network.encoder.project.weight.mul_(2)
    segment(inferer, network, query_of(noise(2)))
    assert network.encoded == (9 + 1 + 6 + 1) * DEPTH  # other weights: all of them anew


def test_smoothing_follows_the_tallest_part_of_a_label():
    label = torch.zeros(SIZE, SIZE, DEPTH, dtype=torch.int64)
    label[8:32, 8:32, [0, 1, 4, 5, 6]] = 1
    label[40:, 40:] = 2
    scan = SupportScan(noise(0), label, 7.0, "a")
    inferer = given(scan, smoothing_mm=8.0, smoothing_share=0.2)
    encoded = inferer.support_encoder.encode_all(CountingNetwork(), inferer.registration)
    assert [encoded[0].height_mm(value) for value in (1, 2, 3)] == [21.0, 70.0, 0.0]
    torch.testing.assert_close(inferer.fusion.widths_mm(encoded, [1, 2, 3]), torch.tensor([4.2, 8.0, 0.0]))
    sparse = torch.zeros_like(label)
    sparse[8:32, 8:32, [1, 4, 7]] = 1
    inferer = given(SupportScan(noise(0), sparse, 7.0, "b"))
    (encoded,) = inferer.support_encoder.encode_all(CountingNetwork(), inferer.registration)
    assert encoded.height_mm(1) == 49.0  # what lies between labelled slices is no gap


def mirror(**arguments):
    registration = CellRegistration(smoothing=(0.1,), smoothing_mm=(8.0,), reach=1, pooling=1)
    return {"registration": registration, "mirror_check": MirrorCheck(**arguments)}


@pytest.mark.parametrize(("axis", "name"), [(0, "left-right"), (1, "front-back")])
def test_a_mirrored_query_is_noticed_and_turned_back_if_wanted(axis, name):
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    query = query_of(noise(0).flip(1 + axis))
    found, scores = segment(given(scan, num_slices=1, **mirror()), CountingNetwork(), query)
    assert scores.meta["mirrored"] == [name]
    assert "unmirrored" not in scores.meta
    inferer = given(scan, num_slices=1, keep_similarity=True, **mirror(unmirror=True))
    found, scores = segment(inferer, CountingNetwork(), query)
    assert scores.meta["mirrored"] == [name]
    assert (found == squares().flip(axis)).float().mean() > 0.98
    _, upright = segment(inferer, CountingNetwork(), query_of(noise(0)))
    assert "mirrored" not in upright.meta
    torch.testing.assert_close(scores.meta["similarity"], upright.meta["similarity"].flip(1 + axis))


def test_the_axis_of_a_reflection_is_named_by_the_query():
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    query = query_of(noise(0).flip(2))
    query.affine = torch.tensor([[0.0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 7, 0], [0, 0, 0, 1]], dtype=torch.float64)[None]
    _, scores = segment(given(scan, num_slices=1, **mirror()), CountingNetwork(), query)
    assert scores.meta["mirrored"] == ["left-right"]


def test_a_mirror_check_has_valid_numbers():
    for arguments in ({"margin": -0.1}, {"slices": 0}):
        with pytest.raises(ValueError, match="margin must be at least 0 and slices 1"):
            MirrorCheck(**arguments)


def test_memory_is_checked_before_a_query_is_matched():
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise ValueError("too large")

    scan = SupportScan(noise(0), squares(), 7.0, "a")
    network = CountingNetwork()
    with pytest.raises(ValueError, match="too large"):
        segment(given(scan, memory_check=refuse), network, query_of(noise(0), spatial_shape=np.array([100, 90, 10])))
    ((name, shape, slices, labels),) = asked
    assert (name, list(shape), slices, labels) == ("q.nii.gz", [100, 90, 10], DEPTH, 2)
    assert network.encoded == DEPTH  # the support alone
