"""Encoders behind one interface: image in, feature map out."""

from __future__ import annotations

from .base import Encoder
from .efficientnet_lite import EfficientNetLiteEncoder
from .resnet import ResNetEncoder
from .tiny import TinyEncoder

__all__ = ["EfficientNetLiteEncoder", "Encoder", "ResNetEncoder", "TinyEncoder"]
