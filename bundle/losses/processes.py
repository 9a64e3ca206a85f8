"""Losses of several processes, counted together."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_of_processes(value: Tensor) -> Tensor:
    """Mean of a value without gradient over the processes of a distributed training; the value itself outside of one.

    Divided by it, the processes' losses, and so the gradients that are averaged, are those of all episodes together.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()
