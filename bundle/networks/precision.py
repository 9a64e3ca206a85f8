"""The number format in which a device encodes fastest."""

from __future__ import annotations

import torch


def fast_precision(device: str | torch.device) -> str:
    """``"bfloat16"`` where the device computes it faster than single precision, else ``"float32"``.

    That is: CUDA devices with bfloat16, and processors with AMX or AVX-512 instructions for it. It has the range of
    single precision, so that no loss needs scaling.
    """
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"
