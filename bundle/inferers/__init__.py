"""Inference: whole volumes from labelled scans."""

from .few_shot import FewShotInferer
from .location import CellLocator

__all__ = ["CellLocator", "FewShotInferer"]
