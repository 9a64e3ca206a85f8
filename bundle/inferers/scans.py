"""Scans on the feature grid: the query, and the labelled ones that it is matched to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt  # MONAI's looks for cuCIM again for each slice, which takes as long
from torch import Tensor

from ..data.protocol import support_slices
from ..data.support import SupportScan

if TYPE_CHECKING:
    from .region import Region


class EncodedSupport:
    """Features of one scan and its labels on the feature grid, kept between queries.

    Attributes:
        features: ``(Ds, D, h, w)``.
        spacing_mm: distance of the slices.
        values: the ``V`` label values that occur.
        annotates: whether the scan says where a value is, see :meth:`SupportScan.annotates`.
        foreground: share of each label in the cells ``(Ds, V, h, w)``.
        background: share of what has no label ``(Ds, h, w)``.
        shows: which labels a slice shows ``(Ds, V)``.
        slices: numbers of the annotated slices ``(A,)``; the others are no background.
        answering: numbers of the slices that answer queries: the annotated ones and those that were completed.
        extents: numbers of the slices that show each label, whether they are used as annotated or not.
        heights_mm: longest stretch of annotated slices that show each label, without a gap, in mm.
        descriptor: ``(Ds, F)``, see :func:`describe_slices`; ``None`` without.
        widths: ``(Ds, V)``, see :func:`label_widths`; ``None`` without.
        labelled: whether somebody labelled it; ``False`` where a prediction stands for labels.
        bounds: lowest and highest position of each label ``(V, 2)`` in units of slices, see :func:`label_bounds`, of a
            scan that is labelled on some slices; ``None`` of others, whose labels end where the annotation does.
    """

    def __init__(
        self,
        features: Tensor,
        spacing_mm: float,
        values: Sequence[int],
        annotates: Callable[[int], bool],
        foreground: Tensor,
        background: Tensor,
        shows: Tensor,
        slices: Sequence[int],
        descriptor: Tensor | None = None,
        widths: Tensor | None = None,
        labelled: bool = True,
    ) -> None:
        self.features = features
        self.spacing_mm = spacing_mm
        self.values = list(values)
        self.annotates = annotates
        self.foreground = foreground
        self.background = background
        self.shows = shows
        self.slices = self.answering = torch.tensor(list(slices))
        self.extents = [shown.nonzero()[:, 0].tolist() for shown in shows.unbind(dim=1)]
        self.heights_mm = [longest_stretch(extent, self.slices.tolist()) * spacing_mm for extent in self.extents]
        self.descriptor = descriptor
        self.widths = widths
        self.labelled = labelled
        self.modality: str | None = None  # what the image was taken for
        self.sides_mm: Mapping[int, Sequence[float]] = {}  # of each label, see label_sides
        self.labels: Tensor | None = None  # of a scan that is labelled on some slices, its label map (Ds, H, W)
        self.thumbprint: Tensor | None = None  # and what tells its image from others, see thumbprint
        self.region: Region | None = None  # what it labels, where that is small, see RegionOfInterest
        self.finer: EncodedSupport | None = None  # and what lies there, enlarged
        self.bounds: Tensor | None = None
        self._views: dict[tuple[int, int], EncodedSupport] = {}

    @classmethod
    def from_scan(
        cls, scan: SupportScan, features: Tensor, descriptor: Tensor, batch_size: int, extension: float = 0.0
    ) -> EncodedSupport:
        """Bring a scan's labels to the grid of its features, ``batch_size`` slices at a time.

        ``extension`` says how far labels go on beyond their outermost slices, see :func:`label_bounds`.
        """
        label, values = scan.label.movedim(-1, 0), scan.values
        shares, shown, widths = [], [], []
        for labels in label.split(batch_size):  # as floats, whole volumes would be large
            masks = torch.stack([labels == value for value in [0, *values]], dim=1)
            widths.append(label_widths(masks[:, 1:]))  # before a GPU has them: it would be waited for
            masks = masks.to(features.device)
            shares.append(F.interpolate(masks.float(), size=features.shape[-2:], mode="bilinear", align_corners=False))
            shown.append(masks[:, 1:].flatten(2).any(dim=2))
        background, foreground = torch.cat(shares).split([1, len(values)], dim=1)
        annotated = set(values if scan.annotated is None else scan.annotated)
        encoded = cls(
            features,
            scan.spacing_mm,
            values,
            annotated.__contains__,
            foreground,
            background[:, 0],
            torch.cat(shown),
            scan.annotated_slices,
            descriptor,
            torch.cat(widths),
        )
        encoded.modality, encoded.sides_mm = scan.modality, scan.sides_mm
        if len(encoded.slices) < len(features):
            encoded.labels, encoded.thumbprint = label.int(), thumbprint(scan.image.movedim(-1, 0))
            per_pixel = extension * scan.pixel_mm / scan.spacing_mm
            encoded.bounds = label_bounds(label, encoded.slices, values, per_pixel)
        return encoded

    @classmethod
    def from_prediction(
        cls, features: Tensor, spacing_mm: float, values: Sequence[int], scores: Tensor
    ) -> EncodedSupport:
        """Take what was predicted ``(D, 1 + n, h, w)`` for ``n`` values as a scan's labels."""
        predicted = F.one_hot(scores.max(dim=1).indices, 1 + len(values)).movedim(-1, 1).to(features.dtype)
        foreground = predicted[:, 1:]
        shows = foreground.flatten(2).any(dim=2)
        every = range(len(features))
        background = predicted[:, 0]
        return cls(features, spacing_mm, values, lambda _: True, foreground, background, shows, every, labelled=False)

    def summary(self) -> SupportSummary:
        """What tells how near it is to a query."""
        if self.descriptor is None:
            raise RuntimeError("this scan has no descriptor")
        return SupportSummary(self.values, self.descriptor.clone(), self.spacing_mm)

    def wanted(self, values: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``foreground`` ``(Ds, n, h, w)`` and ``shows`` ``(Ds, n)`` of some values; nothing where one is not here."""
        foreground = self.foreground.new_zeros(len(self.features), len(values), *self.foreground.shape[-2:])
        shows = self.shows.new_zeros(len(self.features), len(values))
        for row, value in enumerate(values):
            if value in self.values:
                own = self.values.index(value)
                foreground[:, row], shows[:, row] = self.foreground[:, own], self.shows[:, own]
        return foreground, shows

    def reaches(self, values: Sequence[int], positions: Tensor) -> Tensor:
        """Whether labels can lie at positions ``(D,)`` in units of the scan's slices: ``(D, n)``."""
        low, high = self._ends(values)
        return (positions[:, None] > low) & (positions[:, None] < high)

    def unknown(self, values: Sequence[int], positions: Tensor) -> Tensor:
        """Whether nobody can tell by this scan if labels lie at positions ``(D,)``: ``(D, n)``.

        That is beyond the outermost labelled slices of a scan that is labelled on some, where a label goes on.
        """
        low, high = self._ends(values)
        above, below = positions[:, None] >= high, positions[:, None] <= low
        return (above & (high > self.slices[-1])) | (below & (low < self.slices[0]))

    def _ends(self, values: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Lowest and highest position of labels ``(n,)``; the same two of one that is not here."""
        if self.bounds is None:
            return torch.full((len(values),), -math.inf), torch.full((len(values),), math.inf)
        none = self.slices[[0, 0]].to(self.bounds)  # reaches no place, and is known not to
        ends = [self.bounds[self.values.index(value)] if value in self.values else none for value in values]
        return torch.stack(ends).unbind(dim=1)  # type: ignore[return-value]

    def extent(self, value: int) -> list[int]:
        """Numbers of the slices that show a value; not those where it was completed."""
        return self.extents[self.values.index(value)]

    @property
    def completed_share(self) -> float:
        """Share of the slices that answer which were completed."""
        return 1 - len(self.slices) / len(self.answering)

    def width(self, value: int) -> float:
        """How wide a label is in pixels of the frame, as the median over annotated slices that show it; 0 for none."""
        if value not in self.values or self.widths is None:
            return 0.0
        widths = self.widths[self.slices, self.values.index(value)]
        return float(widths[widths > 0].median()) if bool((widths > 0).any()) else 0.0

    def height_mm(self, value: int) -> float:
        """Height of a label's tallest part along the slices in mm; 0 where none shows it."""
        return self.heights_mm[self.values.index(value)] if value in self.values else 0.0

    def volume(self, value: int, length_mm: float) -> float:
        """Largest volume of a label that a stack of slices can show, as share of the frame times mm; 0 for none.

        Args:
            value: the label, in the slices that answer.
            length_mm: height of the stack.
        """
        if value not in self.values:
            return 0.0
        areas = self.foreground[self.answering, self.values.index(value)].mean(dim=(1, 2))
        largest = areas.sort(descending=True).values[: max(1, round(length_mm / self.spacing_mm))]
        return float(largest.sum()) * self.spacing_mm

    def only(self, value: int, slices: Sequence[int]) -> EncodedSupport:
        """The same scan with one label against all else, annotated on some of the slices."""
        view = copy.copy(self)
        view._views = {}
        row = self.values.index(value)
        view.values, view.extents, view.heights_mm = [value], [self.extents[row]], [self.heights_mm[row]]
        view.slices = view.answering = torch.tensor(sorted(set(slices)))
        view.foreground, view.shows = self.foreground[:, row : row + 1], self.shows[:, row : row + 1]
        view.background = 1 - view.foreground[:, 0]
        view.widths = self.widths[:, row : row + 1] if self.widths is not None else None
        view.bounds = None
        return view

    def as_annotated(self, value: int, num_chunks: int) -> EncodedSupport:
        """The scan with one label, on the middle slice of each chunk of its extent alone."""
        return self.only(value, support_slices(self.extent(value), num_chunks))

    def completed(self, todo: Tensor, foreground: Tensor, background: Tensor) -> EncodedSupport:
        """The same scan with labels ``(T, V, h, w)``, ``(T, h, w)`` in ``todo``, slices that then answer too."""
        completed = copy.copy(self)
        completed._views = {}
        completed.foreground, completed.background = self.foreground.clone(), self.background.clone()
        completed.shows = self.shows.clone()
        completed.foreground[todo], completed.background[todo] = foreground, background
        completed.shows[todo] = foreground.flatten(2).any(dim=2)
        completed.answering = torch.cat([self.slices, todo]).sort().values
        return completed

    def as_published(
        self, value: int, num_chunks: int, complete: Callable[[EncodedSupport], EncodedSupport]
    ) -> EncodedSupport:
        """The scan as the published protocols annotate it: one label, on the middle slice of each chunk.

        Of a scan that nobody labelled, all that is known of the label.

        Args:
            value: the label.
            num_chunks: parts of the label's extent.
            complete: what is done with it, once.
        """
        key = (value, num_chunks)
        if key not in self._views:
            if self.labelled:
                view = complete(self.as_annotated(value, num_chunks))
            else:
                view = self.only(value, self.answering.tolist())
                view.background = self.background + self.foreground.sum(dim=1) - view.foreground[:, 0]
            self._views[key] = view
        return self._views[key]


class SupportSummary(NamedTuple):
    """Small enough to be kept of every support scan.

    Attributes:
        values: the label values that occur.
        descriptor: ``(Ds, F)``, see :func:`describe_slices`.
        spacing_mm: distance of the slices.
    """

    values: list[int]
    descriptor: Tensor
    spacing_mm: float


def longest_stretch(shown: Sequence[int], annotated: Sequence[int]) -> int:
    """Slices from the first to the last, both included, of the longest stretch that shows a label.

    Args:
        shown: numbers of the slices that show it.
        annotated: numbers of the annotated slices, ascending; one of them without the label ends a stretch.
    """
    longest, first = 0, None
    for index in annotated:
        first = (index if first is None else first) if index in shown else None
        longest = longest if first is None else max(longest, index - first + 1)
    return longest


def label_bounds(label: Tensor, slices: Tensor, values: Sequence[int], extension: float) -> Tensor:
    """Where labels of a scan that is labelled on some slices can lie along z: lowest and highest position ``(V, 2)``.

    Between the labelled slices that tell of its end, by showing it or by not showing it. Beyond the outermost labelled
    slice, if that shows it, a label goes on by ``extension`` times the diameter in pixels that it has there: an organ
    is about as long as it is wide. At least by half the largest distance of labelled slices, and by one slice.

    Args:
        label: ``(D, H, W)``.
        slices: numbers of the labelled slices ``(A,)``, ascending.
        values: the ``V`` labels.
        extension: see above, in slices for each pixel.
    """
    reach = annotation_reach(slices)
    bounds = []
    for value in values:
        areas = (label[slices] == value).flatten(1).sum(dim=1)
        shown = areas.nonzero()[:, 0]
        first, last = int(shown[0]), int(shown[-1])
        below, above = (max(reach, extension * 2 * math.sqrt(float(areas[i]) / math.pi)) for i in (first, last))
        low = float(slices[0]) - below if first == 0 else float(slices[first - 1])
        high = float(slices[-1]) + above if last == len(slices) - 1 else float(slices[last + 1])
        bounds.append([low, high])
    return torch.tensor(bounds)


def annotation_reach(slices: Tensor) -> float:
    """Slices by which an annotation reaches beyond its outermost slices ``(A,)``: half their largest distance, or 1."""
    return max(1.0, float(slices.diff().max()) / 2 if len(slices) > 1 else 0.5)


def thumbprint(volume: Tensor, count: int = 4096) -> Tensor:
    """Evenly spread pixels of a scan ``(D, C, H, W)``, by which it is told from others."""
    values = volume.as_subclass(Tensor).reshape(-1)
    return values[:: max(1, len(values) // count)].cpu()


def label_widths(masks: Tensor) -> Tensor:
    """Diameter in pixels of the largest circle inside each mask: ``(S, n, H, W)`` booleans to ``(S, n)``; 0 if empty.

    It is small for a thin ring, too, whatever the ring's size.
    """
    widths = torch.zeros(masks.shape[:2])
    for index, row in masks.flatten(2).any(dim=2).nonzero().tolist():
        mask = masks[index, row]
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        distance = distance_transform_edt(F.pad(inside, (1, 1, 1, 1)).cpu().numpy())
        widths[index, row] = 2 * float(distance.max())
    return widths


class EncodedQuery:
    """A query's slices and their features, in the plane as they are or turned.

    Args:
        volume: slices ``(D, C, H, W)``.
        spacing_mm: distance of the slices.
        encode: slices ``(S, C, H, W)`` to features ``(S, D, h, w)``.
    """

    def __init__(self, volume: Tensor, spacing_mm: float, encode: Callable[[Tensor], Tensor]) -> None:
        self.volume = volume
        self.spacing_mm = spacing_mm
        self.encode = encode
        self._known: dict[int, Tensor] = {}

    def features(self, turn: int = 0) -> Tensor:
        """Features ``(D, channels, h, w)`` after so many quarter turns; computed once."""
        if turn not in self._known:
            self._known[turn] = self.encode(self.volume.rot90(turn, (2, 3)) if turn else self.volume)
        return self._known[turn]

    def part(self, turn: int, step: int, mirrored: int | None = None) -> EncodedQuery:
        """Every ``step``-th slice as a query itself, reflected along an axis of the plane (0 or 1) and turned."""
        part = self.volume[::step] if mirrored is None else self.volume[::step].flip(2 + mirrored)
        return EncodedQuery(part.rot90(turn, (2, 3)), self.spacing_mm * step, self.encode)

    def mirrored(self, axis: int) -> EncodedQuery:
        """The query reflected along an axis of the plane, 0 or 1."""
        return EncodedQuery(self.volume.flip(2 + axis), self.spacing_mm, self.encode)


def turn_back(scores: Tensor, turn: int) -> Tensor:
    """Bring what was found on a turned query ``(D, n, h, w)`` back to the query as it is."""
    return scores.rot90(-turn, (2, 3))


class Registration(NamedTuple):
    """Where a query lies on one support scan.

    Attributes:
        support_index: support slices ``(D, K)`` that answer for each query slice; -1 for none.
        coordinates: ``(D, 3, h, w)``, see :class:`CellRegistration`; ``None`` where every cell stays in its place.
        similarity: how similar the registered cells are, in -1..1; without a registration, the aligned slices.
        positions: the query slices' positions ``(D,)``, in units of the support's slices.
        turn: quarter turns of the query in the plane after which it lies as the support does; all else is said of
            the turned query.
    """

    support_index: Tensor
    coordinates: Tensor | None
    similarity: float
    positions: Tensor
    turn: int = 0


class ExtentMatch(NamedTuple):
    """What was matched within known extents.

    Attributes:
        scores: foreground less background ``(D, n, h, w)``.
        possible: where an extent is given ``(D, n)``.
        answering: each labelled scan, its slices ``(D, n * K)`` that answer, and the query's turn.
        by_place: for each label the share of the labelled scans by which it is found by its place ``(n,)``.
    """

    scores: Tensor
    possible: Tensor
    answering: list[tuple[EncodedSupport, Tensor, int]]
    by_place: Tensor
