"""Number format of the encoder's pass: as fast as the device allows."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fast_precision(device: str | torch.device) -> str:
    """``"bfloat16"`` where the device computes it faster than single precision, else ``"float32"``.

    That is: CUDA devices with bfloat16, and processors with AMX or AVX-512 instructions for it.
    """
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def autocast(device: str | torch.device, precision: str) -> torch.autocast:
    """Autocast context for a device and one of ``float32``, ``bfloat16``, ``float16``.

    Raises:
        ValueError: for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {precision!r}")
    return torch.autocast(torch.device(device).type, PRECISIONS[precision], enabled=precision != "float32")


class EpisodeInferer(SimpleInferer):
    """Runs the network on a batch of episodes, its convolutions in the given precision.

    MONAI's engines know mixed precision for CUDA alone and scale losses for float16; bfloat16 needs no scaling and
    runs on processors too.

    Args:
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        self.precision = precision
        autocast("cpu", precision)  # an unknown name fails here, not in the first step

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Logits of the episodes in single precision, see :class:`ALPNet`."""
        with autocast(inputs.device, self.precision):
            return super().__call__(inputs, network, *args, **kwargs).float()
