"""Intensities of any scan to a range in which its soft tissue shows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type


class ScanIntensity(Transform):
    """CT to a window, anything else clipped at its brightest voxels, so that one default fits both.

    A scan counts as CT in Hounsfield units if it holds values below ``air_hu``: air is -1000 HU, while MR and scans
    that were windowed before hold no such values.

    Args:
        window_hu: lowest and highest value of CT that stay apart, in HU.
        air_hu: below this value only CT reaches, in HU.
        upper_percentile: share of the voxels of other scans, in percent, that lie below the clipping value (99.5
            in the published preparation of MR).

    Raises:
        ValueError: for a window that is upside down.
    """

    def __init__(
        self, window_hu: Sequence[float] = (-125.0, 275.0), air_hu: float = -500.0, upper_percentile: float = 99.5
    ) -> None:
        if not window_hu[0] < window_hu[1]:
            raise ValueError(f"window_hu must be [lowest, highest], got {list(window_hu)}")
        self.window_hu = tuple(window_hu)
        self.air_hu = air_hu
        self.upper_percentile = upper_percentile

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Clip a volume ``(C, H, W, D)``: same shape and type of container, float32."""
        values = torch.as_tensor(image).as_subclass(torch.Tensor).float()
        if values.min() < self.air_hu:
            clipped = values.clamp(*self.window_hu)
        else:
            rank = max(1, round(values.numel() * self.upper_percentile / 100))
            clipped = values.clamp(max=values.flatten().kthvalue(rank).values)
        return convert_to_dst_type(clipped, image, dtype=torch.float32)[0]


class ScanIntensityd(MapTransform):
    """Dictionary version of :class:`ScanIntensity`.

    Args:
        keys: keys of the scans.
        window_hu, air_hu, upper_percentile: see :class:`ScanIntensity`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        window_hu: Sequence[float] = (-125.0, 275.0),
        air_hu: float = -500.0,
        upper_percentile: float = 99.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clip = ScanIntensity(window_hu, air_hu, upper_percentile)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Clip each scan."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.clip(out[key])
        return out
