"""Few-shot segmentation of 3D scans with self-supervised prototype networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .segmenter import FewShotSegmenter

__all__ = ["FewShotSegmenter"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The segmenter on its first use: importing the package alone loads neither torch nor MONAI."""
    if name == "FewShotSegmenter":
        from .segmenter import FewShotSegmenter

        return FewShotSegmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
