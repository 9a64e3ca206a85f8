"""Inference: whole volumes from labelled scans."""

from .few_shot import FewShotInferer
from .location import CellLocator, QuarterTurns
from .propagation import LabelPropagation
from .refine import Remnants

__all__ = ["CellLocator", "FewShotInferer", "LabelPropagation", "QuarterTurns", "Remnants"]
