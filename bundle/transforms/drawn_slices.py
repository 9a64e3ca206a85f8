"""What somebody drew on slices of a scan stays in its label map as it was drawn."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, MapTransform, Transform
from monai.utils import convert_to_dst_type

from ..data.reader import NiftiReader
from ..data.support import SLICES, VALUES, resolve_support
from ..keys import IMAGE, LABEL
from .label_grid import MatchLabel
from .spatial import slice_axis


class KeepDrawnSlices(Transform):
    """Put the slices that show a label in a drawn label map into a predicted one, voxel by voxel."""

    def __call__(self, label_map: MetaTensor, drawn: torch.Tensor) -> MetaTensor:
        """Put them in.

        Args:
            label_map: ``(1, X, Y, Z)``.
            drawn: whole numbers of the same shape, 0 where nothing was drawn.

        Raises:
            ValueError: for another shape.
        """
        if drawn.shape != label_map.shape:
            raise ValueError(f"expected a label of shape {tuple(label_map.shape)}, got {tuple(drawn.shape)}")
        axis = 1 + slice_axis(label_map.affine)
        given = drawn.as_subclass(torch.Tensor).to(label_map.device).round()
        shown = (given > 0).movedim(axis, 0).flatten(1).any(dim=1)
        shape = [-1 if index == axis else 1 for index in range(given.ndim)]
        kept = torch.where(shown.reshape(shape), given.to(label_map.dtype), label_map.as_subclass(torch.Tensor))
        return convert_to_dst_type(kept, label_map)[0]


class KeepDrawnSlicesd(MapTransform):
    """Dictionary version of :class:`KeepDrawnSlices`: for label maps of scans that are their own support.

    Args:
        keys: keys of label maps on the grid of their files, with the file's name in the meta data.
        support: support entries; those with ``"slices": "labelled"`` whose image is the scan itself were drawn.
        dataset_dir: folder to which their paths may be relative.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        support: Sequence[Mapping[str, Any]] = (),
        dataset_dir: str | os.PathLike | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.entries = [entry for entry in support if entry.get(SLICES) == "labelled"]
        self.dataset_dir = dataset_dir
        self.keep = KeepDrawnSlices()
        self.match = MatchLabel()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep what was drawn."""
        out = dict(data)
        for key in self.key_iterator(out):
            for entry in resolve_support(self.entries, self.dataset_dir) if self.entries else ():
                label_map: MetaTensor = out[key]
                if os.path.realpath(str(label_map.meta.get("filename_or_obj", ""))) == os.path.realpath(entry[IMAGE]):
                    read = LoadImage(reader=NiftiReader, image_only=True)(entry[LABEL])
                    out[key] = self.keep(label_map, self._wanted(label_map, entry, EnsureChannelFirst()(read)))
        return out

    def _wanted(self, label_map: MetaTensor, entry: Mapping[str, Any], label: MetaTensor) -> torch.Tensor:
        """The label on the image's voxels, with the values of the result alone."""
        placed = self.match(label, label_map).as_subclass(torch.Tensor)
        values = torch.as_tensor(label_map.meta["label_values"]).flatten().tolist()
        numbers = {int(old): int(new) for old, new in (entry.get(VALUES) or {value: value for value in values}).items()}
        wanted = torch.zeros_like(placed)
        for old, new in numbers.items():
            if new in values:
                wanted[placed == old] = new
        return wanted
