"""The draw of a pseudo-label: one superpixel of a slice becomes the organ of an episode."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.transforms.transform import Randomizable
from monai.utils import convert_to_dst_type


def candidates(superpixels: np.ndarray, min_area_px: int) -> np.ndarray:
    """Identifiers of the superpixels of a map ``(H, W)`` that cover at least ``min_area_px`` pixels."""
    areas = np.bincount(superpixels.ravel().astype(np.int64))
    areas[0] = 0
    return np.flatnonzero(areas >= max(min_area_px, 1))


class RandPseudoLabel(Randomizable, Transform):
    """Superpixels drawn at random become the classes of an episode: one for the paper's one-way episodes, or more.

    Of the levels that have an eligible superpixel one is drawn, and of its superpixels ``num_draws``, each with equal
    probability and without repetition. No draw is empty; where a slice has fewer, the rest of the classes is absent.

    Args:
        num_draws: how many superpixels.
        min_area_px: smallest area of a superpixel that may be drawn, in pixels.

    Raises:
        ValueError: if no superpixel is large enough.

    Reference: Ouyang et al., IEEE TMI 41(7), 2022, section III-B.
    """

    def __init__(self, num_draws: int = 1, min_area_px: int = 64) -> None:
        self.num_draws = num_draws
        self.min_area_px = min_area_px
        self.level = 0
        self.chosen: np.ndarray = np.zeros(0, np.int64)

    def randomize(self, eligible: Sequence[np.ndarray]) -> None:
        """Draw a level and identifiers among each level's eligible ones."""
        self.level = int(self.R.choice([index for index, ids in enumerate(eligible) if len(ids) > 0]))
        ids = eligible[self.level]
        self.chosen = self.R.permutation(ids)[: self.num_draws]

    def __call__(self, superpixels: NdarrayOrTensor) -> NdarrayOrTensor:
        """Draw from maps ``(L, H, W)``, 0 being no superpixel: label map ``(1, H, W)``, uint8, values 1, 2, …"""
        values = np.asarray(torch.as_tensor(superpixels).cpu())
        eligible = [candidates(level, self.min_area_px) for level in values]
        if not any(len(ids) for ids in eligible):
            raise ValueError(f"no superpixel of at least {self.min_area_px} pixels in this slice; lower min_area_px")
        self.randomize(eligible)
        table = np.zeros(int(values[self.level].max()) + 1, np.uint8)
        table[self.chosen] = np.arange(1, len(self.chosen) + 1)
        return convert_to_dst_type(table[values[self.level]][None], superpixels, dtype=torch.uint8)[0]


class RandPseudoLabeld(RandomizableTransform, MapTransform):
    """Dictionary version of :class:`RandPseudoLabel`.

    Args:
        keys: key of the superpixel map.
        label_key: where the label map goes.
        num_draws, min_area_px: see :class:`RandPseudoLabel`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "superpixels",
        label_key: str = "pseudo_label",
        num_draws: int = 1,
        min_area_px: int = 64,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.label_key = label_key
        self.draw = RandPseudoLabel(num_draws, min_area_px)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandPseudoLabeld:
        """Seed the draw."""
        self.draw.set_random_state(seed, state)
        super().set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the drawn label map."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[self.label_key if len(self.keys) == 1 else f"{key}_{self.label_key}"] = self.draw(out[key])
        return out
