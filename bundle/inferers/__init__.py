"""Inference: whole volumes from labelled scans."""

from .few_shot import FewShotInferer
from .location import CellLocator, QuarterTurns
from .refine import Remnants

__all__ = ["CellLocator", "FewShotInferer", "QuarterTurns", "Remnants"]
