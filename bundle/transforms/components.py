"""Small islands of a label are errors more often than anatomy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from scipy import ndimage


class LargeComponents(Transform):
    """Remove the components of each label that are small beside its largest one.

    Relative to the largest, so that a label of two organs, such as both kidneys, keeps both, whatever its name.

    Args:
        min_share: smallest volume of a component that stays, as a share of the label's largest component; 0 keeps
            everything, 1 the largest component alone.

    Raises:
        ValueError: for a share outside [0, 1].
    """

    def __init__(self, min_share: float = 0.3) -> None:
        if not 0 <= min_share <= 1:
            raise ValueError(f"min_share must be in [0, 1], got {min_share}")
        self.min_share = min_share

    def __call__(self, labels: NdarrayOrTensor) -> NdarrayOrTensor:
        """Clean label maps or masks ``(C, H, W, D)``, every channel and value by itself: same shape and type."""
        if self.min_share == 0:
            return labels
        values = torch.as_tensor(labels).as_subclass(torch.Tensor).cpu().numpy().copy()
        for channel in values:
            whole = channel if channel.dtype.kind in "iu" else channel.astype(np.int64)
            for value, box in enumerate(ndimage.find_objects(whole), 1):
                if box is None:
                    continue
                part = channel[box]
                components, count = ndimage.label(part == value)
                if count > 1:
                    sizes = np.bincount(components.ravel())
                    sizes[0] = 0
                    small = sizes < self.min_share * sizes.max()
                    small[0] = False
                    part[small[components]] = 0
        return convert_to_dst_type(values, labels)[0]


class LargeComponentsd(MapTransform):
    """Dictionary version of :class:`LargeComponents`.

    Args:
        keys: keys of the label maps or masks.
        min_share: see :class:`LargeComponents`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(self, keys: KeysCollection, min_share: float = 0.3, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clean = LargeComponents(min_share)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Clean each entry."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.clean(out[key])
        return out
