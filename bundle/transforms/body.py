"""The body in a scan: where superpixels may lie."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, optional_import
from scipy import ndimage

threshold_triangle, _ = optional_import("skimage.filters", name="threshold_triangle")


class BodyMask(Transform):
    """Mask of the body, slice by slice: above a threshold, largest connected component, holes filled.

    Args:
        threshold: intensity above which a voxel belongs to the body, in the units of the image (50 for CHAOS T2-SPIR,
            -300 HU for CT). ``None`` takes the triangle threshold of the smoothed volume, which suits MR with its
            dark air whatever the scale of the intensities. Of several thresholds, the first that lies above the
            darkest voxel counts: ``(-300, -124)`` serves CT in HU as well as CT that was clipped at -125 before.
        smoothing: standard deviation in pixels of the in-plane Gaussian that precedes the automatic threshold.
        opening: how many times the mask is opened with a 3x3 cross, which cuts off thin bridges to a table or coil.

    Reference: Ouyang et al., IEEE TMI 41(7), 2022, section III-B; Zack et al. 1977 for the triangle threshold.
    """

    def __init__(
        self, threshold: float | Sequence[float] | None = None, smoothing: float = 1.0, opening: int = 2
    ) -> None:
        self.threshold = threshold
        self.smoothing = smoothing
        self.opening = opening

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Compute the mask of a volume ``(1, H, W, D)`` or slice ``(1, H, W)``: same shape and type, uint8 0 or 1."""
        values = np.asarray(torch.as_tensor(image).cpu(), dtype=np.float32)
        volume = values if values.ndim == 4 else values[..., None]
        threshold = self.threshold
        if isinstance(threshold, Sequence):
            threshold = next((t for t in threshold if t >= volume.min()), threshold[-1])
        if threshold is None:
            smooth = ndimage.gaussian_filter(volume, (0, self.smoothing, self.smoothing, 0))
            threshold = threshold_triangle(smooth) if smooth.min() < smooth.max() else smooth.min()
        above = np.moveaxis(volume[0], -1, 0) > threshold  # (D, H, W)
        opened = open_slices(np.ascontiguousarray(above), self.opening)
        mask = np.moveaxis(np.stack([fill_largest(one) for one in opened]), 0, -1).astype(np.uint8)
        return convert_to_dst_type(mask.reshape(values.shape), image, dtype=torch.uint8)[0]


def open_slices(masks: np.ndarray, times: int) -> np.ndarray:
    """Erode boolean slices ``(D, H, W)`` so many times with a 3x3 cross, and dilate them as often; outside is empty.

    As :func:`scipy.ndimage.binary_opening` does it slice by slice, in a tenth of the time.
    """
    for combine in (np.logical_and, np.logical_or):
        for _ in range(times):
            padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
            vertical = combine(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
            horizontal = combine(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
            masks = combine(combine(masks, vertical), horizontal)
    return masks


def fill_largest(mask: np.ndarray) -> np.ndarray:
    """Largest connected part of a boolean slice ``(H, W)``, with its holes filled."""
    components, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    outside, _ = ndimage.label(np.pad(components != sizes.argmax(), 1, constant_values=True))
    return np.asarray((outside != outside[0, 0])[1:-1, 1:-1])


class BodyMaskd(MapTransform):
    """Dictionary version of :class:`BodyMask`.

    Args:
        keys: image keys.
        mask_key: where the mask goes; with several keys, the key is its prefix.
        threshold, smoothing, opening: see :class:`BodyMask`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        mask_key: str = "body",
        threshold: float | Sequence[float] | None = None,
        smoothing: float = 1.0,
        opening: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.converter = BodyMask(threshold, smoothing, opening)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the mask of each image."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[self.mask_key if len(self.keys) == 1 else f"{key}_{self.mask_key}"] = self.converter(out[key])
        return out
