"""Few-shot segmentation of 3D scans with self-supervised prototype networks."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .segmenter import FewShotSegmenter

__all__ = ["FewShotSegmenter"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The segmenter on its first use: importing the package alone loads neither torch nor MONAI."""
    if name == "FewShotSegmenter":
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        if __name__ != "bundle" and root not in sys.path:  # installed; the configs call the package by this name
            sys.path.insert(1, root)
        return importlib.import_module("bundle.segmenter").FewShotSegmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
