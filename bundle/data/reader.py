"""NIfTI files with their geometry in mm."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.data import NibabelReader

UNITS_MM = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}


def unit_in_mm(header: Any) -> float:
    """Length of a header's unit in mm; what is unknown counts as mm, as everywhere."""
    units = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    return UNITS_MM.get(units, 1.0)


def affine_in_mm(affine: np.ndarray, header: Any) -> np.ndarray:
    """An affine ``(4, 4)`` of a header's unit in mm."""
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= unit_in_mm(header)
    return scaled


class NiftiReader(NibabelReader):
    """MONAI's reader, which takes every header for one in mm; headers in meters and microns come out in mm here."""

    def _get_affine(self, img: Any) -> np.ndarray:
        return affine_in_mm(super()._get_affine(img), img.header)
