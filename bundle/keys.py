"""Dictionary keys that the bundle's transforms, data sets and engines share."""

from __future__ import annotations

IMAGE = "image"
LABEL = "label"
PRED = "pred"
CONFIDENCE = "confidence"
SIMILARITY = "similarity"
TRUTH = "truth"
SUPERPIXELS = "superpixels"
CANDIDATES = "candidates"
PSEUDO_LABEL = "pseudo_label"
SLICE = "slice"
DRAWN = "drawn"
SUPPORT_IMAGE = "support_image"
SUPPORT_LABEL = "support_label"
MODALITY = "modality"
MODALITY_REASON = "modality_reason"
