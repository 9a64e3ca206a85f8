"""What somebody drew on slices of a scan stays in its label map as it was drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, MapTransform, Transform
from monai.utils import convert_to_dst_type

from ..data.reader import NiftiReader
from ..data.support import SLICES, VALUES
from ..keys import IMAGE, LABEL, NEXT_SLICE
from .label_grid import MatchLabel
from .spatial import slice_axis


class KeepDrawnSlices(Transform):
    """Put the slices that show a label in a drawn label map into a predicted one, voxel by voxel.

    Labels that the prediction does not look for, by ``label_values`` in its meta data, count as not drawn. What is
    drawn nowhere, since another scan alone shows it, stays as it was predicted where nothing was drawn.

    ``next_slice`` in the meta data, the position in mm of the slice that is the least sure, becomes its number, from 0
    along the axis of the slices.
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
        predicted = label_map.as_subclass(torch.Tensor)
        drawn_somewhere = torch.isin(predicted, given.unique().to(predicted))
        replaced = shown.reshape(shape) & ((given > 0) | drawn_somewhere)
        kept = convert_to_dst_type(torch.where(replaced, given.to(predicted.dtype), predicted), label_map)[0]
        if NEXT_SLICE in kept.meta:
            position = np.append(np.asarray(kept.meta[NEXT_SLICE], dtype=float).ravel(), 1.0)
            voxel = np.linalg.solve(np.asarray(label_map.affine, dtype=float), position)
            kept.meta[NEXT_SLICE] = int(np.clip(np.rint(voxel[axis - 1]), 0, label_map.shape[axis] - 1))
        return kept


class KeepDrawnSlicesd(MapTransform):
    """Dictionary version of :class:`KeepDrawnSlices`: for label maps of scans that are their own support.

    What was drawn is the label of a support entry with ``"slices": "labelled"`` whose image is the scan itself. The
    entries are in the meta data, where :class:`SelectSupportd` leaves them.

    Args:
        keys: keys of label maps on the grid of their files, with the file's name in the meta data.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.keep = KeepDrawnSlices()
        self.match = MatchLabel()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep what was drawn."""
        out = dict(data)
        for key in self.key_iterator(out):
            support = np.asarray(out[key].meta.get("support", "[]")).ravel()[0]  # collating may have made a list of it
            scan = os.path.realpath(str(out[key].meta.get("filename_or_obj", "")))
            for entry in json.loads(str(support)):
                label_map: MetaTensor = out[key]
                if entry.get(SLICES) == "labelled" and os.path.realpath(entry[IMAGE]) == scan:
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
