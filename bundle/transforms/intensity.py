"""Intensities of any scan to a range in which its soft tissue shows."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type

from ..data.datalist import dataset_modality
from ..keys import MODALITY, MODALITY_REASON

logger = logging.getLogger(__name__)
MODALITIES = ("auto", "ct", "mr")
UNSCALED = "said by dataset.json, but the values are not Hounsfield units"


class ScanIntensity(Transform):
    """CT to a window, anything else clipped at its brightest voxels, so that one default fits both.

    What a scan is shows in the histogram of all its voxels. CT in Hounsfield units has air, fat and soft tissue at
    their values and little between them; without air it is a crop of the body, which is fat and soft tissue. An MR
    that was shifted below 0 spreads over many values. Few voxels below 0 are artefacts of an MR: padding, undershoot
    of an interpolation, a broken pixel.

    Args:
        window_hu: lowest and highest value of CT that stay apart, in HU.
        air_hu: up to this value a voxel of CT is air, lung or padding, in HU.
        upper_percentile: share of the voxels of other scans, in percent, that lie below the clipping value (99.5
            in the published preparation of MR).
        modality: ``"ct"``, ``"mr"`` for anything but CT, or ``"auto"`` to tell by the histogram.
        min_negative_share: share of the voxels that must be negative, padding aside, unless that is an artefact.
        min_air_share: share of the voxels that must be air in a CT that is no crop of the body.
        tissue_hu: range of fat and soft tissue in CT, in HU.
        min_tissue_share: share of the voxels brighter than air that must lie in it.
        fat_hu: range of fat and tissue without contrast agent, in HU.
        min_fat_share: as before, for this range.
        organ_hu: range of water, muscle and organs, in HU.
        min_organ_share: as before, for this range.
        lung_hu: darker voxels of CT are air and padding, in HU.
        min_solid_share: share of fat and soft tissue among the brighter ones: an MR is full of values in between.
        crop_shares: of a crop of the body, which has no air: least share of fat and soft tissue, largest share of what
            is darker than ``fat_hu``, least share of ``organ_hu``, and least share of fat below ``crop_fat_hu``.
        crop_fat_hu: see there.
        standard_tolerance: by which the mean of a standardized scan, which is no CT in HU, may differ from 0 and its
            deviation from 1, 10, 100 and so on, as a share of the deviation.
        offsets_hu: what may be added to HU in files of unsigned numbers, the most usual first.
        void_hu: range below the -1024 HU at which CT starts, and above padding: an offset that leaves voxels there is
            not the right one.
        lower_percentile: share of the voxels of a shifted MR, in percent, that may be odd and dark: those that lie far
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
        min_negative_share: float = 0.01,
        min_air_share: float = 0.005,
        tissue_hu: Sequence[float] = (-200.0, 250.0),
        min_tissue_share: float = 0.75,
        fat_hu: Sequence[float] = (-150.0, 120.0),
        min_fat_share: float = 0.7,
        organ_hu: Sequence[float] = (-20.0, 120.0),
        min_organ_share: float = 0.25,
        lung_hu: float = -850.0,
        min_solid_share: float = 0.5,
        crop_shares: Sequence[float] = (0.9, 0.1, 0.2, 0.005),
        crop_fat_hu: float = -50.0,
        standard_tolerance: float = 0.01,
        offsets_hu: Sequence[float] = (1024.0, 1000.0),
        void_hu: Sequence[float] = (-1174.0, -1036.0),
        lower_percentile: float = 0.1,
        outlier_share: float = 0.1,
    ) -> None:
        ranges = {"window_hu": window_hu, "tissue_hu": tissue_hu, "fat_hu": fat_hu, "organ_hu": organ_hu}
        ranges["void_hu"] = void_hu
        for name, pair in ranges.items():
            if not pair[0] < pair[1]:
                raise ValueError(f"{name} must be [lowest, highest], got {list(pair)}")
        self.window_hu = tuple(window_hu)
        self.air_hu = air_hu
        self.upper_percentile = upper_percentile
        self.modality = _known(modality)
        self.min_negative_share = min_negative_share
        self.min_air_share = min_air_share
        self.tissue_hu = tuple(tissue_hu)
        self.min_tissue_share = min_tissue_share
        self.fat_hu = tuple(fat_hu)
        self.min_fat_share = min_fat_share
        self.organ_hu = tuple(organ_hu)
        self.min_organ_share = min_organ_share
        self.lung_hu = lung_hu
        self.min_solid_share = min_solid_share
        self.crop_shares = tuple(crop_shares)
        self.crop_fat_hu = crop_fat_hu
        self.standard_tolerance = standard_tolerance
        self.offsets_hu = tuple(offsets_hu)
        self.void_hu = tuple(void_hu)
        self.lower_percentile = lower_percentile
        self.outlier_share = outlier_share
        self._said: set[tuple[str, str]] = set()

    def has_negatives(self, values: torch.Tensor) -> bool:
        """Whether values below 0 mean something; what equals the lowest value may be padding."""
        inside = values > values.min()
        return _share(inside & (values < 0), int(inside.sum())) >= self.min_negative_share

    def is_standardized(self, values: torch.Tensor) -> bool:
        """Whether the mean is 0 and the deviation a power of ten, of all voxels or of those inside a background."""
        for inside in (values, values[values != 0], values[values != values.min()]):
            if inside.numel() == 0:
                continue
            deviation, mean = (float(x) for x in torch.std_mean(inside, correction=0))
            if deviation > 0 and abs(mean) <= self.standard_tolerance * deviation:
                if abs(deviation / 10 ** round(math.log10(deviation)) - 1) <= self.standard_tolerance:
                    return True
        return False

    def is_ct(self, values: torch.Tensor) -> bool:
        """Whether voxels look like CT in Hounsfield units."""
        if not self.has_negatives(values) or self.is_standardized(values):
            return False
        body = values[values > values.min().clamp(min=self.air_hu)]
        tissue, soft, organ = (
            _share((body >= low) & (body <= high), body.numel())
            for low, high in (self.tissue_hu, self.fat_hu, self.organ_hu)
        )
        if _share(values <= self.air_hu, values.numel()) >= self.min_air_share:
            solid = tissue * body.numel() / max(int((values > self.lung_hu).sum()), 1)
            return (
                tissue >= self.min_tissue_share
                and soft >= self.min_fat_share
                and organ >= self.min_organ_share
                and solid >= self.min_solid_share
            )
        least_tissue, most_dark, least_organ, least_fat = self.crop_shares
        return (
            tissue >= least_tissue
            and _share(body < self.fat_hu[0], body.numel()) <= most_dark
            and organ >= least_organ
            and _share(body < self.crop_fat_hu, body.numel()) >= least_fat
        )

    def __call__(self, image: NdarrayOrTensor, stated: str = "auto") -> NdarrayOrTensor:
        """Clip a volume ``(C, H, W, D)``: same shape and type of container, float32.

        A ``MetaTensor`` gets in its meta data what it was taken for, ``modality``, ``"ct"`` or ``"mr"``, and why,
        ``modality_reason``.

        Args:
            image: the scan.
            stated: what its data set says, ``"ct"``, ``"mr"`` or ``"auto"`` for nothing; ``modality`` counts more.
        """
        values = torch.as_tensor(image).as_subclass(torch.Tensor).float()
        name = str(getattr(image, "meta", {}).get("filename_or_obj", "image"))
        stated = _known(stated)
        modality, reason, values = self._recognize(values, stated)
        if modality == "ct" and reason != UNSCALED:
            clipped = values.clamp(*self.window_hu)
        else:
            clipped = self._clip_odd(values)
        if self.modality == stated == "auto" and modality == "mr" and float(values.min()) <= self.air_hu:
            logger.warning(
                f"{name}: has values down to {float(values.min()):g}, but not the histogram of CT in HU, and is taken "
                "for MR; if it is CT, say so with --modality ct"
            )
        else:
            line = f"{os.path.basename(name)}: taken for {modality.upper()}, {reason}"
            if (name, line) not in self._said:  # a support is read more than once in a run
                logger.info(line)
                self._said.add((name, line))
        out = convert_to_dst_type(clipped, image, dtype=torch.float32)[0]
        if isinstance(out, MetaTensor):
            out.meta = {**out.meta, MODALITY: modality, MODALITY_REASON: reason}
        return out

    def _recognize(self, values: torch.Tensor, stated: str) -> tuple[str, str, torch.Tensor]:
        """What a scan is taken for, why, and its values, those of CT in HU if they are."""
        said = "set by the option" if self.modality != "auto" else "said by dataset.json"
        known = self.modality if self.modality != "auto" else stated
        if known == "mr":
            return known, said, values
        if not self._has_air(values):
            offset = self._offset(values)
            shifted = values - offset
            if self.is_ct(shifted) or (known == "ct" and self._is_tissue(shifted)):
                return "ct", f"the histogram is that of HU + {offset:g}, which is taken off", shifted
        if known == "ct":
            return known, said if self.modality == known or self.has_negatives(values) else UNSCALED, values
        if self.is_ct(values):
            return "ct", "the histogram is that of Hounsfield units", values
        return "mr", "the histogram is not that of Hounsfield units", values

    def _has_air(self, values: torch.Tensor) -> bool:
        """Whether a share of the voxels is air in Hounsfield units; one value among them may be padding."""
        dark = values[values <= self.air_hu]
        return dark.numel() > 0 and _share(dark != dark.median(), values.numel()) >= self.min_air_share

    def _is_tissue(self, values: torch.Tensor) -> bool:
        """Whether nearly all voxels are fat and soft tissue or at an end of the window, padding aside."""
        inside = values[values > values.min()]
        low, high = min(self.tissue_hu[0], self.window_hu[0]), max(self.tissue_hu[1], self.window_hu[1])
        return _share((inside >= low) & (inside <= high), inside.numel()) >= self.crop_shares[0]

    def _offset(self, values: torch.Tensor) -> float:
        """The first offset that leaves nothing darker than CT can be; the first of all where none does."""
        low, high = self.void_hu
        for offset in self.offsets_hu:
            void = (values > low + offset) & (values < high + offset)
            if _share(void, values.numel()) < self.min_negative_share:
                return offset
        return self.offsets_hu[0]

    def _clip_odd(self, values: torch.Tensor) -> torch.Tensor:
        """A scan without its brightest and its odd dark voxels; one that was shifted below 0 is shifted back."""
        flat = values.flatten()
        lowest, highest = (
            flat.kthvalue(max(1, round(flat.numel() * percentile / 100))).values
            for percentile in (self.lower_percentile, self.upper_percentile)
        )
        clipped = values.clamp(max=highest)
        if not self.has_negatives(values):
            return clipped.clamp(min=0) if bool(highest > 0) else clipped
        if bool(values.min() < lowest - self.outlier_share * (highest - lowest)):
            clipped = clipped.clamp(min=lowest)
        return clipped - clipped.min()


def _known(modality: str) -> str:
    """A modality in lower case, if it is one."""
    if str(modality).lower() not in MODALITIES:
        raise ValueError(f"modality must be one of {list(MODALITIES)}, got {modality!r}")
    return str(modality).lower()


def _share(mask: torch.Tensor, count: int) -> float:
    """Share of what is true, of a number of voxels."""
    return float(mask.sum()) / max(count, 1)


class ScanIntensityd(MapTransform):
    """Dictionary version of :class:`ScanIntensity`.

    Args:
        keys: keys of the scans.
        dataset_dir: a data set, whose ``dataset.json`` may say what its scans are, see :func:`dataset_modality`; it
            says nothing about scans from elsewhere.
        allow_missing_keys: skip keys that are absent.
        **arguments: see :class:`ScanIntensity`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        dataset_dir: str | os.PathLike | None = None,
        allow_missing_keys: bool = False,
        **arguments: object,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clip = ScanIntensity(**arguments)  # type: ignore[arg-type]
        self.stated = "auto" if dataset_dir is None else dataset_modality(dataset_dir)
        self._folder = None if dataset_dir is None else Path(dataset_dir).resolve()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Clip each scan."""
        out = dict(data)
        for key in self.key_iterator(out):
            file = getattr(out[key], "meta", {}).get("filename_or_obj")
            own = file is not None and self._folder in Path(str(file)).resolve().parents
            out[key] = self.clip(out[key], self.stated if own else "auto")
        return out
