"""The draw of a pseudo-label: one superpixel of a slice becomes the organ of an episode."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.transforms.transform import Randomizable
from monai.utils import convert_to_dst_type


def candidates(superpixels: np.ndarray, min_area_px: int) -> np.ndarray:
    """Identifiers of the superpixels of a slice ``(1, H, W)`` that cover at least ``min_area_px`` pixels."""
    areas = np.bincount(superpixels.ravel().astype(np.int64))
    areas[0] = 0
    return np.flatnonzero(areas >= max(min_area_px, 1))


class RandPseudoLabel(Randomizable, Transform):
    """Binary masks of superpixels drawn at random, each with equal probability and none empty.

    Args:
        num_draws: how many masks; drawn without repetition while there are enough superpixels.
        min_area_px: smallest area of a superpixel that may be drawn, in pixels.

    Raises:
        ValueError: if no superpixel is large enough.

    Reference: Ouyang et al., IEEE TMI 41(7), 2022, section III-B.
    """

    def __init__(self, num_draws: int = 1, min_area_px: int = 64) -> None:
        self.num_draws = num_draws
        self.min_area_px = min_area_px
        self.chosen: np.ndarray = np.zeros(0, np.int64)

    def randomize(self, eligible: np.ndarray) -> None:
        """Draw the identifiers among the eligible ones."""
        self.chosen = self.R.choice(eligible, self.num_draws, replace=len(eligible) < self.num_draws)

    def __call__(self, superpixels: NdarrayOrTensor) -> NdarrayOrTensor:
        """Draw from a map ``(1, H, W)``, 0 being no superpixel: uint8 masks ``(num_draws, H, W)``, 0 or 1."""
        values = np.asarray(torch.as_tensor(superpixels).cpu())
        eligible = candidates(values, self.min_area_px)
        if len(eligible) == 0:
            raise ValueError(f"no superpixel of at least {self.min_area_px} pixels in this slice; lower min_area_px")
        self.randomize(eligible)
        return convert_to_dst_type(values == self.chosen[:, None, None], superpixels, dtype=torch.uint8)[0]


class RandPseudoLabeld(RandomizableTransform, MapTransform):
    """Dictionary version of :class:`RandPseudoLabel`.

    Args:
        keys: key of the superpixel map.
        label_key: where the masks go.
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
        """Add the drawn masks."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[self.label_key if len(self.keys) == 1 else f"{key}_{self.label_key}"] = self.draw(out[key])
        return out
