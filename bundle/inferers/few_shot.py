"""Segment whole volumes by a support that is encoded once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from nibabel import aff2axcodes
from torch import Tensor, nn

from ..checks import check_volume
from ..data.support import SupportScan, pixel_size, slice_spacing
from ..keys import NEXT_SLICE, SIMILARITY
from ..memory import MemoryCheck
from ..networks.precision import in_single_precision
from .fusion import ScanFusion
from .known_extent import KnownExtents
from .matching import SliceMatching
from .orientation import InPlaneOrientation, MirrorCheck
from .pseudo_supports import PseudoSupports
from .quality import Quality
from .refinement import SelfSupportRefinement
from .region import enlarge
from .scans import EncodedQuery, EncodedSupport, ExtentMatch, Registration
from .shape_interpolation import ShapeInterpolation, least_sure_slice, own_support
from .slice_registration import SliceRegistration
from .support_encoder import SupportEncoder
from .upsampling import GuidedUpsampling, slices_a_pass, upsample

Placed = list[tuple[EncodedSupport, Registration]]


class FewShotInferer(Inferer):
    """Segments every slice of a query volume with the labels of support scans, stage by stage.

    Works in the network's frame: queries ``(1, C, H, W, D)`` come from ``preprocessing``, slices along the last axis.

    - By default all labels are exclusive; where no support slice is near, all is background. Gives scores
      ``(1, 1 + n, H, W, D)``.
    - With ``chunks`` ``(n, D)`` and ``num_chunks`` in the query's meta data, as the published protocols prescribe, each
      label is matched alone, see :class:`KnownExtents`. Gives differences of foreground and background
      ``(1, n, H, W, D)``.

    The result is a ``MetaTensor`` with the query's meta data and ``label_values``, the values of the ``n`` labels; by
    default also ``support_similarity`` and ``support_rotation`` of the most similar scan, see :class:`Registration`,
    of each label ``reverse_dice``, see :class:`Quality`, and ``support_sides_mm``, see :func:`label_sides`; with
    ``chunks``, ``atlas_fallback``, the share of the scans by which each label is found by its place.

    Every stage may be an object of your own with the same methods. ``None`` for the first six stands for the stage with
    its defaults, which are those of ``configs/inference.json``.

    Args:
        support_encoder: reads, encodes and completes the support, and chooses who answers.
        registration: finds where the query's slices and cells lie on a support scan.
        matching: matches slices to those of one scan.
        fusion: averages over scans, and smooths along the slices.
        quality: reverse Dice, absence, confidence.
        known_extents: the published protocols.
        in_plane_orientation: quarter turns in the plane that are tried where a query is unlike a scan; ``None`` for
            none. They need a registration of the cells, odd ones a square frame too.
        mirror_check: notices a query that is mirrored against the support, and may turn it back; ``None`` for nothing.
        pseudo_supports: unlabelled scans that pass the support's labels on; ``None`` for none. They need a
            registration of the cells.
        refinement: matches a query to what it is sure of itself; ``None`` for none.
        upsampling: fits the scores to the image; ``None`` for none.
        shape_interpolation: completes a query that is labelled on some of its slices itself; ``None`` takes such a scan
            for any other support.
        memory_check: raises before a query is matched for which memory does not suffice; ``None`` for nothing.
    """

    def __init__(
        self,
        support_encoder: SupportEncoder | None = None,
        registration: SliceRegistration | None = None,
        matching: SliceMatching | None = None,
        fusion: ScanFusion | None = None,
        quality: Quality | None = None,
        known_extents: KnownExtents | None = None,
        in_plane_orientation: InPlaneOrientation | None = InPlaneOrientation(),  # noqa: B008, has no state
        mirror_check: MirrorCheck | None = MirrorCheck(),  # noqa: B008
        pseudo_supports: PseudoSupports | None = None,
        refinement: SelfSupportRefinement | None = SelfSupportRefinement(),  # noqa: B008
        upsampling: GuidedUpsampling | None = GuidedUpsampling(),  # noqa: B008
        shape_interpolation: ShapeInterpolation | None = ShapeInterpolation(),  # noqa: B008
        memory_check: MemoryCheck | None = None,
    ) -> None:
        super().__init__()
        self.support_encoder = support_encoder or SupportEncoder()
        self.registration = registration or SliceRegistration()
        self.matching = matching or SliceMatching()
        self.fusion = fusion or ScanFusion()
        self.quality = quality or Quality()
        self.known_extents = known_extents or KnownExtents()
        self.in_plane_orientation = in_plane_orientation
        self.mirror_check = mirror_check
        self.pseudo_supports = pseudo_supports if self.registration.cells is not None else None
        self.refinement = refinement
        self.upsampling = upsampling
        self.shape_interpolation = shape_interpolation
        self.memory_check = memory_check

    def set_support(self, scans: Sequence[SupportScan]) -> None:
        """Use scans in memory instead of files; an empty sequence goes back to the files."""
        self.support_encoder.set_support(scans)

    def set_pseudo_supports(self, images: Sequence[Tensor]) -> None:
        """Use unlabelled scans in memory, ``(C, H, W, D)`` in the network's frame, instead of files as pseudo-supports.

        An empty sequence goes back to the files.

        Raises:
            RuntimeError: without ``pseudo_supports``, which say how many are used, or without a registration.
        """
        if self.pseudo_supports is None or self.pseudo_supports.count == 0:
            raise RuntimeError("no pseudo-supports are wanted: set num_pseudo_supports, and a registration")
        self.pseudo_supports.set_images(images)

    @torch.no_grad()
    @in_single_precision
    def __call__(
        self, inputs: Tensor, network: nn.Module, *args: Any, support: Sequence[Mapping[str, Any]] | None = None
    ) -> MetaTensor:
        """Segment one query.

        Args:
            inputs: ``(1, C, H, W, D)``.
            network: :class:`ALPNet`, or the TorchScript of it.
            *args: what engines pass besides; not used.
            support: entries of the query's own support, which count before the configured ones; a JSON string of them
                under ``support`` in the query's meta data does, too.

        Returns:
            Scores, see the class.

        Raises:
            ValueError: for another shape, NaN in the query, or a compiled network whose engine took the meta data away.
            ValueError, FileNotFoundError: naming the file, when a support is unusable.
        """
        meta = _checked_meta(inputs, network)
        own = json.loads(_first(meta["support"])) if "support" in meta else None
        name = str(_first(meta.get("filename_or_obj", "query")))
        volume = inputs.as_subclass(Tensor)[0].movedim(-1, 0)  # (D, C, H, W)
        query = EncodedQuery(volume, slice_spacing(inputs), partial(self.support_encoder.encode, network))
        encoded, values = self.support_encoder(network, query, self.registration, own if support is None else support)
        if self.memory_check is not None:
            shape = np.asarray(meta.get("spatial_shape", volume.shape[:1] + volume.shape[2:])).ravel().tolist()
            self.memory_check(name, shape, len(volume), len(values))
        meta["support_modality"] = [[scan.modality or "" for scan in encoded]]
        meta["label_values"] = torch.tensor([values])
        pseudo = self._pseudo_supports(network, name, encoded, values, volume.device)
        if "chunks" in meta:
            scores = self._within_extents(network, query, encoded, pseudo, values, meta)
            return MetaTensor(scores.movedim(0, -1)[None], meta=meta)
        placed = self._place_all(network, query, encoded)
        mirrored = self.mirror_check(query, placed, self.registration) if self.mirror_check is not None else None
        unmirrored = mirrored is not None and self.mirror_check is not None and self.mirror_check.unmirror
        if mirrored is not None:
            meta["mirrored"] = [_plane_axis(inputs, mirrored)]
        if mirrored is not None and unmirrored:
            meta["unmirrored"] = torch.tensor([1])
            query = query.mirrored(mirrored)
            placed = self._place_all(network, query, encoded)
        best = max((registered for _, registered in placed), key=lambda registered: registered.similarity)
        meta["support_similarity"] = torch.tensor([best.similarity])
        meta["support_rotation"] = torch.tensor([best.turn])
        scores = self._match(network, query, [*placed, *self._place_all(network, query, pseudo)], encoded, values)
        reverse_dice = self._reverse_dice(network, query, placed, values, scores)
        scores = self._upsample(query, self.quality.present(scores, reverse_dice), True, self._widths(encoded, values))
        scores, reverse_dice = self._match_region(network, query, placed, values, scores, reverse_dice)
        meta["reverse_dice"] = reverse_dice[None].cpu()
        meta["support_sides_mm"] = _sides_mm(encoded, values)[None]
        shapes, own_scan = self.shape_interpolation, own_support(query.volume, encoded)
        if shapes is not None and own_scan is not None:
            scores = shapes(scores, own_scan, values, query.spacing_mm, pixel_size(inputs))
        completion = self.support_encoder.completion
        self.quality.finish(
            scores,
            encoded,
            values,
            reverse_dice,
            query.spacing_mm,
            0.0 if completion is None else completion.discount,
            slices_a_pass(scores.shape[1], query.volume, self.matching.slice_batch_size),
        )
        if shapes is not None and own_scan is not None:
            shapes.draw(scores, own_scan, values)
            batch_size = slices_a_pass(scores.shape[1], query.volume, len(scores))
            least_sure = least_sure_slice(scores, own_scan.slices, batch_size)
            meta[NEXT_SLICE] = _world_position(inputs, least_sure)[None]
        similarity = self._similarity(
            query, [(scan, found.support_index, found.turn) for scan, found in placed], values
        )
        if mirrored is not None and unmirrored:
            scores = scores.flip(2 + mirrored)
            similarity = similarity.flip(1 + mirrored) if similarity is not None else None
        if similarity is not None:
            meta[SIMILARITY] = similarity.movedim(0, -1)[None].cpu()
        return MetaTensor(scores.movedim(0, -1)[None], meta=meta)

    def _match(
        self,
        network: nn.Module,
        query: EncodedQuery,
        placed: Placed,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
    ) -> Tensor:
        """Competing scores ``(D, 1 + n, h, w)`` by scans on which a query lies, smoothed as labels of ``encoded``."""
        scores, possible = self.fusion(network, query, placed, values, self.matching)
        return self._refine(network, query, scores, possible, True, self.fusion.widths_mm(encoded, values))

    def _match_region(
        self,
        network: nn.Module,
        query: EncodedQuery,
        placed: Placed,
        values: Sequence[int],
        scores: Tensor,
        reverse_dice: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Match once more in the region of interest, see :class:`RegionOfInterest`.

        Of each label, that answer counts which gives the support's label back better.

        Args:
            network: the network that matches.
            query: the query.
            placed: the support scans and where the query lies on them.
            values: the ``n`` labels.
            scores: of the first pass ``(D, 1 + n, H, W)``; changed in place.
            reverse_dice: of the first pass ``(n,)``.

        Returns:
            Scores and reverse Dice of both passes together.
        """
        scan, registered = max(placed, key=lambda one: one[1].similarity)
        region_of_interest = self.support_encoder.region_of_interest
        if region_of_interest is None or scan.region is None:
            return scores, reverse_dice
        batch_size = slices_a_pass(scores.shape[1], query.volume, self.matching.slice_batch_size)
        winners = torch.cat([part.max(dim=1).indices for part in scores.split(batch_size)]).cpu()
        labels = torch.tensor([0, *values])[winners].movedim(0, -1)
        box = region_of_interest.on_query(labels.rot90(registered.turn), scan.region)
        if box is None:
            return scores, reverse_dice
        volume = enlarge(query.volume.rot90(registered.turn, (2, 3)), box)
        inside = EncodedQuery(volume, query.spacing_mm, query.encode)
        features, spacing_mm = inside.features(), query.spacing_mm
        finer = [
            (scan.finer, self.registration.on_maps(features, scan.finer, found.positions[None], spacing_mm)[0])
            for scan, found in placed
            if scan.finer is not None
        ]
        supports = [scan for scan, _ in finer]
        found = self._match(network, inside, finer, supports, values)
        closer = self._reverse_dice(network, inside, finer, values, found)
        better = (closer >= self.quality.min_reverse_dice) & (closer >= reverse_dice)
        found, widths = self.quality.present(found, closer), self._widths(supports, values)

        def upsampled(part: slice) -> Tensor:
            return upsample(found[part], volume[part], self.upsampling, True, widths, batch_size)

        region_of_interest.paste(scores, box, registered.turn, upsampled, better, batch_size)
        return scores, torch.where(better, closer, reverse_dice)

    def _within_extents(
        self,
        network: nn.Module,
        query: EncodedQuery,
        encoded: Sequence[EncodedSupport],
        pseudo: Sequence[EncodedSupport],
        values: Sequence[int],
        meta: dict,
    ) -> Tensor:
        """Scores ``(D, n, H, W)`` of each label against its background, see :class:`KnownExtents`."""
        chunks = torch.as_tensor(np.asarray(meta["chunks"])).reshape(len(values), -1)
        num_chunks = int(torch.as_tensor(meta["num_chunks"]).flatten()[0])

        def turn_of(scan: EncodedSupport, views: Sequence[EncodedSupport]) -> int:
            return self._place(network, query, scan, views).turn if self.in_plane_orientation is not None else 0

        found: ExtentMatch = self.known_extents(
            network,
            query,
            [*encoded, *pseudo],
            values,
            chunks,
            num_chunks,
            turn_of,
            self.registration,
            self.matching,
            self.support_encoder,
        )
        meta["atlas_fallback"] = found.by_place[None]
        similarity = self._similarity(query, found.answering, values)
        if similarity is not None:
            meta[SIMILARITY] = similarity.movedim(0, -1)[None].cpu()
        widths_mm = self.fusion.widths_mm(encoded, values)
        scores = self._refine(network, query, found.scores, found.possible, False, widths_mm)
        scores = self._upsample(query, scores, False, self._widths(encoded, values, num_chunks))
        self.known_extents.finish(scores, found.by_place)
        return scores

    def _pseudo_supports(
        self,
        network: nn.Module,
        name: str,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
        device: torch.device,
    ) -> list[EncodedSupport]:
        """Unlabelled scans, segmented by the support."""
        passing = self.pseudo_supports
        if passing is None or passing.count == 0:
            return []

        def segment(image: Tensor) -> EncodedSupport | None:
            volume = image.as_subclass(Tensor).to(device).movedim(-1, 0)
            query = EncodedQuery(volume, slice_spacing(image), partial(self.support_encoder.encode, network))
            placed = self._place_all(network, query, encoded)
            scores = self._match(network, query, placed, encoded, values)
            reverse_dice = self._reverse_dice(network, query, placed, values, scores)
            features = query.features()
            descriptor = self.registration.describe(features)
            return passing.encode(features, query.spacing_mm, values, scores, reverse_dice, descriptor)

        return passing(name, encoded, values, self.support_encoder.preprocessing, segment)

    def _place_all(self, network: nn.Module, query: EncodedQuery, scans: Sequence[EncodedSupport]) -> Placed:
        return [(scan, self._place(network, query, scan, [scan])) for scan in scans]

    def _place(
        self, network: nn.Module, query: EncodedQuery, scan: EncodedSupport, views: Sequence[EncodedSupport]
    ) -> Registration:
        """Where a query lies on a support scan, which is annotated as in the views, turned in the plane if need be."""

        def reverse_dice(part: EncodedQuery, registered: Registration) -> float:
            found = [self._rate(network, part, view, registered) for view in views]
            return sum(found) / max(len(found), 1)

        if self.in_plane_orientation is None:
            return self.registration(query.features(), scan, query.spacing_mm)
        return self.in_plane_orientation(query, scan, self.registration, reverse_dice)

    def _rate(self, network: nn.Module, query: EncodedQuery, view: EncodedSupport, registered: Registration) -> float:
        """Mean reverse Dice of the labels of a scan with a query that lies so on it."""
        nearest = self.registration.nearest(registered.positions, view)
        placed = [(view, registered._replace(support_index=nearest, turn=0))]
        scores, possible = self.fusion(network, query, placed, view.values, self.matching)
        sigmas = self.fusion.widths_mm([view], view.values) / query.spacing_mm
        scores = self.fusion.smooth(scores, possible, True, sigmas)
        return float(self._reverse_dice(network, query, placed, view.values, scores).mean())

    def _reverse_dice(
        self, network: nn.Module, query: EncodedQuery, placed: Placed, values: Sequence[int], scores: Tensor
    ) -> Tensor:
        return self.quality.reverse_dice(network, query, placed, values, scores, self.registration, self.matching)

    def _refine(
        self,
        network: nn.Module,
        query: EncodedQuery,
        scores: Tensor,
        possible: Tensor,
        exclusive: bool,
        widths_mm: Tensor,
    ) -> Tensor:
        """Smooth what was matched, each label by its own width, and match the query to what it is sure of itself."""

        def smooth(scores: Tensor) -> Tensor:
            return self.fusion.smooth(scores, possible, exclusive, widths_mm / query.spacing_mm)

        if self.refinement is None:
            return smooth(scores)
        size = self.matching.slice_batch_size
        return self.refinement(network, query.features(), smooth(scores), possible, exclusive, smooth, size)

    def _upsample(self, query: EncodedQuery, scores: Tensor, exclusive: bool, widths: Sequence[float]) -> Tensor:
        return upsample(scores, query.volume, self.upsampling, exclusive, widths, self.matching.slice_batch_size)

    @staticmethod
    def _widths(encoded: Sequence[EncodedSupport], values: Sequence[int], num_chunks: int | None = None) -> list[float]:
        """Width of each label in pixels on the annotated slices of the support scans; 0 where none shows it."""
        widths = []
        for value in values:
            showing = [scan for scan in encoded if value in scan.values]
            if num_chunks:
                showing = [scan.as_annotated(value, num_chunks) for scan in showing]
            widths.append(sum(scan.width(value) for scan in showing) / max(len(showing), 1))
        return widths

    def _similarity(
        self, query: EncodedQuery, answering: Sequence[tuple[EncodedSupport, Tensor, int]], values: Sequence[int]
    ) -> Tensor | None:
        """See :meth:`Quality.similarity`, of the scans that annotate a label; ``None`` if nobody wants it."""
        if not self.quality.keep_similarity:
            return None
        telling = [entry for entry in answering if any(entry[0].annotates(value) for value in values)]
        return self.quality.similarity(query, telling, self.matching.slice_batch_size)


def _sides_mm(encoded: Sequence[EncodedSupport], values: Sequence[int]) -> Tensor:
    """Sides of each label ``(n, 3)``, the geometric mean over the support scans; NaN where none tells."""
    sides = torch.full((len(values), 3), torch.nan)
    for row, value in enumerate(values):
        known = [list(scan.sides_mm[value]) for scan in encoded if value in scan.sides_mm]
        if known:
            sides[row] = torch.tensor(known).log().mean(dim=0).exp()
    return sides


def _checked_meta(inputs: Tensor, network: nn.Module) -> dict[str, Any]:
    """A query's meta data; raises unless it is one volume that the network can take."""
    if hasattr(network, "_orig_mod") and not isinstance(inputs, MetaTensor):
        raise ValueError(
            "evaluator#compile takes spacing, extents and support away from the scan and makes nothing faster "
            "here; leave it out"
        )
    meta = dict(getattr(inputs, "meta", {}))
    if inputs.ndim != 5 or inputs.shape[0] != 1:
        raise ValueError(f"expected one volume (1, C, H, W, D), got {tuple(inputs.shape)}")
    stride = int(getattr(network, "stride", 1))
    if inputs.shape[2] % stride or inputs.shape[3] % stride:
        raise ValueError(
            f"image sides must be multiples of the stride {stride}, got {inputs.shape[2]} x {inputs.shape[3]}; "
            "change image_size"
        )
    check_volume(inputs[0], str(_first(meta.get("filename_or_obj", "query"))))
    return meta


def _world_position(inputs: Tensor, index: int) -> Tensor:
    """Where the middle of a slice of ``(1, C, H, W, D)`` lies in mm ``(3,)``."""
    affine = torch.as_tensor(np.asarray(getattr(inputs, "affine", np.eye(4)), dtype=float).reshape(-1, 4, 4)[0])
    middle = torch.tensor([(inputs.shape[2] - 1) / 2, (inputs.shape[3] - 1) / 2, index], dtype=affine.dtype)
    return affine[:3, :3] @ middle + affine[:3, 3]


def _plane_axis(inputs: Tensor, axis: int) -> str:
    """What an axis of the slices' plane (0 or 1) of ``(1, C, H, W, D)`` runs along in a body."""
    affine = np.asarray(getattr(inputs, "affine", np.eye(4)), dtype=float).reshape(-1, 4, 4)[0]
    return {"R": "left-right", "L": "left-right", "A": "front-back", "P": "front-back"}.get(
        aff2axcodes(affine)[axis], "head-foot"
    )


def _first(value: Any) -> Any:
    """The entry of a collated batch of one, or the value itself."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
