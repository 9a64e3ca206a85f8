"""Inference: whole volumes from labelled scans."""

from .few_shot import FewShotInferer

__all__ = ["FewShotInferer"]
