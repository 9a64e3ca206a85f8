"""Networks and their weights: tensors in, tensors out."""

from __future__ import annotations

from .acceleration import compile_arguments, set_deterministic, slices_at_once
from .encoders import EfficientNetLiteEncoder, Encoder, ResNetEncoder, TinyEncoder
from .nets import ALPNet
from .onnx import EncoderOnly, OnnxEncoder, with_onnx_encoder
from .precision import fast_precision
from .weights import check_weights, load_weights

__all__ = [
    "ALPNet",
    "EfficientNetLiteEncoder",
    "Encoder",
    "EncoderOnly",
    "OnnxEncoder",
    "ResNetEncoder",
    "TinyEncoder",
    "compile_arguments",
    "fast_precision",
    "check_weights",
    "load_weights",
    "set_deterministic",
    "slices_at_once",
    "with_onnx_encoder",
]
