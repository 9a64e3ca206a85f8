"""Networks and their weights: tensors in, tensors out."""

from __future__ import annotations

from .encoders import EfficientNetLiteEncoder, Encoder, ResNetEncoder, TinyEncoder
from .nets import ALPNet
from .weights import load_weights

__all__ = ["ALPNet", "EfficientNetLiteEncoder", "Encoder", "ResNetEncoder", "TinyEncoder", "load_weights"]
