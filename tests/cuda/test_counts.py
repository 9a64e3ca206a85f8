"""How often inference starts a kernel and waits for the device: bounds at what it does today."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from bundle.data.support import SupportScan
from bundle.networks import ALPNet

from ..conftest import ROOT, TINY_NETWORK
from ..inferers.test_few_shot import PatchEncoder, noise, query_of, squares


def default_inferer(device, label, **settings):
    """The inferer of the config, with a support of ten slices, and its network."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inference.json"))
    for key, value in {"bundle_root": str(ROOT), "support": [], "datalist": [], "label_names": {}, **settings}.items():
        parser[key] = value
    inferer = parser.get_parsed_content("inferer")
    inferer.set_support([SupportScan(noise(0), label, 7.0, "support")])
    settings = {key: value for key, value in TINY_NETWORK.items() if key not in ("_target_", "encoder")}
    return inferer, ALPNet(PatchEncoder(), testing_window=1, depth_weight=0.3, **settings).eval().to(device)


def count(device, label, **settings):
    """Segment a query, so that the device knows what that took."""
    inferer, network = default_inferer("cuda:0", label, **settings)
    query = query_of(noise(0) + 0.5 * noise(1)).to("cuda:0")
    inferer(query, network)  # encodes the support
    device.forget()
    inferer(query, network)


def test_a_region_of_interest_takes_less_than_a_second_pass(device):
    label = squares()
    label[48:] = label[:, 32:] = 0  # leaves what a small box holds
    count(device, label, region_of_interest=None)
    launches, waits = sum(device.launches.values()), sum(device.waits.values())
    count(device, label)
    assert launches < sum(device.launches.values()) <= 2 * launches, device.launches.most_common(30)
    assert sum(device.waits.values()) <= 2 * waits, device.waits.most_common(30)


@pytest.mark.parametrize(
    ("settings", "launches", "waits"),
    [({}, 4250, 35), ({"registration": None, "refinement": None, "upsampling": None}, 1420, 22)],
    ids=["whole default", "matching alone"],
)
def test_ten_slices(device, settings, launches, waits):
    count(device, squares(), **settings)
    assert sum(device.launches.values()) <= launches, device.launches.most_common(30)
    assert sum(device.waits.values()) <= waits, device.waits.most_common(30)
