"""The region of interest: a second pass in the enlarged box around what is labelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.support import SupportScan
from ..transforms.components import LargeComponents
from .scores import margins


class Box(NamedTuple):
    """Rows and columns of the frame, the ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def sides(self) -> tuple[int, int]:
        """How many rows and columns."""
        return self.bottom - self.top, self.right - self.left

    def of(self, planes: Tensor) -> Tensor:
        """What lies in the box in ``(…, H, W)``."""
        return planes[..., self.top : self.bottom, self.left : self.right]


class Region(NamedTuple):
    """What a support labels.

    Attributes:
        box: the box around it, with a margin.
        profiles: how each value spreads over rows ``(H,)`` and columns ``(W,)``, as shares of its pixels.
    """

    box: Box
    profiles: dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RegionOfInterest:
    """A box around what a support labels, in which support and query are matched once more, enlarged to the frame.

    The network sees one vector for eight pixels. A structure that is small in the frame shares all of its vectors with
    its surroundings; enlarged, it has some of its own. Where the labels take up most of the frame, nothing is gained,
    and the query is matched once.

    Args:
        margin: what is added on each side of the labels' box, as a share of that side.
        largest: share of the frame's area up to which a box is enlarged.
        component_share: components of what the first pass found below this share of their label's largest do not count.
        largest_scale: by how much the query's box may be larger or smaller than the support's, as a factor.
        step: every so many pixels of what the first pass found are looked at.

    Raises:
        ValueError: for a negative margin, a share that is not in 0..1, or a scale or step below 1.
    """

    margin: float = 0.3
    largest: float = 0.6
    component_share: float = 0.3
    largest_scale: float = 1.25
    step: int = 4

    def __post_init__(self) -> None:
        shares = (self.largest, self.component_share)
        if self.margin < 0 or not all(0 <= share <= 1 for share in shares) or min(self.largest_scale, self.step) < 1:
            raise ValueError(
                "margin must be at least 0, largest and component_share in 0..1, largest_scale and step at least 1, "
                f"got {self.margin}, {self.largest}, {self.component_share}, {self.largest_scale} and {self.step}"
            )

    def on_support(self, label: Tensor) -> Region | None:
        """Region of a label map ``(H, W, D)``; ``None`` if its box is too large, or there are no labels."""
        label = label.as_subclass(Tensor)
        shown = label.gt(0).any(dim=2)
        sides: list[int] = []
        for axis, size in enumerate(shown.shape):
            span = shown.any(dim=1 - axis).nonzero()[:, 0]
            if not len(span):
                return None
            low, high = int(span[0]), int(span[-1]) + 1
            more = round(self.margin * (high - low))
            sides += [max(0, low - more), min(size, high + more)]
        box = Box(*sides)
        if box.sides[0] * box.sides[1] > self.largest * shown.numel():
            return None
        return Region(box, {int(value): profiles(label == value) for value in torch.unique(label) if value > 0})

    def on_query(self, labels: Tensor, region: Region) -> Box | None:
        """Where a support's region lies on a query by what the first pass found there; ``None`` if that is nothing.

        The box is moved and scaled along each axis so that the quartiles of the labels agree.

        Args:
            labels: which value each pixel of the query has ``(H, W, D)``, 0 for none.
            region: the support's.
        """
        coarse = torch.as_tensor(LargeComponents(self.component_share)(labels[None, :: self.step, :: self.step])[0])
        shown = {value: coarse == value for value in sorted(region.profiles)}
        found = {value: profiles(mask) for value, mask in shown.items() if bool(mask.any())}
        if not found:
            return None
        sides: list[int] = []
        for axis, size in enumerate(labels.shape[:2]):
            own = self.step * quartiles(torch.stack([one[axis] for one in found.values()]).sum(dim=0))
            theirs = quartiles(torch.stack([region.profiles[value][axis] for value in found]).sum(dim=0))
            scale = float((own[2] - own[0]) / (theirs[2] - theirs[0]).clamp(min=1.0))
            scale = min(max(scale, 1 / self.largest_scale), self.largest_scale)
            low, high = (
                float(own[1]) + scale * (end - float(theirs[1])) for end in region.box[2 * axis : 2 * axis + 2]
            )
            length = min(size, round(high - low))
            low = min(max(0, round(low)), size - length)
            sides += [low, low + length]
        return Box(*sides)

    def cut(self, scan: SupportScan, box: Box) -> SupportScan:
        """What lies in a box of a scan, enlarged to the frame's size."""
        size = scan.label.shape[:2]
        label = box.of(scan.label.as_subclass(Tensor).movedim(-1, 0)[:, None]).float()
        label = F.interpolate(label, size=size, mode="nearest-exact").to(scan.label.dtype)
        image = enlarge(scan.image.as_subclass(Tensor).movedim(-1, 0), box)
        pixel_mm = scan.pixel_mm * (box.sides[0] * box.sides[1] / (size[0] * size[1])) ** 0.5
        return replace(scan, image=image.movedim(0, -1), label=label[:, 0].movedim(0, -1), pixel_mm=pixel_mm)

    def paste(
        self, scores: Tensor, box: Box, turn: int, finer: Callable[[slice], Tensor], better: Tensor, batch_size: int
    ) -> None:
        """Put what was found in a box into competing scores, some slices at a time.

        Towards a side of the box that lies within the frame, the first pass counts more and more.

        Args:
            scores: of the first pass ``(D, 1 + n, H, W)``, the background first; changed in place.
            box: the box on the turned query.
            turn: quarter turns of the query.
            finer: the scores of some slices in the enlarged box ``(b, 1 + n, H', W')``.
            better: which labels are taken from there ``(n,)``.
            batch_size: slices at a time.
        """
        height, width = scores.shape[-2:] if turn % 2 == 0 else scores.shape[:-3:-1]
        weights = box.of(self._weights(box, height, width).to(scores)) * better.to(scores)[:, None, None]
        for first in range(0, len(scores), batch_size):
            part = slice(first, first + batch_size)
            mixed = margins(scores[part].rot90(turn, (2, 3)))[:, 1:].clone()
            found = margins(finer(part))[:, 1:]
            found = F.interpolate(found, size=box.sides, mode="bilinear", align_corners=False, antialias=True)
            box.of(mixed).lerp_(found, weights)
            mixed = torch.cat([-mixed.amax(dim=1, keepdim=True), mixed], dim=1)
            scores[part] = mixed.rot90(-turn, (2, 3))

    def _weights(self, box: Box, height: int, width: int) -> Tensor:
        """Weight of the second pass ``(H, W)``: 1 in the box, less in the outer half of its margin."""
        sides = []
        for low, high, length in ((box.top, box.bottom, height), (box.left, box.right, width)):
            steps = torch.arange(length) + 0.5
            ramp = max(1.0, self.margin / (1 + 2 * self.margin) * (high - low) / 2)
            below = (steps - low) / ramp if low > 0 else torch.ones(length)
            above = (high - steps) / ramp if high < length else torch.ones(length)
            sides.append(torch.minimum(below, above).clamp(0, 1))
        return sides[0][:, None] * sides[1]


def enlarge(volume: Tensor, box: Box) -> Tensor:
    """What lies in a box of slices ``(D, C, H, W)``, at the size of the whole, of zero mean and unit variance."""
    cut = F.interpolate(box.of(volume), size=volume.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
    return (cut - cut.mean()) / cut.std().clamp(min=1e-6)


def profiles(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of a mask ``(H, W, D)`` in each row ``(H,)`` and column ``(W,)``."""
    count = mask.sum().clamp(min=1)
    return mask.sum(dim=(1, 2)) / count, mask.sum(dim=(0, 2)) / count


def quartiles(profile: Tensor) -> Tensor:
    """Places ``(3,)`` at which a quarter, half and three quarters of a profile ``(N,)`` are reached."""
    sums = F.pad(profile.double().cumsum(0), (1, 0))
    wanted = sums[-1] * torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    after = torch.searchsorted(sums, wanted).clamp(min=1, max=len(profile))
    return after - 1 + (wanted - sums[after - 1]) / (sums[after] - sums[after - 1]).clamp(min=1e-12)
