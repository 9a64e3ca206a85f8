"""Segment whole volumes by a support that is encoded once."""

from __future__ import annotations

import json
import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from nibabel import aff2axcodes
from torch import Tensor, nn

from ..checks import check_volume
from ..data.protocol import support_slices
from ..data.support import SLICES, VALUES, SupportScan, load_support, resolve_support, showing_entries, slice_spacing
from ..identity import file_state
from ..keys import IMAGE, LABEL, SIMILARITY
from ..memory import MemoryCheck
from ..networks.blocks.prototypes import normalize
from ..networks.precision import in_single_precision
from .atlas_fallback import AtlasFallback
from .completion import SliceCompletion
from .encoded import EncodedQuery, EncodedSupport, Registration, SupportSummary, turn_back
from .cell_registration import CellRegistration, registered_similarity
from .orientation import InPlaneOrientation, MirrorCheck
from .slice_registration import align_scans, describe_slices, invert_slice_map, nearest_slices
from .matching import match_slices
from .pseudo_supports import PseudoSupports
from .refinement import SelfSupportRefinement
from .scores import leave_out, smooth_slices
from .truncated_structures import TruncatedStructures
from .upsampling import GuidedUpsampling, upsample


class FewShotInferer(Inferer):
    """Segments every slice of a query volume with the labels of support scans.

    Works in the network's frame: queries ``(1, C, H, W, D)`` come from ``preprocessing``, slices along the last axis.
    Each support scan is encoded once and kept until its files or the network's weights change; each query slice is
    encoded once for all labels.

    How query slices meet support slices:

    - by default the scans are aligned along z by their own features, ``registration`` finds where each cell lies, and
      each query slice is matched to the ``num_slices`` nearest annotated support slices, all labels at once. Where
      none of these shows a label, it cannot appear; where no support slice is near, all is background. Gives scores
      ``(1, 1 + n, H, W, D)``.
    - with ``chunks`` ``(n, D)`` and ``num_chunks`` in the query's meta data, as the published protocols prescribe,
      each label is matched alone against its background, to the support slice of the query slice's chunk, or with
      ``completion`` to the slices at the same height of the organ. Gives differences of foreground and background
      ``(1, n, H, W, D)``.

    Several support scans are matched one by one, and a label's scores are averaged over those that annotate it,
    weighted by how similar they are to the query. A label can appear in a slice where scans of half the weight show it.
    Of many, only the ``num_supports`` answer for a query that are the most similar to it.

    Unlabelled scans may stand between support and query: the support segments them once, and what is sure on them
    answers as further support scans do, see :class:`PseudoSupports`.

    Scanners turn oblique planes as they like, and files lose the angle. A query unlike a scan is therefore
    tried in quarter turns, and matched to this scan as it is most similar.

    The result is a ``MetaTensor`` with the query's meta data and ``label_values``, the values of the ``n`` labels; by
    default also ``support_similarity`` and ``support_rotation`` of the most similar scan, see :class:`Registration`,
    and ``reverse_dice``, see :meth:`measure_reverse_dice`; with ``chunks``, ``atlas_fallback``, the share of the scans
    by which each label is found by its place.

    Args:
        support: ``[{"image": path, "label": path}, …]``; a query may bring its own as a JSON string in its meta data
            under ``support``, which then counts. May be empty if :meth:`set_support` is called.
        preprocessing: transform of a support entry into the network's frame; the same as the queries'.
        labels: values to segment; ``None`` for all that the support shows.
        dataset_dir: folder to which paths of the support may be relative.
        num_supports: of the support scans that show a label, so many answer for a query: those whose slices are the
            most similar to it; ``None`` for all.
        num_slices: support slices that answer for a query slice.
        descriptor_cells: side of the grid over which a slice's features are averaged for the alignment.
        alignment: arguments of :func:`align_scans`; what is not given keeps its default. With several candidates,
            the one counts whose registered cells are the most similar to the support's.
        trial_slices: slices of the query, evenly spread, on which candidates and turns are tried.
        flip_penalty: by how much more similar its cells must be for a query to count as upside down.
        registration: finds where each query cell lies on the support; ``None`` to leave every cell in its place.
        in_plane_orientation: quarter turns in the plane that are tried where a query is unlike a scan; ``None`` for
            none. They need a registration, odd ones a square frame too.
        mirror_check: notices a query that is mirrored against the support, and may turn it back; ``None`` for nothing.
            It needs a registration.
        atlas_fallback: what finds a label within a known extent by its place, where its look misleads; ``None`` for
            nothing. It needs a registration. Without a known extent, a label may be absent, and is not looked for so.
        pseudo_supports: unlabelled scans that pass the support's labels on; ``None`` for none. They need a
            registration.
        similarity_temperature: scans that are less similar by this weigh less by a factor of e.
        slice_batch_size: slices a pass through the network; memory does not depend on the number of slices.
        cache_size: encoded support scans that are kept, at least those that answer for a query.
        smoothing_mm: largest standard deviation of a Gaussian along the slice axis that smooths the scores; 0 for none.
            Slices where a label cannot appear take no part.
        smoothing_share: standard deviation for each label as a share of the height of its tallest part on the support,
            where that is less: what suits a liver would wipe out a hippocampus.
        completion: labels the slices between the annotated ones of a support scan, which then answer too; ``None`` for
            none.
        refinement: matches a query to what it is sure of itself; ``None`` for none.
        upsampling: fits the scores to the image; ``None`` for none.
        min_reverse_dice: a label whose :meth:`measure_reverse_dice` is below is taken for absent from the query.
        reverse_dice_discount: where a label wins, scores are divided by one more than this times what its reverse Dice
            lacks of 1, so that a label which does not give the support's back counts as less sure; more, if much of the
            support is completed (``completion``). Supports that annotate it share the discount like independent
            measurements, by the root of their number.
        truncated_structures: what is found at the first or last slice of a query may be the rest of a structure that
            the scan cuts off, or another one that is taken for it. A label there that is unsure and small beside its
            volume on the support, of what as many slices can show, is left out; ``None`` for none.
        memory_check: raises before a query is matched for which memory does not suffice; ``None`` for nothing.
        keep_similarity: add ``similarity`` ``(1, h, w, D)`` to the meta data, see :meth:`measure_similarity`.

    Raises:
        ValueError: for ``trial_slices`` or ``num_supports`` below 1.
        ValueError, FileNotFoundError: naming the file, when a support is unusable.
    """

    def __init__(
        self,
        support: Sequence[Mapping[str, str]] = (),
        preprocessing: Callable | None = None,
        labels: Sequence[int] | None = None,
        dataset_dir: str | os.PathLike | None = None,
        num_supports: int | None = None,
        num_slices: int = 1,
        descriptor_cells: int = 4,
        alignment: Mapping[str, Any] | None = None,
        trial_slices: int = 12,
        flip_penalty: float = 0.0,
        registration: CellRegistration | None = None,
        in_plane_orientation: InPlaneOrientation | None = None,
        mirror_check: MirrorCheck | None = None,
        atlas_fallback: AtlasFallback | None = None,
        pseudo_supports: PseudoSupports | None = None,
        similarity_temperature: float = 0.1,
        slice_batch_size: int = 8,
        cache_size: int = 8,
        smoothing_mm: float = 0.0,
        smoothing_share: float = 0.03,
        completion: SliceCompletion | None = None,
        refinement: SelfSupportRefinement | None = None,
        upsampling: GuidedUpsampling | None = None,
        min_reverse_dice: float = 0.0,
        reverse_dice_discount: float = 0.0,
        truncated_structures: TruncatedStructures | None = None,
        memory_check: MemoryCheck | None = None,
        keep_similarity: bool = False,
    ) -> None:
        super().__init__()
        if trial_slices < 1:
            raise ValueError(f"trial_slices must be at least 1, got {trial_slices}")
        if num_supports is not None and num_supports < 1:
            raise ValueError(f"num_supports must be at least 1, or None for all, got {num_supports}")
        self.support = list(support)
        self.preprocessing = preprocessing
        self.labels = list(labels) if labels is not None else None
        self.dataset_dir = dataset_dir
        self.num_supports = num_supports
        self.num_slices = num_slices
        self.descriptor_cells = descriptor_cells
        self.alignment = dict(alignment or {})
        self.trial_slices = trial_slices
        self.flip_penalty = flip_penalty
        self.registration = registration
        self.in_plane_orientation = in_plane_orientation if registration is not None else None
        self.mirror_check = mirror_check if registration is not None else None
        self.atlas_fallback = atlas_fallback
        self.pseudo_supports = pseudo_supports if registration is not None else None
        self.similarity_temperature = similarity_temperature
        self.slice_batch_size = slice_batch_size
        self.cache_size = cache_size
        self.smoothing_mm = smoothing_mm
        self.smoothing_share = smoothing_share
        self.completion = completion
        self.refinement = refinement
        self.upsampling = upsampling
        self.min_reverse_dice = min_reverse_dice
        self.reverse_dice_discount = reverse_dice_discount
        self.truncated_structures = truncated_structures
        self.memory_check = memory_check
        self.keep_similarity = keep_similarity
        self._given: list[SupportScan] = []
        self._given_pseudo_supports: list[Tensor] = []
        self._cache: OrderedDict[tuple, tuple[weakref.ref, EncodedSupport]] = OrderedDict()
        self._summaries: dict[tuple, tuple[weakref.ref, SupportSummary]] = {}
        self._pseudo_supports: OrderedDict[tuple, tuple[list[EncodedSupport], EncodedSupport | None]] = OrderedDict()
        self._lock = threading.Lock()

    def set_support(self, scans: Sequence[SupportScan]) -> None:
        """Use scans in memory instead of files; an empty sequence goes back to the files."""
        with self._lock:
            self._given = list(scans)
            self._cache.clear()
            self._summaries.clear()
            self._pseudo_supports.clear()

    def set_pseudo_supports(self, images: Sequence[Tensor]) -> None:
        """Use unlabelled scans in memory, ``(C, H, W, D)`` in the network's frame, instead of files as pseudo-supports.

        An empty sequence goes back to the files.

        Raises:
            RuntimeError: without ``pseudo_supports``, which say how many are used, or without a registration.
        """
        if self.pseudo_supports is None or self.pseudo_supports.count == 0:
            raise RuntimeError("no pseudo-supports are wanted: set num_pseudo_supports, and a registration")
        with self._lock:
            self._given_pseudo_supports = list(images)
            self._pseudo_supports.clear()

    @in_single_precision
    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> MetaTensor:
        """Segment one query.

        Args:
            inputs: ``(1, C, H, W, D)``.
            network: :class:`ALPNet`, or the TorchScript of it.
            *args: what engines pass besides; not used.
            **kwargs: as before.

        Returns:
            Scores, see the class.

        Raises:
            ValueError: for another shape, NaN in the query, or a compiled network whose engine took the meta data away.
        """
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
        name = str(_first(meta.get("filename_or_obj", "query")))
        check_volume(inputs[0], name)
        volume = inputs.as_subclass(Tensor)[0].movedim(-1, 0)  # (D, C, H, W)
        query = EncodedQuery(volume, slice_spacing(inputs), partial(self._encode, network))
        encoded, values = self._encode_nearest(network, meta.get("support"), volume.device, query)
        if self.memory_check is not None:
            shape = np.asarray(meta.get("spatial_shape", volume.shape[:1] + volume.shape[2:])).ravel().tolist()
            self.memory_check(name, shape, len(volume), len(values))
        pseudo_supports = self._encode_pseudo_supports(network, encoded, values, name, volume.device)
        meta["support_modality"] = [[scan.modality or "" for scan in encoded]]
        num_chunks, unmirrored = None, None
        if "chunks" in meta:
            chunks = torch.as_tensor(np.asarray(meta["chunks"])).reshape(len(values), -1)
            num_chunks = int(torch.as_tensor(meta["num_chunks"]).flatten()[0])
            scans = [*encoded, *pseudo_supports]
            scores, possible, answering, atlas_fallback = self._match_extents(
                network, query, scans, values, chunks, num_chunks
            )
            meta["atlas_fallback"] = atlas_fallback[None]
        else:
            placed = [(scan, self._register(network, query, scan, [scan])) for scan in encoded]
            mirrored = self._mirrored(query, placed)
            if mirrored is not None:
                meta["mirrored"] = [_plane_axis(inputs, mirrored)]
                if self.mirror_check is not None and self.mirror_check.unmirror:
                    unmirrored, query = mirrored, query.mirrored(mirrored)
                    meta["unmirrored"] = torch.tensor([1])
                    placed = [(scan, self._register(network, query, scan, [scan])) for scan in encoded]
            between = [(scan, self._register(network, query, scan, [scan])) for scan in pseudo_supports]
            scores, possible = self._match_scans(network, query, [*placed, *between], values)
            answering = [(scan, registered.support_index, registered.turn) for scan, registered in placed]
            best = max((registered for _, registered in placed), key=lambda registered: registered.similarity)
            meta["support_similarity"], meta["support_rotation"] = (
                torch.tensor([best.similarity]),
                torch.tensor([best.turn]),
            )
        if self.keep_similarity:
            telling = [entry for entry in answering if any(entry[0].annotates(value) for value in values)]
            similarity = self.measure_similarity(query, telling)
            similarity = similarity if unmirrored is None else similarity.flip(1 + unmirrored)
            meta[SIMILARITY] = similarity.movedim(0, -1)[None].cpu()
        exclusive = num_chunks is None
        scores = self._refine(network, query, scores, possible, exclusive, self._smoothing(encoded, values))
        if exclusive:
            reverse_dice = self.measure_reverse_dice(network, query, placed, values, scores)
            meta["reverse_dice"] = reverse_dice[None].cpu()
            scores = leave_out(scores, reverse_dice >= self.min_reverse_dice)
        widths = self._widths(encoded, values, num_chunks)
        scores = upsample(scores, query.volume, self.upsampling, exclusive, widths, self.slice_batch_size)
        if exclusive:
            left_out = torch.zeros(len(values), dtype=torch.bool, device=scores.device)
            if self.truncated_structures is not None:
                left_out = self.truncated_structures.find(
                    scores, encoded, values, query.spacing_mm, self.slice_batch_size
                )
            discounts = F.pad(self._discounts(encoded, values, reverse_dice), (1, 0))  # none of the background
            some = bool(left_out.any())
            for part in scores.split(self.slice_batch_size):
                if some:
                    part.copy_(leave_out(part, ~left_out))
                part /= (1 + discounts)[part.max(dim=1, keepdim=True).indices]
        elif self.atlas_fallback is not None:
            scores = scores / (1 + self.atlas_fallback.discount * atlas_fallback.to(scores))[:, None, None]
        scores = scores if unmirrored is None else scores.flip(2 + unmirrored)
        meta["label_values"] = torch.tensor([values])
        meta.pop("support", None)
        return MetaTensor(scores.movedim(0, -1)[None], meta=meta)

    def _discounts(self, encoded: Sequence[EncodedSupport], values: Sequence[int], reverse_dice: Tensor) -> Tensor:
        """Confidence discount of each label ``(n,)``, see ``reverse_dice_discount``."""
        discounts = self.reverse_dice_discount * (1 - reverse_dice)
        for row, value in enumerate(values):
            completed = [scan.completed_share for scan in encoded if scan.annotates(value)]
            if completed and self.completion is not None:
                discounts[row] += self.completion.discount * sum(completed) / len(completed)
            discounts[row] /= math.sqrt(max(len(completed), 1))
        return discounts

    def label_values(self, scans: Sequence[EncodedSupport | SupportSummary]) -> list[int]:
        """Label values of the result: the wanted ones, or all that the support shows."""
        return self.labels or sorted({value for scan in scans for value in scan.values})

    @torch.no_grad()
    def encode_support(
        self, network: nn.Module, own: Any = None, device: torch.device | str = "cpu"
    ) -> list[EncodedSupport]:
        """Encode the support scans, or take them from the cache.

        Args:
            network: the network that will match.
            own: the query's own support as a JSON string, which counts before the configured one.
            device: where the features stay.
        """
        with self._lock:
            sources = self._support_sources(own)
            return [self._cached(network, key, device, load, len(sources)) for key, load in sources.items()]

    @torch.no_grad()
    def _encode_nearest(
        self, network: nn.Module, own: Any, device: torch.device, query: EncodedQuery
    ) -> tuple[list[EncodedSupport], list[int]]:
        """The support scans that answer for a query, see ``num_supports``, and the values of all of them."""
        with self._lock:
            sources = self._support_sources(own)
            count = len(sources) if self.num_supports is None else min(self.num_supports, len(sources))
            if count == len(sources):
                encoded = [self._cached(network, key, device, load, count) for key, load in sources.items()]
                return encoded, self.label_values(encoded)
            known = [self._summary(network, key, device, load) for key, load in sources.items()]
            values = self.label_values(known)
            chosen = self._nearest(query, known, values, count)
            encoded = [
                self._cached(network, key, device, load, len(chosen))
                for index, (key, load) in enumerate(sources.items())
                if index in chosen
            ]
            return encoded, values

    def _nearest(
        self, query: EncodedQuery, known: Sequence[SupportSummary], values: Sequence[int], count: int
    ) -> set[int]:
        """Numbers of the support scans that are the most similar to a query: for each label, of those that show it."""
        descriptor = describe_slices(query.features(), self.descriptor_cells)
        alignment = {**self.alignment, "candidates": 1}
        similarities = [
            align_scans(descriptor, scan.descriptor, query.spacing_mm, scan.spacing_mm, **alignment)[0][1]
            for scan in known
        ]
        order = sorted(range(len(known)), key=lambda index: -similarities[index])
        chosen: set[int] = set()
        for value in values:
            chosen.update([index for index in order if value in known[index].values][:count])
        return chosen

    def _support_sources(self, own: Any) -> dict[tuple, Callable[[], SupportScan]]:
        """What tells each support scan from others, and how it is read."""
        if self._given:
            return {("given", index): partial(lambda s: s, scan) for index, scan in enumerate(self._given)}
        if self.preprocessing is None:
            raise RuntimeError("no support yet: call set_support first, or give support and preprocessing")
        entries = resolve_support(json.loads(_first(own)) if own is not None else self.support, self.dataset_dir)
        return {
            (
                *((entry[key], *file_state(entry[key])) for key in (IMAGE, LABEL)),
                json.dumps([entry.get(VALUES), entry.get(SLICES)]),
            ): partial(load_support, entry, self.preprocessing, self.labels)
            for entry in showing_entries(entries, self.labels)
        }

    def _summary(self, network: nn.Module, key: tuple, device: Any, load: Callable[[], SupportScan]) -> SupportSummary:
        """What tells how near a support scan is to a query, kept where the scan itself is not."""
        owner, summary = self._summaries.get(self._key(network, key, device), (None, None))
        if summary is None or owner is None or owner() is not network:
            summary = self._cached(network, key, device, load).summary()
            self._summaries[self._key(network, key, device)] = (weakref.ref(network), summary)
        return summary

    @staticmethod
    def _key(network: nn.Module, key: tuple, device: Any) -> tuple:
        """What an encoded support scan depends on."""
        weights = [*network.parameters(), *network.buffers()]
        return (*key, id(network), sum(w._version for w in weights), str(device))

    def _cached(
        self, network: nn.Module, key: tuple, device: Any, load: Callable[[], SupportScan], in_use: int = 0
    ) -> EncodedSupport:
        key = self._key(network, key, device)
        owner, encoded = self._cache.get(key, (None, None))
        if encoded is None or owner is None or owner() is not network:
            scan = load()
            slices = scan.image.movedim(-1, 0).to(device)
            features = self._encode(network, slices)
            encoded = EncodedSupport.from_scan(scan, features, self.descriptor_cells, self.slice_batch_size)
            encoded = self._complete(network, encoded)
            self._cache[key] = (weakref.ref(network), encoded)
        self._cache.move_to_end(key)
        while len(self._cache) > max(self.cache_size, in_use):
            self._cache.popitem(last=False)
        return encoded

    def _encode_pseudo_supports(
        self, network: nn.Module, encoded: list[EncodedSupport], values: list[int], query: str, device: Any
    ) -> list[EncodedSupport]:
        """Pseudo-supports of a query in a file, segmented by the support, or taken from the cache."""
        if self.pseudo_supports is None or self.pseudo_supports.count == 0:
            return []
        frame: Any = self.preprocessing
        sources: dict[tuple, Any] = {}
        if self._given_pseudo_supports:
            sources = {
                ("given", i): image for i, image in enumerate(self._given_pseudo_supports[: self.pseudo_supports.count])
            }
        elif frame is not None:
            sources = {(file, *file_state(file)): file for file in self.pseudo_supports.choose(query)}
        found = []
        with self._lock:
            for source, image in sources.items():
                # supports are encoded anew for other weights, so that they stand for the network, too; the entry keeps
                # them, so that their numbers are nobody else's
                key = (source, *map(id, encoded), *values)
                if key not in self._pseudo_supports:
                    if isinstance(image, str):
                        image = frame({IMAGE: image})[IMAGE]
                    pseudo_support = self._encode_pseudo_support(
                        network, self.pseudo_supports, encoded, values, image.to(device)
                    )
                    self._pseudo_supports[key] = (encoded, pseudo_support)
                self._pseudo_supports.move_to_end(key)
                found.append(self._pseudo_supports[key][1])
            while len(self._pseudo_supports) > max(self.cache_size, len(sources)):
                self._pseudo_supports.popitem(last=False)
        return [pseudo_support for pseudo_support in found if pseudo_support is not None]

    @torch.no_grad()
    def _encode_pseudo_support(
        self,
        network: nn.Module,
        pseudo_supports: PseudoSupports,
        encoded: Sequence[EncodedSupport],
        values: list[int],
        image: Tensor,
    ) -> EncodedSupport | None:
        """A pseudo-support, segmented by the support; ``None`` if it passes nothing on."""
        volume = image.as_subclass(Tensor).movedim(-1, 0)
        query = EncodedQuery(volume, slice_spacing(image), partial(self._encode, network))
        placed = [(scan, self._register(network, query, scan, [scan])) for scan in encoded]
        scores, possible = self._match_scans(network, query, placed, values)
        scores = self._refine(network, query, scores, possible, True, self._smoothing(encoded, values))
        reverse_dice = self.measure_reverse_dice(network, query, placed, values, scores)
        features = query.features()
        descriptor = describe_slices(features, self.descriptor_cells)
        return pseudo_supports.encode(features, query.spacing_mm, values, scores, reverse_dice, descriptor)

    def _smoothing(self, encoded: Sequence[EncodedSupport], values: Sequence[int]) -> Tensor:
        """Standard deviation in mm along the slices by which each label's scores are smoothed ``(n,)``."""
        widths = []
        for value in values:
            heights = [scan.height_mm(value) for scan in encoded if value in scan.values]
            widths.append(min(self.smoothing_mm, self.smoothing_share * sum(heights) / max(len(heights), 1)))
        return torch.tensor(widths)

    def _refine(
        self,
        network: nn.Module,
        query: EncodedQuery,
        scores: Tensor,
        possible: Tensor,
        exclusive: bool,
        smoothing_mm: Tensor,
    ) -> Tensor:
        """Smooth what was matched, each label by its own width, and match the query to what it is sure of itself."""

        def smooth(scores: Tensor) -> Tensor:
            return _smooth(scores, possible, exclusive, smoothing_mm / query.spacing_mm)

        scores = smooth(scores)
        if self.refinement is None:
            return scores
        features = query.features()
        return self.refinement(network, features, scores, possible, exclusive, smooth, self.slice_batch_size)

    def _encode(self, network: nn.Module, slices: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.encode(batch) for batch in slices.split(self.slice_batch_size)])

    def _register(
        self, network: nn.Module, query: EncodedQuery, scan: EncodedSupport, views: Sequence[EncodedSupport]
    ) -> Registration:
        """Where the query lies on a support scan, turned in the plane if it is more similar and agrees better so.

        Args:
            network: the network that matches.
            query: the query.
            scan: the support scan.
            views: the scan as it is annotated, by whose labels the reverse Dice is measured.
        """
        upright = self._register_features(query.features(), scan, query.spacing_mm)
        if self.in_plane_orientation is None or upright.similarity >= self.in_plane_orientation.below:
            return upright
        height, width = query.volume.shape[-2:]
        step = math.ceil(len(query.volume) / self.trial_slices)
        turns = [0, *(turn for turn in self.in_plane_orientation.turns if height == width or turn % 2 == 0)]
        parts = {turn: query.part(turn, step) for turn in turns}
        tried = {turn: self._register_features(part.features(), scan, part.spacing_mm) for turn, part in parts.items()}

        def reverse_dice(turn: int) -> float:
            found = [self._rate(network, parts[turn], view, tried[turn]) for view in views]
            return sum(found) / max(len(found), 1)

        turn = self.in_plane_orientation.choose(
            upright.similarity, {turn: found.similarity for turn, found in tried.items()}, reverse_dice
        )
        if turn == 0:
            return upright
        return self._register_features(query.features(turn), scan, query.spacing_mm)._replace(turn=turn)

    def _rate(self, network: nn.Module, query: EncodedQuery, view: EncodedSupport, registered: Registration) -> float:
        """Mean reverse Dice of the labels of a scan with a query that lies so on it."""
        registered = registered._replace(
            support_index=nearest_slices(registered.positions, view.answering, self.num_slices), turn=0
        )
        scores, possible = self._match_scans(network, query, [(view, registered)], view.values)
        scores = _smooth(scores, possible, True, self._smoothing([view], view.values) / query.spacing_mm)
        return float(self.measure_reverse_dice(network, query, [(view, registered)], view.values, scores).mean())

    def _mirrored(self, query: EncodedQuery, placed: Sequence[tuple[EncodedSupport, Registration]]) -> int | None:
        """Axis of the plane along which a query is mirrored against the most similar scan; ``None`` if it is not."""
        if self.mirror_check is None:
            return None
        scan, registered = max(placed, key=lambda one: one[1].similarity)
        step = math.ceil(len(query.volume) / self.mirror_check.slices)

        def similarity(features: Tensor) -> float:
            slice_map, spacing_mm = registered.positions[None, ::step], query.spacing_mm * step
            return self._register_on_slice_maps(features, scan, slice_map, spacing_mm)[0].similarity

        reflected = {axis: similarity(query.part(registered.turn, step, axis).features()) for axis in (0, 1)}
        return self.mirror_check.choose({-1: similarity(query.features(registered.turn)[::step]), **reflected})

    def _register_features(self, features: Tensor, scan: EncodedSupport, spacing_mm: float) -> Registration:
        """Where slices lie on a support scan: of the likely slice maps along z, the one whose cells match best.

        Args:
            features: ``(D, channels, h, w)``.
            scan: the support scan.
            spacing_mm: distance of the slices.
        """
        descriptor = describe_slices(features, self.descriptor_cells)
        slice_maps = align_scans(descriptor, scan.descriptor, spacing_mm, scan.spacing_mm, **self.alignment)
        if self.registration is None:
            slice_map, similarity = slice_maps[0]
            return self._register_on_slice_maps(features, scan, slice_map[None], spacing_mm)[0]._replace(
                similarity=similarity
            )

        maps = torch.stack([slice_map for slice_map, _ in slice_maps])
        step = math.ceil(len(features) / self.trial_slices) if len(maps) > 1 else 1
        tried = self._register_on_slice_maps(features[::step], scan, maps[:, ::step], spacing_mm * step)
        rated = [
            found.similarity - self.flip_penalty * float(slice_map[-1] < slice_map[0])
            for found, slice_map in zip(tried, maps)
        ]
        best = rated.index(max(rated))
        if step == 1:
            return tried[best]
        return self._register_on_slice_maps(features, scan, maps[best : best + 1], spacing_mm)[0]

    def _register_on_slice_maps(
        self, features: Tensor, scan: EncodedSupport, maps: Tensor, spacing_mm: float, rate: bool = True
    ) -> list[Registration]:
        """Where slices lie on a scan by each of several maps ``(L, D)`` of their rough positions along z.

        Without ``rate``, how similar they are is left open.
        """
        if self.registration is None:
            return [
                Registration(nearest_slices(positions, scan.answering, self.num_slices), None, 0.0, positions)
                for positions in maps
            ]
        placed = self.registration(features, scan.features, maps, spacing_mm, scan.spacing_mm)
        heights = (placed[:, :, 2].flatten(2).mean(dim=2) / (scan.spacing_mm / 10)).cpu()
        unit = normalize(scan.features, 1) if rate else None
        return [
            Registration(
                nearest_slices(positions, scan.answering, self.num_slices),
                coordinates,
                0.0 if unit is None else registered_similarity(features, unit, coordinates, scan.spacing_mm),
                positions,
            )
            for coordinates, positions in zip(placed, heights)
        ]

    def _widths(self, encoded: Sequence[EncodedSupport], values: Sequence[int], num_chunks: int | None) -> list[float]:
        """Width of each label in pixels on the annotated slices of the support scans; 0 where none shows it."""
        widths = []
        for value in values:
            showing = [scan for scan in encoded if value in scan.values]
            if num_chunks:
                showing = [scan.only(value, support_slices(scan.extent(value), num_chunks)) for scan in showing]
            widths.append(sum(scan.width(value) for scan in showing) / max(len(showing), 1))
        return widths

    def _match_scans(
        self,
        network: nn.Module,
        query: EncodedQuery,
        placed: Sequence[tuple[EncodedSupport, Registration]],
        values: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(D, 1 + n, h, w)`` relative to the background's, and where each class can appear ``(D, 1 + n)``.

        All labels that a scan annotates are exclusive in one match with it. A scan that does not annotate a label has
        no say about it: there, its organ lies unmarked in what looks like background.
        """
        features = query.features()
        total = features.new_zeros(len(features), len(values), *features.shape[-2:])
        weight = features.new_zeros(len(features), len(values))
        asked = features.new_zeros(len(values))
        best = max(registered.similarity for _, registered in placed)
        for scan, registered in placed:
            rows = [row for row, value in enumerate(values) if scan.annotates(value)]
            if not rows:
                continue
            wanted, turned = [values[row] for row in rows], query.features(registered.turn)
            scores, shown = match_slices(network, turned, scan, wanted, registered, self.slice_batch_size)
            scores = turn_back(scores, registered.turn)
            share = math.exp((registered.similarity - best) / self.similarity_temperature)
            total[:, rows] += share * shown[..., None, None] * (scores[:, 1:] - scores[:, :1])
            weight[:, rows] += share * shown
            asked[rows] += share
        scores = total / weight.clamp(min=1e-12)[..., None, None]
        possible = (weight > 0) & (weight >= asked / 2)
        return F.pad(scores, (0, 0, 0, 0, 1, 0)), F.pad(possible, (1, 0), value=True)

    def _match_extents(
        self,
        network: nn.Module,
        query: EncodedQuery,
        scans: Sequence[EncodedSupport],
        values: Sequence[int],
        chunks: Tensor,
        num_chunks: int,
    ) -> tuple[Tensor, Tensor, list[tuple[EncodedSupport, Tensor, int]], Tensor]:
        """Match each label alone within its known extent.

        Returns:
            Foreground less background ``(D, n, h, w)``, where an extent is given ``(D, n)``, for each labelled scan
            the slices ``(D, n * K)`` that answer, and the query's turn, and for each label the share of the labelled
            scans by which it is found by its place ``(n,)``.
        """
        features = query.features()
        out = features.new_zeros(len(features), len(values), *features.shape[-2:])
        weight = features.new_zeros(len(features), len(values))
        answering: list[tuple[EncodedSupport, Tensor, int]] = []
        atlas_fallback, asking = torch.zeros(len(values)), torch.zeros(len(values))
        complete = partial(self._complete, network)
        for scan in scans:
            views = {value: scan.as_published(value, num_chunks, complete) for value in values if value in scan.values}
            turn = self._register(network, query, scan, [*views.values()]).turn if self.in_plane_orientation else 0
            turned = query.features(turn)
            asked = torch.full((len(features), len(values), self.num_slices), -1)
            for row, value in enumerate(values):
                given = (chunks[row] >= 0).nonzero()[:, 0]
                if value not in views or not len(given):
                    continue
                view = views[value]
                registered = self._register_in_extent(turned, view, chunks[row], num_chunks, query.spacing_mm)
                scores, _ = match_slices(network, turned[given], view, [value], registered, self.slice_batch_size)
                own = scores[:, 1] - scores[:, 0]
                asking[row] += scan.labelled
                if self.atlas_fallback is not None and registered.coordinates is not None and scan.labelled:
                    batch_size = self.slice_batch_size
                    found = self.atlas_fallback(network, turned[given], own, view, registered.coordinates, batch_size)
                    if found is not None:
                        own, atlas_fallback[row] = found, atlas_fallback[row] + 1
                out[given, row] += turn_back(own[:, None], turn)[:, 0]
                weight[given, row] += 1
                asked[given, row, : registered.support_index.shape[1]] = registered.support_index
            if scan.labelled:
                answering.append((scan, asked.flatten(1), turn))
        return out / weight.clamp(min=1)[..., None, None], weight > 0, answering, atlas_fallback / asking.clamp(min=1)

    def _complete(self, network: nn.Module, scan: EncodedSupport) -> EncodedSupport:
        return (
            scan
            if self.completion is None
            else self.completion(network, scan, self.registration, self.slice_batch_size)
        )

    def _register_in_extent(
        self, features: Tensor, view: EncodedSupport, chunks: Tensor, num_chunks: int, spacing_mm: float
    ) -> Registration:
        """Where the query's slices of a known extent lie on a scan, see :meth:`EncodedSupport.as_published`.

        Completed, the scan answers with the slices at the same height of the organ; as it is, with the slice of the
        query slice's chunk.
        """
        given = (chunks >= 0).nonzero()[:, 0]
        shown = view.extent(view.values[0])
        if self.completion is not None:
            first, last = shown[0], shown[-1]
            height = (given - given[0] + 0.5) / (given[-1] - given[0] + 1)
            positions = first - 0.5 + height * (last - first + 1)
            positions = positions.clamp(float(view.answering[0]), float(view.answering[-1]))
            chosen = nearest_slices(positions, view.answering, self.num_slices)
        else:
            chosen = torch.tensor(support_slices(shown, num_chunks))[chunks[given]][:, None]
            positions = chosen[:, 0].float()
        coordinates = None
        if self.registration is not None:
            coordinates = self.registration(features[given], view.features, positions, spacing_mm, view.spacing_mm)
        return Registration(chosen, coordinates, 0.0, positions)

    @torch.no_grad()
    def measure_similarity(
        self, query: EncodedQuery, answering: Sequence[tuple[EncodedSupport, Tensor, int]]
    ) -> Tensor:
        """How similar the most similar support cell is to each query cell, whatever its label.

        Where it is low, the support has nothing like the query, and what the network says there is a guess.

        Args:
            query: the query.
            answering: each scan with its slices ``(D, K)`` that answer for the query's, -1 for none, and the query's
                turn.

        Returns:
            ``(D, h, w)``: the largest cosine, 0 if that is negative or no slice answers.
        """
        upright = query.features()
        best = upright.new_zeros(len(upright), 1, *upright.shape[-2:])
        for scan, chosen, turn in answering:
            cells = normalize(scan.features, 1).flatten(2)  # (Ds, channels, h * w)
            for part in torch.arange(len(upright)).split(self.slice_batch_size):
                turned = normalize(query.features(turn)[part], 1)
                cosines = turned.new_zeros(len(part), 1, *turned.shape[-2:]).flatten(2)
                for index in chosen[part].to(turned.device).unbind(dim=1):
                    found = torch.bmm(turned.flatten(2).transpose(1, 2), cells[index.clamp(min=0)]).amax(dim=2)
                    cosines = torch.where(index[:, None, None] >= 0, cosines.maximum(found[:, None]), cosines)
                best[part] = best[part].maximum(turn_back(cosines.reshape(len(part), 1, *turned.shape[-2:]), turn))
        return best[:, 0].clamp(max=1)

    @torch.no_grad()
    def measure_reverse_dice(
        self,
        network: nn.Module,
        query: EncodedQuery,
        placed: Sequence[tuple[EncodedSupport, Registration]],
        values: Sequence[int],
        scores: Tensor,
    ) -> Tensor:
        """How well the prediction, as a support itself, gives the support's labels back: an estimate without truth.

        The support scans are placed on the query by the inverse of the slice map that the query has on them, and their
        annotated slices are segmented by the prediction just as the query was by them. A slice that the query does
        not reach does not count, so that half an organ may agree, and one out of view cannot.

        Args:
            network: the network that matches.
            query: the query.
            placed: the support scans and where the query lies on them.
            values: the ``n`` labels.
            scores: scores ``(D, 1 + n, h, w)`` of the prediction.

        Returns:
            Dice of each label ``(n,)`` on the feature grid, of the best scan that shows it; 0 if none does.

        Reference: reverse classification accuracy, Valindria et al., IEEE TMI 36(8), 2017,
        https://doi.org/10.1109/TMI.2017.2665165.
        """
        best = scores.new_zeros(len(values))
        for scan, registered in placed:
            features, turned = query.features(registered.turn), scores.rot90(registered.turn, (2, 3))
            predicted = EncodedSupport.from_prediction(features, query.spacing_mm, values, turned)
            slice_map = invert_slice_map(registered.positions, len(scan.features), query.spacing_mm / scan.spacing_mm)
            [back] = self._register_on_slice_maps(
                scan.features, predicted, slice_map[None], scan.spacing_mm, rate=False
            )
            own = scan.slices[back.support_index[scan.slices, 0] >= 0]
            if not len(own):
                continue
            coordinates = back.coordinates[own] if back.coordinates is not None else None
            back = Registration(back.support_index[own], coordinates, back.similarity, back.positions[own])
            found, shown = match_slices(network, scan.features[own], predicted, values, back, self.slice_batch_size)
            found = smooth_slices(found, F.pad(shown, (1, 0), value=True), 0.0)
            given = F.one_hot(found.max(dim=1).indices, 1 + len(values)).movedim(-1, 1)[:, 1:].bool()
            truth = scan.wanted(values)[0][own] > 0.5
            sizes = given.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
            dice = 2 * (given & truth).sum(dim=(0, 2, 3)) / sizes.clamp(min=1)
            best = torch.where(scan.wanted(values)[1].any(dim=0), best.maximum(dice), best)
        return best


def _smooth(scores: Tensor, possible: Tensor, exclusive: bool, sigmas: Tensor) -> Tensor:
    """Smooth each label along the slices, exclusive ones as they differ from the background, which is channel 0."""
    if exclusive:
        scores, sigmas = scores - scores[:, :1], F.pad(sigmas, (1, 0))
    return smooth_slices(scores, possible, sigmas)


def _plane_axis(inputs: Tensor, axis: int) -> str:
    """What an axis of the slices' plane (0 or 1) of ``(1, C, H, W, D)`` runs along in a body."""
    affine = np.asarray(getattr(inputs, "affine", np.eye(4)), dtype=float).reshape(-1, 4, 4)[0]
    return {"R": "left-right", "L": "left-right", "A": "front-back", "P": "front-back"}.get(
        aff2axcodes(affine)[axis], "head-foot"
    )


def _first(value: Any) -> Any:
    """The entry of a collated batch of one, or the value itself."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
