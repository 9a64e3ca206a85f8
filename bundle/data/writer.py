"""The file of a prediction: on the grid of its query, there as a whole or not at all."""

from __future__ import annotations

import os
from typing import Any

from monai.data import NibabelWriter

from ..atomic import replacing


class VolumeWriter(NibabelWriter):
    """Writes one-channel volumes as NIfTI: three axes even if the last has one slice, and each file in one step.

    MONAI's own writer drops trailing axes of length 1, which would change the shape of a one-slice scan.
    """

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, *args: Any, **kwargs: Any) -> None:
        """Take a volume ``(1, H, W, D)``, or ``(H, W, D)`` with ``channel_dim=None``."""
        self.data_obj = self.convert_to_channel_last(data_array, channel_dim, squeeze_end_dims=False)[..., 0]

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file in one step; nothing is logged, since the name on the way is not the file's."""
        with replacing(filename) as temporary:
            super().write(temporary, verbose=False, **kwargs)
