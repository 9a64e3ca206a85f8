"""Inference: whole volumes from labelled scans."""

from .few_shot import FewShotInferer
from .precision import EpisodeInferer, fast_precision

__all__ = ["EpisodeInferer", "FewShotInferer", "fast_precision"]
