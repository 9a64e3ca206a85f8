"""The draw of a pseudo-label: one superpixel of a slice becomes the organ of an episode."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.transforms.transform import Randomizable
from monai.utils import convert_to_dst_type
from torch import Tensor

from ..keys import CANDIDATES, DRAWN, PSEUDO_LABEL, SUPERPIXELS


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

    def eligible(self, superpixels: NdarrayOrTensor) -> list[np.ndarray]:
        """Identifiers that may be drawn, of each level of maps ``(L, H, W)``."""
        return [candidates(level, self.min_area_px) for level in np.asarray(torch.as_tensor(superpixels).cpu())]

    def randomize(self, eligible: Sequence[np.ndarray]) -> None:
        """Draw a level and identifiers among each level's eligible ones."""
        if not any(len(ids) for ids in eligible):
            raise ValueError(f"no superpixel of at least {self.min_area_px} pixels in this slice; lower min_area_px")
        self.level = int(self.R.choice([index for index, ids in enumerate(eligible) if len(ids) > 0]))
        ids = eligible[self.level]
        self.chosen = self.R.permutation(ids)[: self.num_draws]

    def __call__(self, superpixels: NdarrayOrTensor) -> NdarrayOrTensor:
        """Draw from maps ``(L, H, W)``, 0 being no superpixel: label map ``(1, H, W)``, uint8, values 1, 2, …"""
        self.randomize(self.eligible(superpixels))
        level = np.asarray(torch.as_tensor(superpixels[self.level]).cpu())
        table = np.zeros(int(level.max()) + 1, np.uint8)
        table[self.chosen] = np.arange(1, len(self.chosen) + 1)
        return convert_to_dst_type(table[level][None], superpixels, dtype=torch.uint8)[0]


def drawn_label_maps(superpixels: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Label maps of a batch of drawn superpixels, on their device.

    Args:
        superpixels: integer maps ``(B, 1, H, W)``, 0 being no superpixel.
        chosen: identifiers ``(B, K)`` of the classes 1..K; 0 for an absent class.
        count: more than the largest identifier; as an argument, so that no device is waited for.

    Returns:
        ``(B, 1, H, W)``, uint8.
    """
    table = torch.zeros(len(chosen), count, dtype=torch.uint8, device=superpixels.device)
    ways = torch.arange(1, chosen.shape[1] + 1, dtype=torch.uint8, device=superpixels.device)
    table.scatter_(1, chosen.long(), ways.expand(len(chosen), -1))
    table[:, 0] = 0
    return table.gather(1, superpixels.flatten(1).long()).reshape(superpixels.shape)


class RandPseudoLabeld(RandomizableTransform, MapTransform):
    """Dictionary version of :class:`RandPseudoLabel`.

    Args:
        keys: key of the superpixel map.
        label_key: where the label map goes.
        num_draws, min_area_px: see :class:`RandPseudoLabel`.
        lazy: draw alone, and make no label map: adds ``drawn``, the level ``()`` and the identifiers ``(num_draws,)``
            of the classes 1, 2, …, 0 for an absent one. :func:`drawn_label_maps` makes the same label maps of a whole
            batch at once. Identifiers that may be drawn are taken from ``candidates``, one array a level, if there.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection = SUPERPIXELS,
        label_key: str = PSEUDO_LABEL,
        num_draws: int = 1,
        min_area_px: int = 64,
        lazy: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.label_key = label_key
        self.draw = RandPseudoLabel(num_draws, min_area_px)
        self.lazy = lazy

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandPseudoLabeld:
        """Seed the draw."""
        super().set_random_state(seed, state)
        self.draw.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the drawn label map, or what was drawn."""
        out = dict(data)
        for key in self.key_iterator(out):
            if self.lazy:
                self.draw.randomize(out.get(CANDIDATES) or self.draw.eligible(out[key]))
                chosen = np.zeros(self.draw.num_draws, np.int64)
                chosen[: len(self.draw.chosen)] = self.draw.chosen
                out[DRAWN] = {"level": torch.tensor(self.draw.level), "chosen": torch.from_numpy(chosen)}
            else:
                out[self.label_key if len(self.keys) == 1 else f"{key}_{self.label_key}"] = self.draw(out[key])
        return out
