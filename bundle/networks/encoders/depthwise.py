"""Depthwise convolution with a fast gradient where its weights are frozen."""

from __future__ import annotations

from typing import Any, List

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FrozenDepthwise(torch.autograd.Function):
    """Depthwise convolution of stride 1 whose weights need no gradient.

    The gradient of its input is the convolution with the kernels turned by 180 degrees. On CPU that forward kernel is
    several times faster than the backward kernel of the general convolution.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: List[int], dilation: List[int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, None, 1, padding, dilation, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (weight,) = ctx.saved_tensors
        back = [d * (k - 1) - p for p, d, k in zip(ctx.padding, ctx.dilation, weight.shape[2:])]
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        return F.conv2d(grad, weight.flip(2, 3), None, 1, back, ctx.dilation, weight.shape[0]), None, None, None


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with as many groups as channels, faster to train through while its weights are frozen.

    Same values, same gradients, same state dict as ``nn.Conv2d``; the shortcut is taken on CPU alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)``."""
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():
            if self._frozen(input):
                return self._forward_frozen(input)
        return self._conv_forward(input, self.weight, self.bias)

    @torch.jit.unused
    def _frozen(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.requires_grad
            and torch.is_grad_enabled()
            and not self.weight.requires_grad
            and self.bias is None
            and self.stride == (1, 1)
        )

    @torch.jit.unused
    def _forward_frozen(self, x: Tensor) -> Tensor:
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            weight = weight.to(torch.get_autocast_dtype("cpu"))
        return _FrozenDepthwise.apply(x.to(weight.dtype), weight, list(self.padding), list(self.dilation))
