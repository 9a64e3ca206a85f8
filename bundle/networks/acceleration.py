"""Compilation and CUDA graphs where they work, with a word about it elsewhere; kernels that repeat themselves."""

from __future__ import annotations

import logging
from typing import Any

import torch


def compile_arguments(compile: bool, cuda_graphs: bool, device: str | torch.device) -> dict[str, Any]:
    """Arguments ``compile`` and ``compile_kwargs`` of MONAI's engines.

    Whether a compiler works here is tried on a small function, which takes a few seconds.

    Args:
        compile: generate code with ``torch.compile``.
        cuda_graphs: replay each step's kernels as CUDA graphs, which saves the time of starting them one by one.
        device: where the network runs.
    """
    device = torch.device(device)
    if cuda_graphs and device.type != "cuda":
        _log("CUDA graphs", f"they need a CUDA device, this is {device}")
        cuda_graphs = False
    if compile:
        kwargs = {"mode": "reduce-overhead"} if cuda_graphs else {}
        problem = _problem(device, kwargs)
        if problem is None:
            return {"compile": True, "compile_kwargs": kwargs}
        _log("torch.compile", problem)
    if cuda_graphs:
        kwargs = {"backend": "cudagraphs"}  # the kernels as they are, recorded
        problem = _problem(device, kwargs)
        if problem is None:
            return {"compile": True, "compile_kwargs": kwargs}
        _log("CUDA graphs", problem)
    return {"compile": False, "compile_kwargs": None}


def slices_at_once(device: str | torch.device, fewest: int = 16, per_gigabyte: float = 8.0, most: int = 128) -> int:
    """How many slices a device works on at once.

    More than the fewest would leave a processor's cache; on a GPU they leave most of it idle while kernels are started.

    Args:
        device: where the network runs.
        fewest: on a processor, and on a GPU at least.
        per_gigabyte: on a GPU for each gigabyte of its memory.
        most: on a GPU at most.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return fewest
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
    return max(fewest, min(most, int(per_gigabyte * gigabytes)))


def set_deterministic(deterministic: bool) -> None:
    """Let a device compute the same bits each time, or whatever is fastest.

    Args:
        deterministic: use kernels that repeat themselves where there are any, and a warning names what has none;
            otherwise cuDNN tries its kernels and takes the fastest. CPUs repeat themselves anyway.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing reads such memory


def _problem(device: torch.device, kwargs: dict[str, Any]) -> str | None:
    """Why a small function cannot be compiled; None if it can."""
    try:
        torch.compile(lambda x: (2 * x + 1).sum(), **kwargs)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - whatever a compiler fails with, there is a way without it
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def _log(what: str, problem: str) -> None:
    logging.getLogger(__name__).warning("%s: not used, %s", what, problem)
