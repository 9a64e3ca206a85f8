"""Intensities of any scan to a range in which its soft tissue shows."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type

from ..keys import MODALITY

logger = logging.getLogger(__name__)
MODALITIES = ("auto", "ct", "mr")


class ScanIntensity(Transform):
    """CT to a window, anything else clipped at its brightest voxels, so that one default fits both.

    A scan counts as CT in Hounsfield units if a share of its voxels is air and most of what is not is soft tissue. A
    few odd voxels do not make a CT, and neither does an MR whose values were shifted below 0: its tissue spreads over
    many values. What else cannot be told apart is said by ``modality``.

    Args:
        window_hu: lowest and highest value of CT that stay apart, in HU.
        air_hu: below this value a voxel of CT is air, in HU.
        upper_percentile: share of the voxels of other scans, in percent, that lie below the clipping value (99.5
            in the published preparation of MR).
        modality: ``"ct"``, ``"mr"`` for anything but CT, or ``"auto"`` to tell by the histogram.
        min_air_share: share of the voxels that must be air for a CT.
        tissue_hu: range of soft tissue, fat and water in CT, in HU.
        min_tissue_share: share that must lie in that range, of the voxels brighter than ``empty_hu``, for a CT.
        empty_hu: below this value CT shows nothing but air and padding, in HU.
        lower_percentile: share of the voxels of other scans, in percent, that may be odd and dark: those that lie far
            below are clipped, since one of them would shift every threshold.
        outlier_share: how far below counts as far, as a share of the range between both percentiles.

    Raises:
        ValueError: for a window or range that is upside down, or an unknown modality.
    """

    def __init__(
        self,
        window_hu: Sequence[float] = (-125.0, 275.0),
        air_hu: float = -500.0,
        upper_percentile: float = 99.5,
        modality: str = "auto",
        min_air_share: float = 0.01,
        tissue_hu: Sequence[float] = (-200.0, 200.0),
        min_tissue_share: float = 0.5,
        empty_hu: float = -950.0,
        lower_percentile: float = 0.1,
        outlier_share: float = 0.1,
    ) -> None:
        for name, pair in (("window_hu", window_hu), ("tissue_hu", tissue_hu)):
            if not pair[0] < pair[1]:
                raise ValueError(f"{name} must be [lowest, highest], got {list(pair)}")
        if str(modality).lower() not in MODALITIES:
            raise ValueError(f"modality must be one of {list(MODALITIES)}, got {modality!r}")
        self.window_hu = tuple(window_hu)
        self.air_hu = air_hu
        self.upper_percentile = upper_percentile
        self.modality = str(modality).lower()
        self.min_air_share = min_air_share
        self.tissue_hu = tuple(tissue_hu)
        self.min_tissue_share = min_tissue_share
        self.empty_hu = empty_hu
        self.lower_percentile = lower_percentile
        self.outlier_share = outlier_share

    def is_ct(self, values: torch.Tensor) -> bool:
        """Whether voxels look like CT in Hounsfield units."""
        if float((values < self.air_hu).float().mean()) < self.min_air_share:
            return False
        seen = values > self.empty_hu
        tissue = (values > self.tissue_hu[0]) & (values < self.tissue_hu[1])
        return float(tissue.sum()) >= self.min_tissue_share * max(float(seen.sum()), 1.0)

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Clip a volume ``(C, H, W, D)``: same shape and type of container, float32.

        A ``MetaTensor`` gets ``modality`` in its meta data: ``"ct"`` or ``"mr"``, what it was taken for.
        """
        values = torch.as_tensor(image).as_subclass(torch.Tensor).float()
        modality = self.modality
        if modality == "auto":
            modality = "ct" if self.is_ct(values) else "mr"
            if modality == "mr" and bool((values < self.air_hu).any()):
                name = getattr(image, "meta", {}).get("filename_or_obj", "image")
                logger.warning(
                    f"{name}: has values down to {float(values.min()):g}, but not the histogram of CT in HU, "
                    "and is taken for MR; if it is CT, say so with --modality ct"
                )
        if modality == "ct":
            clipped = values.clamp(*self.window_hu)
        else:
            flat = values.flatten()
            lowest, highest = (
                flat.kthvalue(max(1, round(flat.numel() * percentile / 100))).values
                for percentile in (self.lower_percentile, self.upper_percentile)
            )
            clipped = values.clamp(max=highest)
            if bool(values.min() < lowest - self.outlier_share * (highest - lowest)):
                clipped = clipped.clamp(min=lowest)
        out = convert_to_dst_type(clipped, image, dtype=torch.float32)[0]
        if isinstance(out, MetaTensor):
            out.meta = {**out.meta, MODALITY: modality}
        return out


class ScanIntensityd(MapTransform):
    """Dictionary version of :class:`ScanIntensity`.

    Args:
        keys: keys of the scans.
        allow_missing_keys: skip keys that are absent.
        **arguments: see :class:`ScanIntensity`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **arguments: object) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clip = ScanIntensity(**arguments)  # type: ignore[arg-type]

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Clip each scan."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.clip(out[key])
        return out
