from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine

from bundle.data import SliceBank
from bundle.handlers import DeviceMemory

from ..data.test_episodes import dataset

WEIGHTS = {"sgd": 0, "momentum": 1, "adamw": 2, "amsgrad": 3}


def optimizer(name, parameters):
    if name in ("sgd", "momentum"):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9 if name == "momentum" else 0.0)
    return torch.optim.AdamW(parameters, lr=0.1, amsgrad=name == "amsgrad")


@pytest.mark.parametrize("name", WEIGHTS)
def test_state_known_beforehand_is_the_state_that_comes(name):
    network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    network[0].requires_grad_(False)
    step = optimizer(name, [p for p in network.parameters() if p.requires_grad])
    parts = DeviceMemory(network, step).parts()
    network(torch.rand(3, 8)).sum().backward()
    step.step()
    kept = [v for state in step.state.values() for k, v in state.items() if k != "step" and v is not None]
    assert parts["optimizer"] == sum(v.nbytes for v in kept)
    assert parts["gradients"] == sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    assert parts["weights"] == sum(v.nbytes for v in network.state_dict().values())
    assert parts["slices"] == 0


def test_plan_is_logged_before_the_first_step_with_the_slices_in_place(caplog):
    caplog.set_level(logging.INFO)
    network, bank = torch.nn.Linear(2, 2), SliceBank(dataset())
    seen = []
    engine = Engine(lambda *_: seen.append("training state on cpu: 0 MB (weights 0 MB" in caplog.text))
    engine.state.device = torch.device("cpu")
    DeviceMemory(network, torch.optim.SGD(network.parameters(), lr=1), bank).plan(engine)
    engine.run([0])
    assert seen == [True]
    assert bank.num_bytes == 6 * 16 * 16 * 6
