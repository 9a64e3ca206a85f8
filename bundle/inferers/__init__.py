"""Inference: whole volumes from labelled scans."""

from .atlas_fallback import AtlasFallback
from .cell_registration import CellRegistration
from .completion import SliceCompletion
from .few_shot import FewShotInferer
from .fusion import ScanFusion
from .known_extent import KnownExtents
from .matching import SliceMatching
from .orientation import InPlaneOrientation, MirrorCheck
from .pseudo_supports import PseudoSupports
from .quality import Quality
from .refinement import SelfSupportRefinement
from .region import RegionOfInterest
from .shape_interpolation import ShapeInterpolation
from .slice_registration import SliceRegistration
from .support_encoder import SupportEncoder
from .truncated_structures import TruncatedStructures
from .upsampling import GuidedUpsampling

__all__ = [
    "AtlasFallback",
    "CellRegistration",
    "FewShotInferer",
    "GuidedUpsampling",
    "InPlaneOrientation",
    "KnownExtents",
    "MirrorCheck",
    "PseudoSupports",
    "Quality",
    "RegionOfInterest",
    "ScanFusion",
    "SelfSupportRefinement",
    "ShapeInterpolation",
    "SliceCompletion",
    "SliceMatching",
    "SliceRegistration",
    "SupportEncoder",
    "TruncatedStructures",
]
