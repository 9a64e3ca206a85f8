"""Recipes: what is done to the scans of each archive, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LabelClass:
    """One structure of an archive; its value in the result is its place in the recipe's list, from 1.

    Attributes:
        name: what it is called in ``dataset.json``.
        low: smallest value that stands for it in the archive.
        high: largest such value; ``None`` for ``low`` alone.
    """

    name: str
    low: int
    high: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What is done to a scan. The steps run in the order of the attributes; ``None`` leaves a step out.

    Attributes:
        window: intensities are clipped to this range, in the image's own units (HU for CT).
        clip_percent: share in percent of the brightest voxels that are clipped to the darkest of them.
        trim_px: voxels cut off at each of the four in-plane sides.
        spacing_mm: target spacing, the slice axis last.
        spacing_factor: target spacing as a multiple of the scan's own, the slice axis last.
        size: rows and columns of the result, cropped or padded about the center.
        classes: the structures of the archive; empty keeps label values as they are.
        modality: ``"CT"`` or ``"MR"``; ``None`` is guessed from each scan.
        need_label: whether a scan without a label is left out.
    """

    window: tuple[float, float] | None = None
    clip_percent: float = 0.0
    trim_px: int = 0
    spacing_mm: tuple[float, float, float] | None = None
    spacing_factor: tuple[float, float, float] | None = None
    size: tuple[int, int] | None = None
    classes: tuple[LabelClass, ...] = ()
    modality: str | None = None
    need_label: bool = False

    def __post_init__(self) -> None:
        """Check every number, so that a wrong one is refused before the work starts."""
        if self.window is not None and not (_numbers(self.window, 2) and self.window[0] < self.window[1]):
            raise ValueError(f"window must be two rising numbers such as -125,275, got {self.window!r}")
        if not 0 <= self.clip_percent < 100:
            raise ValueError(f"clip_percent must be in [0, 100), got {self.clip_percent!r}")
        if not (isinstance(self.trim_px, int) and self.trim_px >= 0):
            raise ValueError(f"trim_px must be a whole number from 0, got {self.trim_px!r}")
        for name in ("spacing_mm", "spacing_factor"):
            value = getattr(self, name)
            if value is not None and not (_numbers(value, 3) and min(value) > 0):
                raise ValueError(f"{name} must be three positive numbers, the slice axis last, got {value!r}")
        if self.spacing_mm is not None and self.spacing_factor is not None:
            raise ValueError("give spacing_mm or spacing_factor, not both")
        if self.size is not None and not (_numbers(self.size, 2) and all(int(n) == n and n > 0 for n in self.size)):
            raise ValueError(f"size must be two positive whole numbers, got {self.size!r}")
        if self.modality not in (None, "CT", "MR"):
            raise ValueError(f"modality must be CT or MR, got {self.modality!r}")

    @property
    def label_names(self) -> dict[int, str]:
        """Names of the values of the result, without the background; empty if the recipe keeps values."""
        return {value: item.name for value, item in enumerate(self.classes, 1)}

    def map_labels(self, label: np.ndarray, name: str) -> np.ndarray:
        """Replace the archive's label values by those of the result.

        Raises:
            ValueError: for values that the archive does not use.
        """
        if not self.classes:
            return label
        out = np.zeros(label.shape, np.uint8)
        for value, item in enumerate(self.classes, 1):
            out[(label >= item.low) & (label <= (item.low if item.high is None else item.high))] = value
        unknown = np.unique(label[(out == 0) & (label != 0)])
        if unknown.size:
            known = ", ".join(f"{c.low}{'' if c.high is None else f'-{c.high}'} {c.name}" for c in self.classes)
            raise ValueError(f"{name}: unknown label values {unknown[:5].tolist()}; known are 0 background, {known}")
        return out


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == count
        and all(isinstance(v, int | float) and np.isfinite(v) for v in value)
    )


RECIPES: Mapping[str, Recipe] = {
    # The archive's own description gives the ranges: its PNG files show neighbors of 63, 126, 189 and 252 as well.
    "chaos": Recipe(
        clip_percent=0.5,
        spacing_mm=(1.25, 1.25, 7.7),
        size=(256, 256),
        classes=(
            LabelClass("liver", 55, 70),
            LabelClass("right kidney", 110, 135),
            LabelClass("left kidney", 175, 200),
            LabelClass("spleen", 240, 255),
        ),
        modality="MR",
        need_label=True,
    ),
    "sabs": Recipe(
        window=(-125.0, 275.0),
        trim_px=32,
        spacing_factor=(1.75, 1.75, 1.0),
        size=(256, 256),
        classes=tuple(
            LabelClass(name, value)
            for value, name in enumerate(
                (
                    "spleen",
                    "right kidney",
                    "left kidney",
                    "gallbladder",
                    "esophagus",
                    "liver",
                    "stomach",
                    "aorta",
                    "inferior vena cava",
                    "portal and splenic vein",
                    "pancreas",
                    "right adrenal gland",
                    "left adrenal gland",
                ),
                1,
            )
        ),
        modality="CT",
        need_label=True,
    ),
    "mscmr": Recipe(
        clip_percent=0.5,
        spacing_mm=(1.25, 1.25, 8.0),
        size=(256, 256),
        classes=(LabelClass("left ventricle", 500), LabelClass("myocardium", 200), LabelClass("right ventricle", 600)),
        modality="MR",
        need_label=True,
    ),
    "folder": Recipe(),
}


def make_recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe of an archive with some of its numbers replaced.

    Args:
        name: one of ``RECIPES``.
        overrides: attributes of :class:`Recipe`; ``None`` keeps the recipe's own value, ``False`` leaves a step out.

    Raises:
        ValueError: for an unknown name or a bad number.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {sorted(RECIPES)}, got {name!r}")
    changes: dict[str, Any] = {}
    empty = {field.name: field.default for field in fields(Recipe)}
    for key, value in overrides.items():
        if value is None:
            continue
        if value is False:
            changes[key] = False if key == "need_label" else empty[key]
        elif key == "size" and isinstance(value, int):
            changes[key] = (value, value)
        elif key == "modality":
            changes[key] = str(value).upper()
        else:
            changes[key] = tuple(value) if isinstance(value, list) else value
    if "spacing_mm" in changes and "spacing_factor" not in changes:
        changes["spacing_factor"] = None
    if "spacing_factor" in changes and "spacing_mm" not in changes:
        changes["spacing_mm"] = None
    return replace(RECIPES[name], **changes)
