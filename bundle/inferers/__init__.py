"""Inference: whole volumes from labelled scans."""

from .atlas_fallback import AtlasFallback
from .completion import SliceCompletion
from .few_shot import FewShotInferer
from .cell_registration import CellRegistration
from .orientation import InPlaneOrientation, MirrorCheck
from .pseudo_supports import PseudoSupports
from .refinement import SelfSupportRefinement
from .truncated_structures import TruncatedStructures
from .upsampling import GuidedUpsampling

__all__ = [
    "PseudoSupports",
    "CellRegistration",
    "FewShotInferer",
    "GuidedUpsampling",
    "AtlasFallback",
    "InPlaneOrientation",
    "MirrorCheck",
    "TruncatedStructures",
    "SelfSupportRefinement",
    "SliceCompletion",
]
