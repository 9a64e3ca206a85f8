"""Transforms from a scan to episodes, and from scores to a label map; each in array and dictionary form."""

from .body import BodyMask, BodyMaskd
from .check import CheckVolumed
from .chunks import QueryChunksd
from .components import LargeComponents, LargeComponentsd
from .confidence import ConfidenceMap, ConfidenceMapd, MeanConfidence, MeanConfidenced
from .drawn_slices import KeepDrawnSlices, KeepDrawnSlicesd
from .episode import RandEpisoded, RandView
from .intensity import ScanIntensity, ScanIntensityd
from .label_grid import MatchLabel, MatchLabeld
from .label_map import ClassMasksd, LabelMap, LabelMapd, LabelMasksd
from .pseudo_label import RandPseudoLabel, RandPseudoLabeld
from .similarity import SimilarityMap, SimilarityMapd
from .spatial import OrientSlices, OrientSlicesd, RestoreGeometry, RestoreGeometryd, SliceFrame, SliceFramed
from .superpixel import Superpixels, Superpixelsd
from .support import AnswerQualityd, SelectSupport, SelectSupportd

__all__ = [
    "AnswerQualityd",
    "BodyMask",
    "BodyMaskd",
    "CheckVolumed",
    "ClassMasksd",
    "ConfidenceMap",
    "ConfidenceMapd",
    "KeepDrawnSlices",
    "KeepDrawnSlicesd",
    "LabelMap",
    "LabelMapd",
    "LabelMasksd",
    "LargeComponents",
    "LargeComponentsd",
    "MatchLabel",
    "MatchLabeld",
    "MeanConfidence",
    "MeanConfidenced",
    "OrientSlices",
    "OrientSlicesd",
    "QueryChunksd",
    "RandEpisoded",
    "RandPseudoLabel",
    "RandPseudoLabeld",
    "RandView",
    "RestoreGeometry",
    "RestoreGeometryd",
    "ScanIntensity",
    "ScanIntensityd",
    "SelectSupport",
    "SelectSupportd",
    "SimilarityMap",
    "SimilarityMapd",
    "SliceFrame",
    "SliceFramed",
    "Superpixels",
    "Superpixelsd",
]
