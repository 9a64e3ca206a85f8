"""Matrix products as a GPU computes them in TensorFloat-32, on the CPU."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Single precision with the 10 digits after the first that TensorFloat-32 keeps, to the nearest."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class TensorFloat32(TorchDispatchMode):
    """Rounds what is multiplied, as ``torch.backends.cuda.matmul.allow_tf32`` does on a GPU that has it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            first = len(args) - 2
            args = (*args[:first], *(rounded(x) if x.dtype == torch.float32 else x for x in args[first:]))
        return func(*args, **(kwargs or {}))
