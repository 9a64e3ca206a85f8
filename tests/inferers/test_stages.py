"""The stages of inference: each can be replaced, and each is by default what the config says."""

from __future__ import annotations

import threading

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.data.support import SupportScan
from bundle.identity import describe
from bundle.inferers import FewShotInferer, Quality, ScanFusion, SliceMatching, SliceRegistration
from bundle.inferers.support_encoder import Cache, weights_digest

from ..conftest import ROOT
from .build import make_inferer
from .test_few_shot import DEPTH, SIZE, CountingNetwork, noise, query_of, segment, squares

STAGES = ("registration", "matching", "fusion", "known_extents", "refinement", "upsampling", "mirror_check",
          "in_plane_orientation")  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_by_default_what_the_config_says(stage):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inference.json"))
    parser["support"] = parser["datalist"] = []
    configured = parser.get_parsed_content(f"inferer#{stage}")
    assert describe(getattr(FewShotInferer(), stage)) == describe(configured)


def test_the_support_encoder_and_quality_are_by_default_what_the_config_says():
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inference.json"))
    for key, value in {"support": [], "datalist": [], "support_preprocessing": None, "label_names": {}}.items():
        parser[key] = value
    for stage in ("quality", "support_encoder"):
        mine, theirs = vars(getattr(FewShotInferer(), stage)), vars(parser.get_parsed_content(f"inferer#{stage}"))
        for key in set(mine) - {"dataset_dir"}:
            assert key.startswith("_") or describe(mine[key]) == describe(theirs[key]), key


def shapes(record, *tensors):
    record.append([tuple(tensor.shape) for tensor in tensors])


def test_own_classes_take_the_place_of_stages():
    seen = []

    class Matching(SliceMatching):
        def __call__(self, network, features, scan, values, registered):
            scores, shown = super().__call__(network, features, scan, values, registered)
            shapes(seen, features, scores, shown, registered.support_index)
            return -scores, shown

    class Fusion(ScanFusion):
        def __call__(self, network, query, placed, values, matching):
            scores, possible = super().__call__(network, query, placed, values, matching)
            shapes(seen, scores, possible)
            return -scores, possible

    class Registration(SliceRegistration):
        def __call__(self, features, scan, spacing_mm):
            found = super().__call__(features, scan, spacing_mm)
            shapes(seen, found.positions)
            return found

    class Trusting(Quality):
        def reverse_dice(self, network, query, placed, values, scores, registration, matching):
            return torch.full((len(values),), 0.25)

    inferer = FewShotInferer(
        registration=Registration(num_slices=3, cells=None),
        matching=Matching(),
        fusion=Fusion(smoothing_mm=0.0),
        quality=Trusting(reverse_dice_discount=0.0),
        mirror_check=None,
        in_plane_orientation=None,
        refinement=None,
        upsampling=lambda scores, images, exclusive, widths: scores,
    )
    scan = SupportScan(noise(0), squares(), 7.0, "a")
    inferer.set_support([scan])
    found, scores = segment(inferer, CountingNetwork(), query_of(noise(0)))
    cells, labels = SIZE // 8, 2
    assert seen == [
        [(DEPTH,)],
        [(DEPTH, 64, cells, cells), (DEPTH, 1 + labels, cells, cells), (DEPTH, labels), (DEPTH, 3)],
        [(DEPTH, 1 + labels, cells, cells), (DEPTH, 1 + labels)],
    ]
    assert (found == squares()).float().mean() > 0.95  # turned around twice
    assert scores.meta["reverse_dice"].tolist() == [[0.25, 0.25]]


def test_no_gradient_is_kept():
    inferer = make_inferer()
    inferer.set_support([SupportScan(noise(0), squares(), 7.0, "a")])
    assert not inferer(query_of(noise(0)), CountingNetwork()).requires_grad


def test_a_cache_makes_once_what_many_ask_for_and_does_not_wait_for_others():
    cache, made, gate = Cache(4), [], threading.Event()

    def slow():
        made.append("slow")
        assert gate.wait(10)
        return 1

    threads = [threading.Thread(target=cache.get, args=("slow", slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert cache.get("other", lambda: 2) == 2  # while the first is being made
    gate.set()
    for thread in threads:
        thread.join()
    assert made == ["slow"]
    assert cache.get("slow", slow) == 1


def test_a_cache_forgets_what_failed_and_what_was_asked_for_long_ago():
    cache = Cache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert len(cache) == 0
    assert [cache.get(key, lambda key=key: key) for key in "abc"] == ["a", "b", "c"]
    assert len(cache) == 2
    assert cache.get("a", lambda: "anew") == "anew"


def test_a_digest_follows_values():
    network = CountingNetwork()
    before = weights_digest(network)
    assert weights_digest(CountingNetwork()) == before
    with torch.no_grad():
        network.encoder.project.weight.data[3, 0, 2, 2] += 1e-3
    assert weights_digest(network) != before
