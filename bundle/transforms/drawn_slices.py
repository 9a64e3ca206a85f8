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
    """Put the slices that show a label in a drawn label map into a predicted one, voxel by voxel.

    Labels that the prediction does not look for, by ``label_values`` in its meta data, count as not drawn.
    """

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
        if "label_values" in label_map.meta:
            wanted = torch.as_tensor(label_map.meta["label_values"]).flatten().to(given)
            given = torch.where(torch.isin(given, wanted), given, 0)
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
                    placed = self.match(EnsureChannelFirst()(read), label_map).as_subclass(torch.Tensor)
                    out[key] = self.keep(label_map, _renumber(placed, entry.get(VALUES)))
        return out


def _renumber(label: torch.Tensor, numbers: Mapping[Any, Any] | None) -> torch.Tensor:
    """A label map with the values ``{value in the file: value in the result}``; as it is without them."""
    if numbers is None:
        return label
    found = torch.zeros_like(label)
    for old, new in numbers.items():
        found[label == int(old)] = int(new)
    return found
