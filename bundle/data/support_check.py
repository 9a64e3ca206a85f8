"""What a labelled scan shows, and what looks wrong with it, before anything is segmented by it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from nibabel import aff2axcodes
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..keys import IMAGE, LABEL, MODALITY
from ..quality import format_ml
from .datalist import case_name
from .support import SLICES, VALUES, SupportScan

LOG = logging.getLogger(__name__)
SIDES = {"left": "left", "lt": "left", "l": "left", "right": "right", "rt": "right", "r": "right"}


@dataclass(frozen=True)
class LabelReport:
    """One structure of a support.

    Attributes:
        value: its label.
        name: what messages call it.
        volume_ml: its volume.
        slices: how many slices show it.
        extent_mm: sides of its box, along the axes of the volume.
        center_mm: where its center lies to the right of the world's origin.
        middle_mm: where the body's middle lies on the slices that show it.
        width_mm: width of the body there.
        outside_share: share of its voxels that are outside of the body and dark.
        gap_mm: distance of the boxes around its two largest parts; 0 if it is of one part.
    """

    value: int
    name: str
    volume_ml: float
    slices: int
    extent_mm: tuple[float, float, float]
    center_mm: float
    middle_mm: float
    width_mm: float
    outside_share: float
    gap_mm: float

    @property
    def title(self) -> str:
        """Name and value; the value alone is part of the name of what has none."""
        return self.name if self.name.endswith(f" {self.value}") else f"{self.name} ({self.value})"

    def describe(self) -> str:
        """A few words."""
        box = " x ".join(f"{side:.0f}" for side in self.extent_mm)
        return f"{self.title}: {format_ml(self.volume_ml)} mL, {self.slices} slice{'s' * (self.slices > 1)}, {box} mm"


class SupportCheck:
    """Describes a support scan in one line of the log, and warns of what looks wrong.

    Warned of are a label outside of the body, one of two distant parts where its siblings are of one, left and right
    on the wrong side by their names, and an image whose values are few and whole, as those of a label map are.

    Args:
        preprocessing: the transforms of a support; those before the frame is cut out are used.
        names: names of the label values.
        max_outside_share: a label with a larger share of its voxels outside of the body is warned of; those do not
            count that are brighter than air, since a scan may show no outline of a body.
        max_air: how bright air is, as a share of the range from the image's 1st to its 99th percentile.
        max_gap_mm: a label whose two largest parts are farther apart is.
        min_part_share: what is smaller beside the largest part of a label does not count as a part.
        side_margin: a structure on the wrong side is warned of if it lies beyond the middle by this share of the body's
            width; both of a pair, where their order is wrong by as much.
        unsided: words of names whose left and right are not those of the body.
        max_values: an image with at most so many different values, whole numbers all, may be a label map.
        flat_share: it is taken for one if this share of its neighboring voxels, zeros left out, have the same value.
        max_listed: so many structures are described.
        max_warned: so many lines about structures are said; none if the image may be a label map.
        say: receives the description.
        warn: receives each warning.
    """

    def __init__(
        self,
        preprocessing: Compose,
        names: Mapping[int, str] | None = None,
        max_outside_share: float = 0.5,
        max_air: float = 0.1,
        max_gap_mm: float = 30.0,
        min_part_share: float = 0.3,
        side_margin: float = 0.1,
        unsided: Sequence[str] = ("ventricle", "ventricular", "atrium", "atrial", "auricle", "heart", "lobe"),
        max_values: int = 256,
        flat_share: float = 0.6,
        max_listed: int = 12,
        max_warned: int = 5,
        say: Callable[[str], None] = LOG.info,
        warn: Callable[[str], None] = LOG.warning,
    ) -> None:
        from ..transforms import BodyMaskd, ScanIntensityd, SliceFramed  # which need this package

        steps = list(preprocessing.flatten().transforms)
        kinds = [type(step) for step in steps]
        frame = kinds.index(SliceFramed) if SliceFramed in kinds else len(steps)
        cut = next((i for i, kind in enumerate(kinds) if kind in (ScanIntensityd, BodyMaskd)), frame)
        self.readers, self.finders = steps[:cut], steps[cut:frame]
        self.names = dict(names or {})
        self.max_outside_share = max_outside_share
        self.max_air = max_air
        self.max_gap_mm = max_gap_mm
        self.min_part_share = min_part_share
        self.side_margin = side_margin
        self.unsided = tuple(unsided)
        self.max_values = max_values
        self.flat_share = flat_share
        self.max_listed = max_listed
        self.max_warned = max_warned
        self.say = say
        self.warn = warn

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Describe one support entry, see :func:`load_support`, and warn of what looks wrong."""
        data: dict[Any, Any] = {IMAGE: entry[IMAGE], LABEL: entry[LABEL]}
        for step in self.readers:
            data = step(data)
        raw = np.asarray(data[IMAGE].as_subclass(torch.Tensor))
        for step in self.finders:
            data = step(data)
        image, label = data[IMAGE], np.asarray(data[LABEL].as_subclass(torch.Tensor))[0].round().astype(int)
        if entry.get(VALUES) is not None:
            renumbered = np.zeros_like(label)
            for old, new in entry[VALUES].items():
                renumbered[label == int(old)] = int(new)
            label = renumbered
        body = np.asarray(torch.as_tensor(data["body"]).cpu())[0] > 0 if "body" in data else np.ones(label.shape, bool)
        found = self.measure(image, label, body, entry.get(SLICES) or "auto")
        name = os.path.basename(os.fspath(entry[IMAGE]))
        about = [str(image.meta[MODALITY]).upper()] if image.meta.get(MODALITY) else []
        about.append("".join(aff2axcodes(np.asarray(image.meta.get("original_affine", image.affine)))))
        listed = [one.describe() for one in found[: self.max_listed]]
        listed += [f"{len(found) - len(listed)} more labels"] * (len(found) > len(listed))
        self.say(f"support {name}: {'; '.join([*listed, ', '.join(about)])}")
        warnings = self.image_warnings(raw) or self.label_warnings(found)
        more = len(warnings) - self.max_warned
        for warning in [*warnings[: self.max_warned], *[f"and {more} more of its labels"] * (more > 0)]:
            self.warn(f"support {name}: {warning}")

    def measure(self, image: MetaTensor, label: np.ndarray, body: np.ndarray, slices: str) -> list[LabelReport]:
        """Measure each structure of a label map ``(H, W, D)``, slices along the last axis, with the body's mask."""
        affine = np.asarray(image.affine, dtype=float)
        spacing = voxel_sizes(affine)
        scan = SupportScan(image, torch.from_numpy(label), float(spacing[2]), case_name("support"), slices=slices)
        whole = len(scan.annotated_slices) == label.shape[2]
        plain = np.asarray(image.as_subclass(torch.Tensor))[0]
        dark, bright = np.percentile(plain, (1, 99))
        air = ~body & (plain <= dark + self.max_air * (bright - dark))
        reports = []
        for value in scan.values:
            mask = label == value
            (box,) = ndimage.find_objects(mask.astype(np.uint8))
            shown = np.flatnonzero(mask.any(axis=(0, 1)))
            around = body[:, :, shown] if body[:, :, shown].any() else np.ones_like(body[:, :, shown])
            across = _to_the_right(affine, np.argwhere(around), shown)
            center = _to_the_right(affine, np.argwhere(mask)).mean()
            low, high = np.percentile(across, (1, 99))
            reports.append(
                LabelReport(
                    value,
                    self.names.get(value, f"label {value}"),
                    float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000),
                    len(shown),
                    tuple((part.stop - part.start) * size for part, size in zip(box, spacing)),
                    float(center),
                    float(low + high) / 2,
                    float(high - low),
                    float((mask & air).sum() / mask.sum()),
                    self._gap_mm(mask[box], spacing) if whole else 0.0,
                )
            )
        return reports

    def _gap_mm(self, mask: np.ndarray, spacing: np.ndarray) -> float:
        """Distance of the boxes around the two largest parts of a mask; 0 if the second one is small."""
        parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
        if count < 2:
            return 0.0
        sizes = np.bincount(parts.ravel())[1:]
        first, second = sizes.argsort()[::-1][:2]
        if sizes[second] < self.min_part_share * sizes[first]:
            return 0.0
        boxes = ndimage.find_objects(parts)
        gaps = [max(0, a.start - b.stop, b.start - a.stop) for a, b in zip(boxes[first], boxes[second])]
        return float(np.linalg.norm(gaps * spacing))

    def label_warnings(self, found: Sequence[LabelReport]) -> list[str]:
        """What looks wrong with the structures."""
        lines = [
            f"{one.title} lies outside of the body by {100 * one.outside_share:.0f} %; does the label "
            "belong to this image?"
            for one in found
            if one.outside_share > self.max_outside_share
        ]
        apart = [one for one in found if one.gap_mm > self.max_gap_mm]
        if 2 * len(apart) <= len(found):
            lines += [
                f"{one.title} is of two parts {one.gap_mm:.0f} mm apart, the other labels are not; is one "
                "of them another structure?"
                for one in apart
            ]
        return lines + self._side_warnings(found)

    def _side_warnings(self, found: Sequence[LabelReport]) -> list[str]:
        """What lies on the wrong side by its name: pairs by their order, others by the body's middle."""
        sides = {one.value: side_of(one.name, [other.name for other in found]) for one in found}
        sided = {value: side for value, side in sides.items() if side is not None}
        lines = []
        for one in found:
            if one.value not in sided:
                continue
            side, rest = sided[one.value]
            others = [o for o in found if sided.get(o.value, ("", ""))[1] == rest and sided[o.value][0] != side]
            if len(others) == 1:
                other = others[0]
                wrong = one.center_mm - other.center_mm if side == "left" else 0.0  # a pair is said once
                where = f"{one.title} lies to the right of {other.title}"
            elif rest & set(self.unsided):
                continue
            else:
                wrong = (one.center_mm - one.middle_mm) * (1 if side == "left" else -1)
                where = f"{one.title} lies in the {'right' if side == 'left' else 'left'} half of the body"
            if wrong > self.side_margin * one.width_mm:
                lines.append(f"{where}; names, values or the header's left and right are wrong")
        return lines

    def image_warnings(self, image: np.ndarray) -> list[str]:
        """What looks wrong with the intensities ``(1, H, W, D)`` of an image."""
        values = np.unique(image[0, ::2, ::2])
        if len(values) > self.max_values or (values % 1 != 0).any():
            return []
        ahead, behind = image[0, 1:], image[0, :-1]
        counted = (ahead != 0) | (behind != 0)
        if not counted.any() or (ahead == behind)[counted].mean() < self.flat_share:
            return []
        return [
            f"the image has {len(values)} whole values in flat areas, as a label map has; are image and label mixed?"
        ]


def side_of(name: str, others: Sequence[str] = ()) -> tuple[str, frozenset[str]] | None:
    """The side of the body that a name tells, and the name's other words; ``None`` if it tells none.

    Args:
        name: such as ``"left kidney"``, ``"kidney_left"``, ``"KidneyL"``, ``"L kidney"`` or ``"LK"``.
        others: names beside it; a short name in capitals tells a side if the one of the other side is among them, or
            if it is that of a kidney.
    """
    short = re.fullmatch(r"([LR])([A-Z]{1,3})", name.strip())
    if short:
        partner = {"L": "R", "R": "L"}[short[1]] + short[2]
        if short[2] != "K" and partner not in [other.strip() for other in others]:
            return None
        return SIDES[short[1].lower()], frozenset([short[2].lower()])
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W\d_a-zA-Z]+", name)]
    sides = {SIDES[word] for word in words if word in SIDES}
    if len(sides) != 1:
        return None
    return sides.pop(), frozenset(word for word in words if word not in SIDES)


def _to_the_right(affine: np.ndarray, voxels: np.ndarray, slices: np.ndarray | None = None) -> np.ndarray:
    """World coordinate of voxels ``(N, 3)`` to the right, in mm.

    Args:
        affine: ``(4, 4)``.
        voxels: their indices.
        slices: where their last index counts in a choice of slices, the numbers of these.
    """
    last = voxels[:, 2] if slices is None else slices[voxels[:, 2]]
    return affine[0, 0] * voxels[:, 0] + affine[0, 1] * voxels[:, 1] + affine[0, 2] * last + affine[0, 3]
