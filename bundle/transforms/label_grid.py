"""Labels as tools save them, brought to the voxels of their image."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..checks import check_label_values
from ..data.grid import check_placement, paste
from ..data.reader import OTHER_AFFINE
from ..keys import IMAGE

logger = logging.getLogger(__name__)


class MatchLabel(Transform):
    """Bring a label map to the voxels of its image, as its header says.

    Labels come back from other tools with their axes in another order, cut to the extent of what is labelled, or as
    floats that miss whole numbers by a little; see :func:`check_placement` for what else is taken. Whatever a tool did,
    image and label have one grid from here on, so that all that follows is decided by the image alone. What was changed
    beyond the order of axes is said in the log.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, label: MetaTensor, image: MetaTensor) -> MetaTensor:
        """Place a label.

        Args:
            label: label map ``(1, X, Y, Z)`` as stored, any type.
            image: its image; only its meta data count: ``original_affine``, ``spatial_shape`` and ``other_affine``
                of its file.

        Returns:
            Whole numbers ``(1, X, Y, Z)``, float32, on the grid of the image's file.

        Raises:
            ValueError: naming the file: values that are no label map, another grid, or labels outside of the image.
        """
        names = [str(scan.meta.get("filename_or_obj", key)) for scan, key in ((label, "label"), (image, IMAGE))]
        shape = tuple(int(n) for n in np.asarray(image.meta["spatial_shape"]).ravel()[:3])
        grid = np.asarray(image.meta["original_affine"], dtype=float)
        array = label.as_subclass(torch.Tensor).cpu().numpy()
        if array.ndim == 5 and array.shape[-1] == 1:
            array = array[..., 0]
        if array.ndim != 4 or len(array) != 1:
            raise ValueError(
                f"{names[0]}: expected one 3D label map, got shape {array.shape[1:]}; save one value a voxel"
            )
        check_label_values(array, names[0])
        whole = np.rint(array[0])
        if (whole != array[0]).any():
            self._say(logging.INFO, f"{names[0]}: label values are rounded to whole numbers")
        affine = np.asarray(label.meta.get("original_affine", label.affine), dtype=float)
        placement = check_placement(whole.shape, affine, shape, grid, names[0], names[1], image.meta.get(OTHER_AFFINE))
        placed = paste(whole, placement, shape)
        if placed is None:
            raise ValueError(f"{names[0]}: labels lie outside of the image {names[1]}; repair the header")
        if placement.note:
            self._say(logging.WARNING, f"{names[0]}: {placement.note}")
        lost = [] if placement.sampling is None else np.setdiff1d(np.unique(whole), np.unique(placed)).tolist()
        if lost:
            line = f"{names[0]}: the label values {lost} fall between the voxels of {names[1]}; resample it"
            self._say(logging.WARNING, line)
        meta = {**label.meta, "original_affine": grid, "spatial_shape": np.array(shape)}
        meta.pop("affine", None)
        return MetaTensor(
            torch.from_numpy(np.ascontiguousarray(placed[None], dtype=np.float32)),
            affine=torch.as_tensor(grid, dtype=torch.float64),
            meta=meta,
        )

    def _say(self, level: int, line: str) -> None:
        """Say a line once: a support is read more than once in a run."""
        if line not in self._said:
            logger.log(level, line)
            self._said.add(line)


class MatchLabeld(MapTransform):
    """Dictionary version of :class:`MatchLabel`.

    Args:
        keys: keys of the label maps.
        image_key: key of their image.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(self, keys: KeysCollection, image_key: str = IMAGE, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.match = MatchLabel()

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Place each label map."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.match(out[key], out[self.image_key])
        return out
