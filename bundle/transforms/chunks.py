"""The one place where a query's ground truth reaches its segmentation: the published extent and chunk rule."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..data.protocol import get_protocol, query_chunks
from ..keys import IMAGE, TRUTH
from .spatial import OrientSlices


class QueryChunksd(MapTransform):
    """Write each label's chunk of each slice ``(n, D)`` into the query's meta data, if the protocol prescribes it.

    Under the protocol ``volume`` nothing but the shape is looked at and nothing written.

    Args:
        protocol: name of the protocol.
        labels: label values, in the order of the rows.
        image_key: key of the query in the network's frame.
        truth_key: key of its label map as stored.

    Raises:
        ValueError: without labels, or when the label map of a query has another shape than its image.
    """

    def __init__(self, protocol: str, labels: Sequence[int], image_key: str = IMAGE, truth_key: str = TRUTH) -> None:
        super().__init__([image_key, truth_key])
        self.num_chunks = get_protocol(protocol).num_chunks
        if not labels:
            raise ValueError("no labels to evaluate; name them in dataset.json, or set labels")
        self.labels = list(labels)
        self.orient = OrientSlices()

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Add ``chunks`` and ``num_chunks`` to the query's meta data."""
        out = dict(data)
        image, truth = (out[key] for key in self.keys)
        expected = tuple(int(n) for n in np.asarray(image.meta["spatial_shape"]).ravel())
        if tuple(truth.shape[1:]) != expected:
            raise ValueError(
                f"{truth.meta.get('filename_or_obj', 'truth')}: label of shape {tuple(truth.shape[1:])} does not fit "
                f"its image of shape {expected}; resample the label to its image"
            )
        if self.num_chunks > 0:
            truth = self.orient(truth)
            shown = [(truth[0] == value).flatten(0, 1).any(dim=0).cpu().numpy() for value in self.labels]
            chunks = np.stack([query_chunks(s, self.num_chunks) for s in shown])
            first = round(float((torch.linalg.inv(truth.affine) @ image.affine.to(truth.affine))[2, 3]))
            image = image.clone()
            image.meta["chunks"] = chunks[:, first : first + image.shape[-1]]  # the frame may have fewer slices
            image.meta["num_chunks"] = self.num_chunks
            out[self.keys[0]] = image
        return out
