"""How sure each voxel of a label map is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep

from ..keys import LABEL_CONFIDENCE
from .spatial import RestoreGeometry


class ConfidenceMap(Transform):
    """Probability of the chosen class of each voxel, in [0, 1].

    Scores with the background as channel 0 compete: a softmax over the classes. Scores of each label against a
    background of 0 stand alone: a sigmoid, and the background is as sure as the label that comes closest to it.

    Args:
        temperature: divides the scores; higher is less sure. The default is the one whose expected calibration error
            (15 bins, competing scores, divided by their label's confidence discount, of 20 scans of CHAOS and 20 hearts
            of ACDC, whole and cut in halves) was low over the body and over the predicted organs alike; scores of
            another kind need their own.
        outside: confidence where all scores are 0, which is what :class:`RestoreGeometry` writes around the
            network's frame: background by rule, in [0, 1].
        restore: whether the scores are in the network's frame, see :class:`LabelMap`.

    Raises:
        ValueError: for a temperature that is not positive, or ``outside`` beyond [0, 1].
    """

    def __init__(self, temperature: float = 0.8, outside: float = 1.0, restore: bool = False) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0 <= outside <= 1:
            raise ValueError(f"outside must lie in [0, 1], got {outside}")
        self.temperature = temperature
        self.outside = outside
        self.restore = RestoreGeometry() if restore else None

    def __call__(self, scores: MetaTensor, label_map: torch.Tensor | None = None) -> MetaTensor:
        """Turn scores into confidence ``(1, H, W, D)``, float32.

        Args:
            scores: ``(1 + n, H, W, D)`` with the background as channel 0, or ``(n, H, W, D)`` relative to a background
                of 0; ``label_values`` in the meta data.
            label_map: ``(1, H, W, D)``, the values that were chosen in the end; ``None`` for the class that wins.

        Raises:
            KeyError: without ``label_values`` in the meta data.
            ValueError: if their number does not fit the channels, or the label map has another shape or value.
        """
        if "label_values" not in scores.meta:
            raise KeyError("ConfidenceMap: the meta data lack label_values, which FewShotInferer writes")
        values = [0, *(int(v) for v in np.asarray(scores.meta["label_values"]).ravel())]
        if len(values) not in (len(scores), len(scores) + 1):
            raise ValueError(f"ConfidenceMap: {len(scores)} channels for the label values {values}")
        labels = [] if label_map is None else [label_map.as_subclass(torch.Tensor)]
        if self.restore is not None:
            return self.restore.assemble(scores, torch.float32, partial(self._measure, values), *labels)
        found = self._measure(values, scores.as_subclass(torch.Tensor).float(), *labels)
        return MetaTensor(found, meta=dict(scores.meta))

    def _measure(self, values: list[int], plain: torch.Tensor, label_map: torch.Tensor | None = None) -> torch.Tensor:
        """Confidence ``(1, …)`` of scores ``(C, …)``."""
        compete = len(values) == len(plain)
        nowhere = ~plain.any(dim=0, keepdim=True)
        if compete:
            shares = torch.softmax(plain / self.temperature, dim=0)
        else:
            best = plain.max(dim=0, keepdim=True).values
            shares = torch.sigmoid(torch.cat([-best, plain]) / self.temperature)
        if label_map is None:
            padded = plain if compete else torch.cat([torch.zeros_like(plain[:1]), plain])
            chosen = padded.max(dim=0, keepdim=True).indices
        else:
            chosen = self._channels(label_map, values, plain.shape[1:])
        confidence = shares.gather(0, chosen)
        return torch.where(nowhere & (chosen == 0), torch.full_like(confidence, self.outside), confidence)

    @staticmethod
    def _channels(label_map: torch.Tensor, values: list[int], shape: torch.Size) -> torch.Tensor:
        """The channel of each voxel's value."""
        labels = label_map.as_subclass(torch.Tensor)
        if tuple(labels.shape) != (1, *shape):
            raise ValueError(f"ConfidenceMap: label map of shape {tuple(labels.shape)} for scores of {tuple(shape)}")
        chosen = torch.zeros(labels.shape, dtype=torch.int64, device=labels.device)
        for channel, value in enumerate(values[1:], 1):
            chosen[labels == value] = channel
        odd = labels[(chosen == 0) & (labels != 0)]
        if odd.numel():
            raise ValueError(f"ConfidenceMap: the label map shows {int(odd[0])}, the scores are of {values}")
        return chosen


def whole_percent(confidence: torch.Tensor) -> torch.Tensor:
    """Confidence as files keep it: whole percent of what lies in [0, 1]."""
    return (100 * confidence.as_subclass(torch.Tensor)).round()


class ConfidenceMapd(MapTransform):
    """Dictionary version of :class:`ConfidenceMap`; gives whole percent, uint8, as files keep it.

    Args:
        keys: keys of the scores.
        names: keys of the results, one or one for each of ``keys``; ``None`` to replace the scores.
        label_key: key of the label map that was chosen; ``None`` for the class that wins.
        temperature, outside, restore: see :class:`ConfidenceMap`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        names: KeysCollection | None = None,
        label_key: str | None = None,
        temperature: float = 0.8,
        outside: float = 1.0,
        restore: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = self.keys if names is None else ensure_tuple_rep(names, len(self.keys))
        self.label_key = label_key
        self.measure = ConfidenceMap(temperature, outside, restore)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Convert each entry."""
        out = dict(data)
        labels = None if self.label_key is None else data[self.label_key]
        for key, name in self.key_iterator(out, self.names):
            found = self.measure(out[key], labels)
            out[name] = MetaTensor(whole_percent(found).to(torch.uint8), meta=dict(found.meta))
        return out


class MeanConfidence(Transform):
    """Mean confidence in percent of each label over the voxels that it was given: the mean of the map that is written.

    Only these voxels are looked at, so that it takes little time and memory where no map is wanted.

    Args:
        temperature, restore: see :class:`ConfidenceMap`.
    """

    def __init__(self, temperature: float = 0.8, restore: bool = False) -> None:
        self.measure = ConfidenceMap(temperature)
        self.restore = RestoreGeometry() if restore else None

    def __call__(self, scores: MetaTensor, label_map: MetaTensor) -> MetaTensor:
        """Add ``label_confidence`` ``(n,)`` to the meta data of a label map; NaN for a label without a voxel.

        Args:
            scores: ``(1 + n, H, W, D)`` or ``(n, H, W, D)``, see :class:`ConfidenceMap`.
            label_map: ``(1, H, W, D)``, the values that were chosen in the end.

        Raises:
            KeyError, ValueError: see :class:`ConfidenceMap`.
        """
        plain = scores.as_subclass(torch.Tensor)
        labels = label_map.as_subclass(torch.Tensor).to(plain.device)
        grid = plain.shape[1:] if self.restore is None else np.asarray(scores.meta["spatial_shape"]).ravel()
        if tuple(labels.shape[1:]) != tuple(int(n) for n in grid):
            shapes = f"label map of shape {tuple(labels.shape)} for scores of {tuple(plain.shape)}"
            raise ValueError(f"MeanConfidence: {shapes}")
        whole = [((slice(None),) * 4, plain)]
        values = np.asarray(scores.meta["label_values"]).ravel().astype(int).tolist()
        sums, counts = plain.new_zeros(len(values)), plain.new_zeros(len(values))
        for where, block in whole if self.restore is None else self.restore.blocks(scores):
            for row, value in enumerate(values):
                inside = labels[where][0] == value
                part = MetaTensor(block[:, inside][..., None, None], meta=dict(scores.meta))
                given = torch.full((1, *part.shape[1:]), value, device=labels.device)
                sums[row] += whole_percent(self.measure(part, given)).sum()
                counts[row] += inside.sum()
        found = MetaTensor(label_map.as_subclass(torch.Tensor), meta=dict(label_map.meta))
        found.meta[LABEL_CONFIDENCE] = (sums / counts).cpu()  # NaN of no voxel
        return found


class MeanConfidenced(MapTransform):
    """Dictionary version of :class:`MeanConfidence`.

    Args:
        keys: key of the scores.
        label_key: key of the label map, whose meta data get the result.
        temperature, restore: see :class:`ConfidenceMap`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        temperature: float = 0.8,
        restore: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.measure = MeanConfidence(temperature, restore)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Measure each entry."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[self.label_key] = self.measure(out[key], out[self.label_key])
        return out
