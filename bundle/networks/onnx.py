"""The encoder, which does nearly all of the work, in ONNX Runtime instead of PyTorch."""

from __future__ import annotations

import os

import torch
from monai.utils import optional_import
from torch import Tensor, nn

from .nets import ALPNet

runtime, _ = optional_import("onnxruntime")


class EncoderOnly(nn.Module):
    """The encoder of a network as a network of its own, for exporters; its weights have the same names.

    Args:
        network: network whose weights an exporter loads.
    """

    def __init__(self, network: ALPNet) -> None:
        super().__init__()
        self.encoder = network.encoder

    def forward(self, image: Tensor) -> Tensor:
        """Features ``(B, D, h, w)`` of images ``(B, in_channels, H, W)``."""
        return self.encoder(image)


class OnnxEncoder(nn.Module):
    """An exported encoder, run by ONNX Runtime on the CPU.

    Args:
        path: ONNX file of :class:`EncoderOnly`, with dynamic batch and image size.
        in_channels: channels of its input.
        stride: input pixels per feature cell.

    Raises:
        FileNotFoundError: if the file does not exist.
    """

    def __init__(self, path: str | os.PathLike, in_channels: int, stride: int) -> None:
        super().__init__()
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such ONNX file; export the encoder first, see docs/integration.md")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        self.in_channels = in_channels
        self.stride = stride

    def forward(self, image: Tensor) -> Tensor:
        """Features ``(B, D, h, w)`` of images ``(B, in_channels, H, W)``."""
        (name,) = [entry.name for entry in self.session.get_inputs()]
        (features,) = self.session.run(None, {name: image.float().contiguous().cpu().numpy()})
        return torch.from_numpy(features).to(image.device)


def with_onnx_encoder(network: ALPNet, path: str | os.PathLike) -> ALPNet:
    """The network with its encoder replaced by an exported one; what is left has no weights."""
    network.encoder = OnnxEncoder(path, network.in_channels, network.stride)
    return network
