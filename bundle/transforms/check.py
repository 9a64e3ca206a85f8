"""Checks of scans as they are read."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform

from ..checks import check_geometry, check_volume


class CheckVolumed(MapTransform):
    """Raise one clear line unless each entry is a finite, non-constant 3D volume of one channel with a sane geometry.

    Args:
        keys: keys of channel-first images.
        channels: number of channels that the network takes.
        allow_missing_keys: skip keys that are absent.

    Raises:
        ValueError: naming the file and the remedy.
    """

    def __init__(self, keys: KeysCollection, channels: int = 1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Return the entries as they are."""
        for key in self.key_iterator(dict(data)):
            name = str(getattr(data[key], "meta", {}).get("filename_or_obj", key))
            check_volume(data[key], name)
            if hasattr(data[key], "affine"):
                check_geometry(np.asarray(data[key].affine), name)
            if data[key].shape[0] != self.channels:
                raise ValueError(
                    f"{name}: expected {self.channels} channel, got {data[key].shape[0]}; split 4D series and color "
                    "images into single 3D volumes"
                )
        return dict(data)
