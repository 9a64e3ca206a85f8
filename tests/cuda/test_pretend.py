"""The pretended device finds what a real one stumbles over."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from bundle.metrics import scan_dice

from .pretend import DEVICE, DeviceMixError


def test_tensors_say_where_they_lie_and_compute_the_same(device):
    here = torch.arange(12.0).reshape(3, 4)
    there = here.to("cuda:0")
    assert (here.device.type, there.device, there.is_cuda) == ("cpu", DEVICE, True)
    made = [there + 1, there[0], there.new_zeros(2), torch.zeros(2, device=there.device), torch.eye(2).to(there)]
    assert all(item.is_cuda for item in made)
    assert torch.equal((there @ there.T).cpu(), here @ here.T)
    assert not there.cpu().is_cuda
    scan = MetaTensor(here[None], meta={"name": "a"}).to("cuda")
    assert (type(scan), scan.device, scan.affine.device.type, scan.meta["name"]) == (MetaTensor, DEVICE, "cpu", "a")
    linear = torch.nn.Linear(4, 2).to("cuda")
    linear(there).sum().backward()
    assert linear.weight.grad.is_cuda


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: here[there > 1],
        lambda here, there: torch.where(here > 0, there, there),
    ],
)
def test_places_do_not_mix(device, mix):
    here = torch.rand(3)
    with pytest.raises(DeviceMixError):
        mix(here, here.to("cuda"))
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        here.to("cuda").numpy()


@pytest.mark.parametrize(
    ("wait", "reason"),
    [
        (lambda x: float(x.sum()), "a number is read"),
        (lambda x: bool((x > 0).any()), "a number is read"),
        (lambda x: x.cpu(), "copy to the CPU"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x[x > 0], "index of booleans"),
        (lambda x: x[[0, 1]], "index from the CPU"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "copy to the device"),
    ],
)
def test_waiting_is_counted(device, wait, reason):
    x = torch.rand(3).to("cuda")
    device.forget()
    wait(x)
    assert device.waits == {("elsewhere", reason): 1}


def test_kernels_are_counted_and_views_are_not(device):
    x = torch.rand(3, 4).to("cuda")
    device.forget()
    _ = x[0].reshape(2, 2).T
    assert sum(device.launches.values()) == 0
    _ = (x + 1) * 2
    assert sum(device.launches.values()) == 2
    assert not device.waits


def test_truth_may_lie_elsewhere_than_the_prediction(cuda):
    pred, truth = torch.ones(2, 3, 3, 2), torch.ones(2, 3, 3, 2)
    truth[0, 0] = 0
    expected = scan_dice(pred, truth)
    assert torch.equal(scan_dice(pred.to("cuda:0"), truth).cpu(), expected)
    assert torch.equal(scan_dice(pred, truth.to("cuda:0")), expected)
