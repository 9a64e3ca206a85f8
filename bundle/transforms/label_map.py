"""From scores to a label map with the support's own values, and to one mask a label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from .spatial import RestoreGeometry


class LabelMap(Transform):
    """The winning class of each voxel, as the label value that the support gives it.

    The values come from ``label_values`` in the prediction's meta data, which :class:`FewShotInferer` writes.

    Args:
        restore: whether the scores are in the network's frame, and the label map is wanted on the grid of the scan's
            file: :class:`RestoreGeometry`, part by part, so that memory does not depend on the number of labels.
    """

    def __init__(self, restore: bool = False) -> None:
        self.restore = RestoreGeometry() if restore else None

    def __call__(self, scores: MetaTensor) -> MetaTensor:
        """Turn scores into a label map ``(1, H, W, D)``, uint8, int16 or int32 as the values need.

        Args:
            scores: ``(1 + n, H, W, D)`` with the background as channel 0, or ``(n, H, W, D)`` relative to a background
                of 0. Ties go to the background.

        Raises:
            KeyError: without ``label_values`` in the meta data.
            ValueError: if their number does not fit the channels.
        """
        if "label_values" not in scores.meta:
            raise KeyError("LabelMap: the meta data lack label_values, which FewShotInferer writes")
        values = [0, *(int(v) for v in np.asarray(scores.meta["label_values"]).ravel())]
        if len(scores) not in (len(values), len(values) - 1):
            raise ValueError(f"LabelMap: {len(scores)} channels for the label values {values}")
        dtype = next(d for d in (torch.uint8, torch.int16, torch.int32) if max(values) <= torch.iinfo(d).max)
        table = torch.tensor(values, dtype=dtype, device=scores.device)

        def winners(plain: torch.Tensor) -> torch.Tensor:
            if len(values) == len(plain) + 1:
                plain = torch.cat([torch.zeros_like(plain[:1]), plain])
            return table[plain.max(dim=0, keepdim=True).indices]  # on a CPU much faster than argmax

        if self.restore is None:
            return MetaTensor(winners(scores.as_subclass(torch.Tensor)), meta=dict(scores.meta))
        return self.restore.assemble(scores, dtype, winners)


class LabelMapd(MapTransform):
    """Dictionary version of :class:`LabelMap`.

    Args:
        keys: keys of the scores.
        restore: see :class:`LabelMap`.
        scores_key: key under which the scores are kept, without a copy; ``None`` leaves them out.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        restore: bool = False,
        scores_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scores_key = scores_key
        self.convert = LabelMap(restore)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Convert each prediction."""
        out = dict(data)
        for key in self.key_iterator(out):
            if self.scores_key is not None:
                out[self.scores_key] = out[key]
            out[key] = self.convert(out[key])
        return out


class ClassMasksd(MapTransform):
    """Scores to one mask a label, each ``(n, H, W, D)``, uint8.

    Scores with a background channel ``(1 + n, …)`` compete: each voxel belongs to one label at most. Scores without
    one ``(n, …)`` are each label's own against its background, and masks may overlap.

    Args:
        keys: keys of the scores, with ``label_values`` in their meta data.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(self, keys: KeysCollection = "pred", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Convert each entry."""
        out = dict(data)
        for key in self.key_iterator(out):
            scores, count = out[key], np.asarray(out[key].meta["label_values"]).size
            plain = scores.as_subclass(torch.Tensor)
            if plain.shape[0] == count:
                masks = plain > 0
            else:
                masks = plain.argmax(dim=0, keepdim=True) == torch.arange(1, count + 1).view(-1, 1, 1, 1).to(
                    plain.device
                )
            out[key] = MetaTensor(masks.to(torch.uint8), meta=dict(scores.meta))
        return out


class LabelMasksd(MapTransform):
    """A label map ``(1, H, W, D)`` to one mask a label ``(n, H, W, D)``, uint8.

    Args:
        keys: keys of the label maps.
        labels: the values, in the order of the masks.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(self, keys: KeysCollection, labels: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = list(labels)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Convert each entry."""
        out = dict(data)
        for key in self.key_iterator(out):
            plain = out[key].as_subclass(torch.Tensor)
            values = torch.tensor(self.labels, device=plain.device).view(-1, 1, 1, 1)
            out[key] = MetaTensor((plain == values).to(torch.uint8), meta=dict(out[key].meta))
        return out
