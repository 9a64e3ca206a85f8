"""Number formats: the one in which a device encodes fastest, and single precision where digits decide."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def fast_precision(device: str | torch.device) -> str:
    """``"bfloat16"`` where the device computes it faster than single precision, else ``"float32"``.

    That is: CUDA devices with bfloat16, and processors with AMX or AVX-512 instructions for it. It has the range of
    single precision, so that no loss needs scaling.
    """
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def in_single_precision(method: Method) -> Method:
    """Run a method whose first argument is a tensor without autocast, also where the caller has switched it on.

    What rounds places of a scan to eight binary digits, as bfloat16 does, misplaces organs.
    """

    @wraps(method)
    def run(self: Any, first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(self, first, *args, **kwargs)

    return run  # type: ignore[return-value]
