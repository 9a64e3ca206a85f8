"""A scan completed from a few of its own slices: their shapes in between, weighed against what the images say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from .scans import EncodedSupport, thumbprint
from .scores import margins


@dataclass(frozen=True)
class ShapeInterpolation:
    """Mixes scores with the shapes that a scan's own labelled slices have between them.

    The signed distance to a label's contour is interpolated between the labelled slices on each side. A contour may
    have moved in the plane by ``slope`` times the way along z, so that the distance, divided by that, tells how sure
    the shape is. Near a labelled slice the shape knows best, far from one the image does: at a distance ``d`` from it,
    a label of the height ``h`` goes by the shape with a share of ``h / (h + decline * d)``, else by the image.

    Args:
        slope: see above.
        decline: see above.
        reach: scores beyond it count as certain.

    Raises:
        ValueError: for a negative decline, or a slope or reach that is not positive.

    Reference: Raya and Udupa, IEEE TMI 9(1), 1990, https://doi.org/10.1109/42.52980, on interpolation by distances.
    """

    slope: float = 0.5
    decline: float = 4.0
    reach: float = 2.0

    def __post_init__(self) -> None:
        if min(self.slope, self.reach) <= 0 or self.decline < 0:
            raise ValueError(
                "slope and reach must be positive and decline at least 0, got "
                f"{self.slope}, {self.reach} and {self.decline}"
            )

    def __call__(
        self, scores: Tensor, own: EncodedSupport, values: Sequence[int], spacing_mm: float, pixel_mm: float
    ) -> Tensor:
        """Scores ``(D, 1 + n, H, W)``, the background first, of images and shapes together.

        Args:
            scores: by the images, of the same shape.
            own: the scan as its own support, see :func:`own_support`.
            values: the ``n`` labels.
            spacing_mm: distance of the slices.
            pixel_mm: size of a pixel.
        """
        labels, slices = own.labels, own.slices
        if labels is None:
            return scores
        shapes = self.shapes(labels, slices, values, spacing_mm, pixel_mm).to(scores)
        shares = self.shares(labels, slices, values, spacing_mm).to(scores)[..., None, None]
        images = margins(scores)[:, 1:].clamp(-self.reach, self.reach)
        mixed = torch.where(shapes.isnan(), images, torch.lerp(images, shapes, shares))
        return torch.cat([-mixed.amax(dim=1, keepdim=True), mixed], dim=1)

    def shapes(
        self, labels: Tensor, slices: Tensor, values: Sequence[int], spacing_mm: float, pixel_mm: float
    ) -> Tensor:
        """Scores ``(D, n, H, W)`` by the shapes alone, in -reach..reach; NaN where no labelled slice is on both sides.

        Args:
            labels: the scan's label map ``(D, H, W)``, of which ``slices`` count.
            slices: numbers of the labelled slices ``(A,)``, ascending.
            values: the ``n`` labels; one that no slice shows has no shape.
            spacing_mm: distance of the slices.
            pixel_mm: size of a pixel.
        """
        out = torch.full((len(labels), len(values), *labels.shape[1:]), torch.nan)
        for row, value in enumerate(values):
            masks = labels[slices] == value
            box = masks.any(dim=0)
            if not bool(box.any()):
                continue
            rows, columns = (_around(box.any(dim=axis), 16) for axis in (1, 0))
            distances = signed_distances(masks[:, rows, columns]) * pixel_mm
            out[slices[0] : slices[-1] + 1, row] = -self.reach
            for first, last, low, high in zip(slices[:-1].tolist(), slices[1:].tolist(), distances[:-1], distances[1:]):
                steps = torch.arange(first, last + 1)
                way = ((steps - first) / (last - first))[:, None, None]
                moved = self.slope * spacing_mm * torch.minimum(steps - first, last - steps).clamp(min=0.5)
                sure = torch.lerp(low, high, way) / moved[:, None, None]
                out[first : last + 1, row, rows, columns] = sure.clamp(-self.reach, self.reach)
        return out

    def shares(self, labels: Tensor, slices: Tensor, values: Sequence[int], spacing_mm: float) -> Tensor:
        """Share of the shape in each slice for each label ``(D, n)``, see the class; arguments as there."""
        away = (torch.arange(len(labels))[:, None] - slices).abs().amin(dim=1) * spacing_mm
        ends = torch.cat([slices[:1].double(), (slices[1:] + slices[:-1]) / 2, slices[-1:].double()])
        heights = torch.ones(len(values), dtype=torch.double)
        for row, value in enumerate(values):
            shown = (labels[slices] == value).flatten(1).any(dim=1).nonzero()[:, 0]
            if len(shown):  # it ends halfway to the next labelled slice
                heights[row] = (ends[shown[-1] + 1] - ends[shown[0]]).clamp(min=1) * spacing_mm
        return (heights / (heights + self.decline * away[:, None])).float()

    def draw(self, scores: Tensor, own: EncodedSupport, values: Sequence[int]) -> None:
        """Make labelled slices of scores ``(D, 1 + n, H, W)``, in place, what somebody drew there, beyond doubt."""
        if own.labels is not None:
            known = torch.stack([own.labels[own.slices] == value for value in values], dim=1)
            drawn = torch.cat([~known.any(dim=1, keepdim=True), known], dim=1).to(scores)
            scores[own.slices] = (2 * drawn - 1) * 10 * self.reach


def own_support(volume: Tensor, encoded: Sequence[EncodedSupport]) -> EncodedSupport | None:
    """The support scan that is the query ``(D, C, H, W)`` itself, and labelled on some of its slices alone."""
    print_of_query = thumbprint(volume)
    for scan in encoded:
        if scan.labels is None or len(scan.slices) in (0, len(volume)) or scan.labels.shape[0] != len(volume):
            continue
        if scan.thumbprint is not None and torch.equal(scan.thumbprint, print_of_query):
            return scan
    return None


def least_sure_slice(scores: Tensor, labelled: Tensor, batch_size: int) -> int:
    """What to label next: of the slices that show a label, the one with the most pixels that are expected to be wrong.

    The pixels of a slice count by its distance to the next labelled slice, since what is near one is known from there.

    Args:
        scores: ``(D, 1 + n, H, W)``.
        labelled: numbers of the labelled slices ``(A,)``.
        batch_size: slices at a time.
    """
    doubts = []
    for part in scores.split(batch_size):
        found = (part.argmax(dim=1) > 0).flatten(1).any(dim=1)
        doubts.append(found * (1 - part.softmax(dim=1).amax(dim=1)).flatten(1).sum(dim=1))
    away = (torch.arange(len(scores))[:, None] - labelled).abs().amin(dim=1)
    return int((torch.cat(doubts).cpu() * away).argmax())


def signed_distances(masks: Tensor) -> Tensor:
    """Distance of each pixel to the contour of masks ``(A, H, W)`` in their planes, in pixels, positive inside.

    An empty mask is as far away as the others are wide, so that a label ends halfway to it.
    """
    found = []
    for mask in masks.cpu().numpy():
        inside = distance_transform_edt(mask)
        found.append(torch.from_numpy(inside - distance_transform_edt(~mask) if mask.any() else inside).float())
    distances = torch.stack(found)
    empty = ~masks.flatten(1).any(dim=1).cpu()
    distances[empty] = -float(distances.max())
    return distances - 0.5 * distances.sign()  # the contour runs between pixels


def _around(shown: Tensor, pixels: int) -> slice:
    """The part of an axis that is shown, with so many pixels around."""
    where = shown.nonzero()[:, 0]
    return slice(max(0, int(where[0]) - pixels), int(where[-1]) + 1 + pixels)
