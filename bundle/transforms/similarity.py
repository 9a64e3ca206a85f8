"""How similar the support is to each voxel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep

from ..keys import SIMILARITY
from .spatial import RestoreGeometry


class SimilarityMap(Transform):
    """Similarity of each voxel to the most similar place of the support, in [0, 1], on the grid of the scan's file.

    Takes what :class:`FewShotInferer` leaves in a prediction's meta data with ``keep_similarity``: one number a cell,
    interpolated bilinearly in the plane. Around the network's frame, where nothing was compared, it is 1.
    """

    def __init__(self) -> None:
        self.restore = RestoreGeometry()

    def __call__(self, scores: MetaTensor) -> MetaTensor:
        """Make the volume ``(1, X, Y, Z)``, float32.

        Args:
            scores: prediction ``(C, H, W, D)`` in the network's frame, with ``similarity`` ``(h, w, D)`` in its meta
                data, or ``(1, h, w, D)`` from a batch of one that was not taken apart.

        Raises:
            KeyError: without ``similarity``, or the geometry of the file, in the meta data.
            ValueError: if it has another number of slices than the prediction.
        """
        if SIMILARITY not in scores.meta:
            raise KeyError("SimilarityMap: the meta data lack similarity; set keep_similarity of FewShotInferer")
        cells = torch.as_tensor(scores.meta[SIMILARITY]).to(scores.device, torch.float32)
        if cells.ndim not in (3, 4) or cells.shape[:-3].numel() != 1 or cells.shape[-1] != scores.shape[-1]:
            raise ValueError(
                f"SimilarityMap: similarity of shape {tuple(cells.shape)} for a prediction of {tuple(scores.shape)}; "
                "run it before RestoreGeometry"
            )
        planes = (1 - cells.reshape(cells.shape[-3:])).movedim(-1, 0)[:, None]  # what is padded with 0 is similar
        planes = F.interpolate(planes, size=tuple(scores.shape[1:3]), mode="bilinear", align_corners=False)
        meta = {key: value for key, value in scores.meta.items() if key != SIMILARITY}
        out = self.restore(MetaTensor(planes.movedim(0, -1), meta=meta))
        return MetaTensor(1 - out.as_subclass(torch.Tensor), meta=dict(out.meta))


class SimilarityMapd(MapTransform):
    """Dictionary version of :class:`SimilarityMap`; gives whole percent, uint8, as files keep it.

    Args:
        keys: keys of the predictions.
        names: keys of the results, one or one for each of ``keys``.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self, keys: KeysCollection = "pred", names: KeysCollection = SIMILARITY, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = ensure_tuple_rep(names, len(self.keys))
        self.measure = SimilarityMap()

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Add the map of each prediction."""
        out = dict(data)
        for key, name in self.key_iterator(out, self.names):
            found = self.measure(out[key])
            percent = (100 * found.as_subclass(torch.Tensor)).round().to(torch.uint8)
            out[name] = MetaTensor(percent, meta=dict(found.meta))
        return out
