"""Superpixels: the oversegmentation whose pieces serve as pseudo-labels."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, optional_import

felzenszwalb, _ = optional_import("skimage.segmentation", name="felzenszwalb")
slic, _ = optional_import("skimage.segmentation", name="slic")
relabel_sequential, _ = optional_import("skimage.segmentation", name="relabel_sequential")
label_components, _ = optional_import("skimage.measure", name="label")

METHODS: dict[str, Callable[..., np.ndarray]] = {
    "felzenszwalb": felzenszwalb,
    "slic": partial(slic, channel_axis=None, start_label=1),
}


class Superpixels(Transform):
    """Superpixel map of every axial slice, inside a body mask.

    Superpixels that the mask cuts to fewer than ``min_piece`` pixels vanish, and what it cuts apart counts as
    separate pieces. Deterministic.

    Args:
        method: ``"felzenszwalb"`` (the paper), ``"slic"``, or a function of one's own that is called with a slice
            ``(H, W)``, float32, with ``mask=`` the body ``(H, W)``, bool, if it takes a mask, and with the parameters;
            it gives whole numbers ``(H, W)``, one for each superpixel.
        parameters: passed on to the method; a list of sets gives one level of superpixels each. The
            paper's for Felzenszwalb are ``scale=1, sigma=1, min_size=400`` for 256 x 256 slices of CT and MR
            (variants: 100 with ``sigma=0.8``, 1600); a typical choice for SLIC is ``n_segments=100,
            compactness=0.1``.
        min_piece: smallest area in pixels of a piece that stays in the map.
        num_workers: threads over slices, shared by all scans that are prepared at a time (scikit-image releases the
            interpreter lock while it segments).

    Raises:
        ValueError: for an unknown method, a parameter that it does not take, an image and mask of different shape, or
            a method whose result is no map of whole numbers of the slice's shape.

    Reference: Felzenszwalb and Huttenlocher, IJCV 59(2), 2004, https://doi.org/10.1023/B:VISI.0000022288.19776.77;
    Achanta et al., IEEE TPAMI 34(11), 2012, https://doi.org/10.1109/TPAMI.2012.120.
    """

    def __init__(
        self,
        method: str | Callable[..., np.ndarray] = "felzenszwalb",
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        min_piece: int = 64,
        num_workers: int = 1,
    ) -> None:
        if not callable(method) and method not in METHODS:
            raise ValueError(f"superpixel method must be one of {', '.join(METHODS)} or a function, got {method!r}")
        self.method = method
        self.function = method if callable(method) else METHODS[method]
        levels = [parameters or {}] if parameters is None or isinstance(parameters, Mapping) else parameters
        self.levels = [dict(level) for level in levels]
        taken = inspect.signature(self.function).parameters
        self._takes_mask = "mask" in taken
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            for name in (name for level in self.levels for name in level if name not in taken):
                raise ValueError(f"superpixel method {method!r} takes no {name!r}; it takes {', '.join(taken)}")
        self.min_piece = min_piece
        self._num_workers = num_workers  # not public: it decides about the time alone, see describe

    def __call__(self, image: NdarrayOrTensor, mask: NdarrayOrTensor | None = None) -> NdarrayOrTensor:
        """Compute the maps of ``(1, H, W, D)`` or ``(1, H, W)``: ``(L, …)``, int16, 0 outside, 1.. in each slice.

        Args:
            image: one channel, any intensity scale.
            mask: body mask of the same shape; ``None`` for the whole image.
        """
        values = np.asarray(torch.as_tensor(image).cpu(), dtype=np.float32)
        inside = np.ones(values.shape, bool) if mask is None else np.asarray(torch.as_tensor(mask).cpu()) > 0
        if inside.shape != values.shape:
            raise ValueError(f"mask of shape {inside.shape} does not fit the image of shape {values.shape}")
        volume = values[0] if values.ndim == 4 else values[0, ..., None]
        body = inside[0] if inside.ndim == 4 else inside[0, ..., None]
        jobs = [(volume[..., z], body[..., z], level) for level in self.levels for z in range(volume.shape[-1])]
        slices = np.stack(list(_pool(self._num_workers, os.getpid()).map(self._segment, *zip(*jobs))))
        maps = slices.reshape(len(self.levels), volume.shape[-1], *volume.shape[:2]).transpose(0, 2, 3, 1)
        return convert_to_dst_type(maps if values.ndim == 4 else maps[..., 0], image, dtype=torch.int16)[0]

    def _segment(self, image: np.ndarray, mask: np.ndarray, level: Mapping[str, Any]) -> np.ndarray:
        if not mask.any():
            return np.zeros(image.shape, np.int16)
        masked = {"mask": mask} if self._takes_mask else {}
        segments = np.asarray(self.function(np.ascontiguousarray(image), **masked, **level))
        if segments.shape != image.shape or segments.dtype.kind not in "iu":
            raise ValueError(
                f"superpixel method {self.method!r} must give whole numbers of shape {image.shape}, got "
                f"{segments.dtype} of {segments.shape}"
            )
        segments = segments.astype(np.int64)
        pieces = label_components((segments - segments.min() + 1) * mask, background=0, connectivity=1)
        areas = np.bincount(pieces.ravel())
        pieces[areas[pieces] < self.min_piece] = 0
        return relabel_sequential(pieces)[0].astype(np.int16)


@cache
def _pool(num_workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a process that forked do not come along."""
    return ThreadPoolExecutor(num_workers)


class Superpixelsd(MapTransform):
    """Dictionary version of :class:`Superpixels`.

    Args:
        keys: image keys.
        mask_key: key of the body mask; ``None`` for the whole image.
        superpixels_key: where the map goes; with several keys, a suffix of theirs.
        method, parameters, min_piece, num_workers: see :class:`Superpixels`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        mask_key: str | None = "body",
        superpixels_key: str = "superpixels",
        method: str | Callable[..., np.ndarray] = "felzenszwalb",
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        min_piece: int = 64,
        num_workers: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.superpixels_key = superpixels_key
        self.converter = Superpixels(method, parameters, min_piece, num_workers)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the superpixel map of each image."""
        out = dict(data)
        for key in self.key_iterator(out):
            name = self.superpixels_key if len(self.keys) == 1 else f"{key}_{self.superpixels_key}"
            out[name] = self.converter(out[key], out[self.mask_key] if self.mask_key else None)
        return out
