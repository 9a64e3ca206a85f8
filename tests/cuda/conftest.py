"""The devices of these tests."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from .pretend import PretendedCuda, event


def load(original, *args, map_location=None, **kwargs):
    """``torch.load`` onto the CPU; what takes the values in copies them."""
    return original(*args, map_location="cpu" if map_location is not None else None, **kwargs)


@pytest.fixture
def device(monkeypatch):
    """A pretended GPU, ``cuda:0``, which counts what it is asked for."""
    for name, answer in {
        "Event": event,
        "mem_get_info": lambda *_: (10**9, 10**9),
        "max_memory_allocated": lambda *_: 0,
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=2**34),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "is_bf16_supported": lambda *_, **__: False,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "load", partial(load, torch.load))
    with PretendedCuda() as pretended:
        yield pretended


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request):
    """A device called ``cuda:0``: the pretended one everywhere, the real one where tests may use it."""
    if request.param == "pretended":
        request.getfixturevalue("device")
