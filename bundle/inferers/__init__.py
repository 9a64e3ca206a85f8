"""Inference: whole volumes from labelled scans."""

from .bridges import Bridges
from .few_shot import FewShotInferer
from .filling import SliceFilling
from .location import CellLocator, QuarterTurns
from .propagation import LabelPropagation
from .remnants import Remnants
from .self_matching import SelfMatching
from .sharpening import GuidedSharpening

__all__ = [
    "Bridges",
    "CellLocator",
    "FewShotInferer",
    "GuidedSharpening",
    "LabelPropagation",
    "QuarterTurns",
    "Remnants",
    "SelfMatching",
    "SliceFilling",
]
