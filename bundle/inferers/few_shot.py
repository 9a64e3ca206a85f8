"""Segment whole volumes by a support that is encoded once."""

from __future__ import annotations

import copy
import json
import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from ..checks import check_volume
from ..data.protocol import support_slices
from ..data.support import SLICES, VALUES, SupportScan, load_support, resolve_support, slice_spacing
from ..identity import file_state
from ..keys import IMAGE, LABEL, SIMILARITY
from ..networks.blocks.prototypes import normalize
from .location import CellLocator, align_scans, describe_slices, located_similarity, nearest_slices
from .refine import margins, smooth_slices, upsample_scores


class EncodedSupport:
    """Features and labels of one support scan, kept between queries.

    Attributes:
        features: ``(Ds, D, h, w)``.
        label: ``(Ds, H, W)`` label map.
        description: ``(Ds, F)``, see :func:`describe_slices`.
        spacing_mm: distance of the slices.
        values: the ``V`` label values that occur.
        annotates: whether the scan says where a value is, see :meth:`SupportScan.annotates`.
        slices: numbers of the annotated slices ``(A,)``; the others are no background.
        answering: numbers of the slices that answer queries: the annotated ones and those that were filled in.
        foreground: share of each label in the cells ``(Ds, V, h, w)``.
        background: share of what has no label ``(Ds, h, w)``.
        shows: which labels a slice shows ``(Ds, V)``.
    """

    def __init__(self, scan: SupportScan, features: Tensor, description_cells: int = 4) -> None:
        self.features = features
        self.label = scan.label.movedim(-1, 0).to(features.device)
        self.description = describe_slices(features, description_cells)
        self.spacing_mm = scan.spacing_mm
        self.values = scan.values
        self.annotates = scan.annotates
        self.slices = self.answering = torch.tensor(scan.annotated_slices)
        grid = features.shape[-2:]
        shares, shown = [], []
        for labels in self.label.split(16):  # as floats, whole volumes would be large
            masks = torch.stack([labels == value for value in [0, *self.values]], dim=1)
            shares.append(_to_grid(masks.float(), grid))
            shown.append(masks[:, 1:].flatten(2).any(dim=2))
        self.background, self.foreground = torch.cat(shares)[:, 0], torch.cat(shares)[:, 1:]
        self.shows = torch.cat(shown)
        self._views: dict[tuple[int, int], EncodedSupport] = {}

    def wanted(self, values: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``foreground`` ``(Ds, n, h, w)`` and ``shows`` ``(Ds, n)`` of some values; nothing where one is not here."""
        foreground = self.foreground.new_zeros(len(self.features), len(values), *self.foreground.shape[-2:])
        shows = self.shows.new_zeros(len(self.features), len(values))
        for row, value in enumerate(values):
            if value in self.values:
                own = self.values.index(value)
                foreground[:, row], shows[:, row] = self.foreground[:, own], self.shows[:, own]
        return foreground, shows

    def extent(self, value: int) -> list[int]:
        """Numbers of the slices whose label shows a value; not those that were filled in."""
        return self.label.eq(value).flatten(1).any(dim=1).nonzero()[:, 0].tolist()

    def only(self, value: int, slices: Sequence[int]) -> EncodedSupport:
        """The same scan with one label against all else, annotated on some of the slices."""
        view = copy.copy(self)
        row = self.values.index(value)
        view.values = [value]
        view.slices = view.answering = torch.tensor(sorted(set(slices)))
        view.foreground, view.shows = self.foreground[:, row : row + 1], self.shows[:, row : row + 1]
        view.background = 1 - view.foreground[:, 0]
        return view


class Placement(NamedTuple):
    """Where a query lies on one support scan.

    Attributes:
        chosen: support slices ``(D, K)`` that answer for each query slice; -1 for none.
        places: ``(D, 3, h, w)``, see :class:`CellLocator`; ``None`` where every cell stays in its place.
        fit: how similar the located cells are, in -1..1; without a locator, the aligned slices.
        positions: the query slices' positions ``(D,)``, in units of the support's slices.
    """

    chosen: Tensor
    places: Tensor | None
    fit: float
    positions: Tensor


class FewShotInferer(Inferer):
    """Segments every slice of a query volume with the labels of support scans.

    Works in the network's frame: queries ``(1, C, H, W, D)`` come from ``preprocessing``, slices along the last axis.
    Each support scan is encoded once and kept until its files or the network's weights change; each query slice is
    encoded once for all labels.

    How query slices meet support slices:

    - by default the scans are aligned along z by their own features, ``locator`` finds where each cell lies, and
      each query slice is matched to the ``num_slices`` nearest annotated support slices, all labels at once. Where
      none of these shows a label, it cannot appear; where no support slice is near, all is background. Gives scores
      ``(1, 1 + n, H, W, D)``.
    - with ``chunks`` ``(n, D)`` and ``num_chunks`` in the query's meta data, as the published protocols prescribe,
      each label is matched alone against its background, to the support slice of the query slice's chunk, or with
      ``fill_slices`` to the slices at the same height of the organ. Gives differences of foreground and background
      ``(1, n, H, W, D)``.

    Several support scans are matched one by one, and a label's scores are averaged over those that annotate it,
    weighted by how well they fit the query. A label can appear in a slice where scans of half the weight show it.

    The result is a ``MetaTensor`` with the query's meta data and ``label_values``, the values of the ``n`` labels; by
    default also ``support_fit``, see :class:`Placement`, and ``agreement``, see :meth:`measure_agreement`.

    Args:
        support: ``[{"image": path, "label": path}, …]``; a query may bring its own as a JSON string in its meta data
            under ``support``, which then counts. May be empty if :meth:`set_support` is called.
        preprocessing: transform of a support entry into the network's frame; the same as the queries'.
        labels: values to segment; ``None`` for all that the support shows.
        dataset_dir: folder to which paths of the support may be relative.
        num_slices: support slices that answer for a query slice.
        description_cells: side of the grid over which a slice's features are averaged for the alignment.
        alignment: arguments of :func:`align_scans`; what is not given keeps its default. With several candidates,
            the one counts whose located cells are the most similar to the support's.
        locator: finds where each query cell lies on the support; ``None`` to leave every cell in its place.
        fit_temperature: scans that fit less by this weigh less by a factor of e.
        slice_batch_size: slices a pass through the network; memory does not depend on the number of slices.
        cache_size: encoded support scans that are kept.
        smoothing_mm: standard deviation of a Gaussian along the slice axis that smooths the scores; 0 for none.
            Slices where a label cannot appear take no part.
        num_refinements: how often the scores are averaged with those that the query's own confident cells give, as
            support of the same and the two neighboring slices.
        confident_margin: by how much a class must win in a cell for the cell to count as confident.
        fill_slices: label the slices between the annotated ones of a support scan by the nearest of these, where
            that is confident, and let them answer too.
        guided_radius_px, guided_epsilon: guided filter that fits the scores to the image, see
            :func:`upsample_scores`; a radius of 0 leaves it out.
        score_reach: scores beyond it are as certain as scores can be, for the guided filter.
        min_agreement: a label whose :meth:`measure_agreement` is below is taken for absent from the query.
        keep_similarity: add ``similarity`` ``(1, h, w, D)`` to the meta data, see :meth:`measure_similarity`.

    Raises:
        ValueError, FileNotFoundError: naming the file, when a support is unusable.
    """

    def __init__(
        self,
        support: Sequence[Mapping[str, str]] = (),
        preprocessing: Callable | None = None,
        labels: Sequence[int] | None = None,
        dataset_dir: str | os.PathLike | None = None,
        num_slices: int = 1,
        description_cells: int = 4,
        alignment: Mapping[str, Any] | None = None,
        locator: CellLocator | None = None,
        fit_temperature: float = 0.1,
        slice_batch_size: int = 8,
        cache_size: int = 8,
        smoothing_mm: float = 0.0,
        num_refinements: int = 0,
        confident_margin: float = 1.0,
        fill_slices: bool = False,
        guided_radius_px: int = 0,
        guided_epsilon: float = 0.02,
        score_reach: float = 2.0,
        min_agreement: float = 0.0,
        keep_similarity: bool = False,
    ) -> None:
        super().__init__()
        self.support = list(support)
        self.preprocessing = preprocessing
        self.labels = list(labels) if labels is not None else None
        self.dataset_dir = dataset_dir
        self.num_slices = num_slices
        self.description_cells = description_cells
        self.alignment = dict(alignment or {})
        self.locator = locator
        self.fit_temperature = fit_temperature
        self.slice_batch_size = slice_batch_size
        self.cache_size = cache_size
        self.smoothing_mm = smoothing_mm
        self.num_refinements = num_refinements
        self.confident_margin = confident_margin
        self.fill_slices = fill_slices
        self.guided_radius_px = guided_radius_px
        self.guided_epsilon = guided_epsilon
        self.score_reach = score_reach
        self.min_agreement = min_agreement
        self.keep_similarity = keep_similarity
        self._given: list[SupportScan] = []
        self._cache: OrderedDict[tuple, tuple[weakref.ref, EncodedSupport]] = OrderedDict()
        self._lock = threading.Lock()

    def set_support(self, scans: Sequence[SupportScan]) -> None:
        """Use scans in memory instead of files; an empty sequence goes back to the files."""
        with self._lock:
            self._given = list(scans)
            self._cache.clear()

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
            ValueError: for another shape, or NaN in the query.
        """
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
        volume = inputs.as_subclass(Tensor)[0].movedim(-1, 0)  # (D, C, H, W)
        encoded = self.encode_support(network, meta.get("support"), volume.device)
        values = self.label_values(encoded)
        features = self._encode(network, volume)
        spacing_mm = slice_spacing(inputs)
        if "chunks" in meta:
            chunks = torch.as_tensor(np.asarray(meta["chunks"])).reshape(len(values), -1)
            num_chunks = int(torch.as_tensor(meta["num_chunks"]).flatten()[0])
            scores, possible, answering = self._match_extents(
                network, features, encoded, values, chunks, num_chunks, spacing_mm
            )
        else:
            placed = [(scan, self._place(features, scan, spacing_mm)) for scan in encoded]
            scores, possible = self._match_scans(network, features, placed, values)
            answering = [(scan, placement.chosen) for scan, placement in placed]
            meta["support_fit"] = torch.tensor([max(placement.fit for _, placement in placed)])
        if self.keep_similarity:
            telling = [(scan, chosen) for scan, chosen in answering if any(scan.annotates(v) for v in values)]
            meta[SIMILARITY] = self.measure_similarity(features, telling).movedim(0, -1)[None].cpu()
        compete, sigma = "chunks" not in meta, self.smoothing_mm / spacing_mm
        scores = smooth_slices(scores, possible, sigma)
        for _ in range(self.num_refinements):
            scores = (scores + self._match_itself(network, features, scores, possible, compete)) / 2
            scores = smooth_slices(scores, possible, sigma)
        if compete:
            agreement = self.measure_agreement(network, features, placed, values, scores)
            meta["agreement"] = agreement[None].cpu()
            kept = F.pad(agreement >= self.min_agreement, (1, 0), value=True)
            won, winner = scores.max(dim=1)
            scores = smooth_slices(scores, possible & kept, 0.0)
            # what looked like an absent label is no other label either
            scores[:, 0] = torch.where(kept[winner], scores[:, 0], won)
        parts = zip(scores.split(self.slice_batch_size), volume.split(self.slice_batch_size))
        scores = torch.cat(
            [
                upsample_scores(part, images, compete, self.guided_radius_px, self.guided_epsilon, self.score_reach)
                for part, images in parts
            ]
        )
        meta["label_values"] = torch.tensor([values])
        meta.pop("support", None)
        return MetaTensor(scores.movedim(0, -1)[None], meta=meta, affine=getattr(inputs, "affine", None))

    def label_values(self, encoded: Sequence[EncodedSupport]) -> list[int]:
        """Label values of the result: the wanted ones, or all that the support shows."""
        return self.labels or sorted({value for scan in encoded for value in scan.values})

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
            if self._given:
                return [
                    self._cached(network, ("given", index), device, partial(lambda s: s, scan), len(self._given))
                    for index, scan in enumerate(self._given)
                ]
            if self.preprocessing is None:
                raise RuntimeError("no support yet: call set_support first, or give support and preprocessing")
            entries = json.loads(_first(own)) if own is not None else self.support
            return [
                self._cached(
                    network,
                    (
                        *((entry[key], *file_state(entry[key])) for key in (IMAGE, LABEL)),
                        json.dumps([entry.get(VALUES), entry.get(SLICES)]),
                    ),
                    device,
                    partial(load_support, entry, self.preprocessing, self.labels),
                    len(entries),
                )
                for entry in resolve_support(entries, self.dataset_dir)
            ]

    def _cached(
        self, network: nn.Module, key: tuple, device: Any, load: Callable[[], SupportScan], in_use: int = 0
    ) -> EncodedSupport:
        weights = [*network.parameters(), *network.buffers()]
        key = (*key, id(network), sum(w._version for w in weights), str(device))
        owner, encoded = self._cache.get(key, (None, None))
        if encoded is None or owner is None or owner() is not network:
            scan = load()
            slices = scan.image.movedim(-1, 0).to(device)
            encoded = EncodedSupport(scan, self._encode(network, slices), self.description_cells)
            if self.fill_slices:
                encoded = self._fill(network, encoded)
            self._cache[key] = (weakref.ref(network), encoded)
        self._cache.move_to_end(key)
        while len(self._cache) > max(self.cache_size, len(self.support), in_use):
            self._cache.popitem(last=False)
        return encoded

    def _encode(self, network: nn.Module, slices: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.encode(batch) for batch in slices.split(self.slice_batch_size)])

    def _place(self, features: Tensor, scan: EncodedSupport, spacing_mm: float) -> Placement:
        """Where the query lies on a support scan: of the likely lines along z, the one whose cells match best."""
        description = describe_slices(features, self.description_cells)
        lines = align_scans(description, scan.description, spacing_mm, scan.spacing_mm, **self.alignment)
        positions, fit = lines[0]
        places = None
        if self.locator is not None:
            located = [self.locator(features, scan.features, line, spacing_mm, scan.spacing_mm) for line, _ in lines]
            fits = [located_similarity(features, scan.features, found, scan.spacing_mm) for found in located]
            fit = max(fits)
            places = located[fits.index(fit)]
            positions = places[:, 2].flatten(1).mean(dim=1) / (scan.spacing_mm / 10)
        positions = positions.cpu()
        return Placement(nearest_slices(positions, scan.answering, self.num_slices), places, fit, positions)

    def _match_scans(
        self,
        network: nn.Module,
        features: Tensor,
        placed: Sequence[tuple[EncodedSupport, Placement]],
        values: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(D, 1 + n, h, w)`` relative to the background's, and where each class can appear ``(D, 1 + n)``.

        All labels that a scan annotates compete in one match with it. A scan that does not annotate a label has no
        say about it: there, its organ lies unmarked in what looks like background.
        """
        total = features.new_zeros(len(features), len(values), *features.shape[-2:])
        weight = features.new_zeros(len(features), len(values))
        asked = features.new_zeros(len(values))
        best = max(placement.fit for _, placement in placed)
        for scan, placement in placed:
            rows = [row for row, value in enumerate(values) if scan.annotates(value)]
            if not rows:
                continue
            scores, shown = self._match_slices(network, features, scan, [values[row] for row in rows], placement)
            share = math.exp((placement.fit - best) / self.fit_temperature)
            total[:, rows] += share * shown[..., None, None] * (scores[:, 1:] - scores[:, :1])
            weight[:, rows] += share * shown
            asked[rows] += share
        scores = total / weight.clamp(min=1e-12)[..., None, None]
        possible = (weight > 0) & (weight >= asked / 2)
        return F.pad(scores, (0, 0, 0, 0, 1, 0)), F.pad(possible, (1, 0), value=True)

    def _match_slices(
        self, network: nn.Module, features: Tensor, scan: EncodedSupport, values: Sequence[int], placement: Placement
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(D, 1 + n, h, w)`` by one scan, and which labels the slices that answer show ``(D, n)``."""
        foreground, shows = scan.wanted(values)
        chosen = placement.chosen.to(features.device)
        scores, shown = [], []
        for part in torch.arange(len(features)).split(max(1, self.slice_batch_size // self.num_slices)):
            index = chosen[part].clamp(min=0)  # (b, K)
            known = (chosen[part] >= 0)[..., None, None]
            masks = (foreground[index] * known[..., None]).transpose(1, 2)  # (b, n, K, h, w)
            places = depths = None
            if placement.places is not None:
                places, depths = placement.places[part], index.float() * (scan.spacing_mm / 10)
            scores.append(
                network.match(
                    features[part],
                    scan.features[index],
                    masks.flatten(1, 2),
                    scan.background[index] * known,
                    places,
                    depths,
                )
            )
            shown.append((shows[index] & known[..., 0]).any(dim=1))
        return torch.cat(scores), torch.cat(shown)

    def _match_extents(
        self,
        network: nn.Module,
        features: Tensor,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
        chunks: Tensor,
        num_chunks: int,
        spacing_mm: float,
    ) -> tuple[Tensor, Tensor, list[tuple[EncodedSupport, Tensor]]]:
        """Match each label alone within its known extent.

        Returns:
            Foreground less background ``(D, n, h, w)``, where an extent is given ``(D, n)``, and for each scan the
            slices ``(D, n * K)`` that answer.
        """
        out = features.new_zeros(len(features), len(values), *features.shape[-2:])
        weight = features.new_zeros(len(features), len(values))
        answering = []
        for scan in encoded:
            asked = torch.full((len(features), len(values), self.num_slices), -1)
            for row, value in enumerate(values):
                given = (chunks[row] >= 0).nonzero()[:, 0]
                if value not in scan.values or not len(given):
                    continue
                view = self._view(network, scan, value, num_chunks)
                placement = self._place_in_extent(features, view, chunks[row], num_chunks, spacing_mm)
                scores, _ = self._match_slices(network, features[given], view, [value], placement)
                out[given, row] += scores[:, 1] - scores[:, 0]
                weight[given, row] += 1
                asked[given, row, : placement.chosen.shape[1]] = placement.chosen
            answering.append((scan, asked.flatten(1)))
        return out / weight.clamp(min=1)[..., None, None], weight > 0, answering

    def _view(self, network: nn.Module, scan: EncodedSupport, value: int, num_chunks: int) -> EncodedSupport:
        """A scan as the published protocols annotate it: one label, on the middle slice of each chunk."""
        key = (value, num_chunks)
        if key not in scan._views:
            view = scan.only(value, support_slices(scan.extent(value), num_chunks))
            scan._views[key] = self._fill(network, view) if self.fill_slices else view
        return scan._views[key]

    def _place_in_extent(
        self, features: Tensor, view: EncodedSupport, chunks: Tensor, num_chunks: int, spacing_mm: float
    ) -> Placement:
        """Where the query's slices of a known extent lie on a support scan, see :meth:`_view`.

        Filled in, the scan answers with the slices at the same height of the organ; as it is, with the slice of the
        query slice's chunk.
        """
        given = (chunks >= 0).nonzero()[:, 0]
        shown = view.extent(view.values[0])
        if self.fill_slices:
            first, last = shown[0], shown[-1]
            height = (given - given[0] + 0.5) / (given[-1] - given[0] + 1)
            positions = first - 0.5 + height * (last - first + 1)
            positions = positions.clamp(float(view.answering[0]), float(view.answering[-1]))
            chosen = nearest_slices(positions, view.answering, self.num_slices)
        else:
            chosen = torch.tensor(support_slices(shown, num_chunks))[chunks[given]][:, None]
            positions = chosen[:, 0].float()
        places = None
        if self.locator is not None:
            places = self.locator(features[given], view.features, positions, spacing_mm, view.spacing_mm, reach=0)
        return Placement(chosen, places, 0.0, positions)

    @torch.no_grad()
    def _fill(self, network: nn.Module, scan: EncodedSupport) -> EncodedSupport:
        """Label the slices between annotated ones by the two nearest of these, where the match is sure.

        Neighboring slices of one scan are much alike, so that few annotated slices make a whole support.
        """
        every = torch.arange(len(scan.features))
        nearest = nearest_slices(every.float(), scan.slices, 2)
        todo = every[(nearest[:, 0] >= 0) & ~torch.isin(every, scan.slices)]
        if not len(todo):
            return scan
        nearest, features = nearest[todo], scan.features[todo]
        total = features.new_zeros(len(todo), len(scan.values), *features.shape[-2:])
        weight = features.new_zeros(len(todo), len(scan.values))
        closeness = (nearest >= 0) / (todo[:, None] - nearest).abs()
        closeness = (closeness / closeness.sum(dim=1, keepdim=True)).to(features)
        for column in range(2):
            chosen = nearest[:, column]
            places = None
            if self.locator is not None:
                places = self.locator(
                    features, scan.features, chosen.float(), scan.spacing_mm, scan.spacing_mm, reach=0
                )
            placement = Placement(chosen[:, None], places, 1.0, chosen.float())
            scores, shown = self._match_slices(network, features, scan, scan.values, placement)
            share = closeness[:, column, None] * shown
            total += share[..., None, None] * (scores[:, 1:] - scores[:, :1])
            weight += share
        scores = F.pad(total / weight.clamp(min=1e-12)[..., None, None], (0, 0, 0, 0, 1, 0))
        possible = F.pad(weight >= 0.5, (1, 0), value=True)
        sure = margins(smooth_slices(scores, possible, 0.0)) > self.confident_margin
        filled = copy.copy(scan)
        filled.foreground, filled.background = scan.foreground.clone(), scan.background.clone()
        filled.shows = scan.shows.clone()
        filled.foreground[todo], filled.background[todo] = sure[:, 1:].to(features), sure[:, 0].to(features)
        filled.shows[todo] = sure[:, 1:].flatten(2).any(dim=2)
        filled.answering = torch.cat([scan.slices, todo]).sort().values
        return filled

    @torch.no_grad()
    def measure_similarity(self, features: Tensor, answering: Sequence[tuple[EncodedSupport, Tensor]]) -> Tensor:
        """How similar the most similar support cell is to each query cell, whatever its label.

        Where it is low, the support has nothing like the query, and what the network says there is a guess.

        Args:
            features: ``(D, channels, h, w)`` of the query.
            answering: each scan with its slices ``(D, K)`` that answer for the query's; -1 for none.

        Returns:
            ``(D, h, w)``: the largest cosine, 0 if that is negative or no slice answers.
        """
        best = features.new_zeros(len(features), features[0, 0].numel())
        for scan, chosen in answering:
            cells = normalize(scan.features, 1).flatten(2)  # (Ds, channels, h * w)
            for part in torch.arange(len(features)).split(self.slice_batch_size):
                queries = normalize(features[part], 1).flatten(2).transpose(1, 2)
                for index in chosen[part].to(features.device).unbind(dim=1):
                    cosine = torch.bmm(queries, cells[index.clamp(min=0)]).amax(dim=2)
                    best[part] = torch.where(index[:, None] >= 0, best[part].maximum(cosine), best[part])
        return best.clamp(max=1).reshape(len(features), *features.shape[-2:])

    @torch.no_grad()
    def measure_agreement(
        self,
        network: nn.Module,
        features: Tensor,
        placed: Sequence[tuple[EncodedSupport, Placement]],
        values: Sequence[int],
        scores: Tensor,
    ) -> Tensor:
        """How well the prediction, as a support itself, gives the support's labels back: an estimate without truth.

        Each annotated support slice is segmented by the prediction on the query slice that lies nearest; one without
        a query slice within reach does not count, so that half an organ may agree, and one out of view cannot.

        Args:
            network: the network that matches.
            features: ``(D, channels, h, w)`` of the query.
            placed: the support scans and where the query lies on them.
            values: the ``n`` labels.
            scores: scores ``(D, 1 + n, h, w)`` of the prediction.

        Returns:
            Dice of each label ``(n,)`` on the feature grid, of the best scan that shows it; 0 if none does.

        Reference: reverse classification accuracy, Valindria et al., IEEE TMI 36(8), 2017,
        https://doi.org/10.1109/TMI.2017.2665165.
        """
        grid, classes = features.shape[-2:], 1 + len(values)
        predicted = F.one_hot(scores.argmax(dim=1), classes).movedim(-1, 1).to(features.dtype)  # (D, 1 + n, h, w)
        best = features.new_zeros(len(values))
        for scan, placement in placed:
            distance = (scan.slices[:, None] - placement.positions[None]).abs()  # (A, D)
            nearest = distance.argmin(dim=1)
            step = placement.positions.diff().abs().max().item() if len(features) > 1 else 1.0
            reached = (distance.amin(dim=1) <= max(1.0, step)).to(features.device)
            both, sizes = features.new_zeros(len(values)), features.new_zeros(len(values))
            for part in torch.arange(len(scan.slices)).split(self.slice_batch_size):
                index, own = scan.slices[part].to(features.device), nearest[part].to(features.device)
                labels = scan.label[index]
                shares = torch.stack([labels == value for value in values], dim=1).float()
                seen = reached[part, None, None, None]
                truth = (_to_grid(shares, grid) > 0.5) & seen  # (b, n, h, w)
                found = network.match(
                    scan.features[index], features[own][:, None], predicted[own, 1:], predicted[own, :1], None, None
                ).argmax(dim=1)
                given = F.one_hot(found, classes).movedim(-1, 1)[:, 1:].bool() & seen
                both += (given & truth).sum(dim=(0, 2, 3))
                sizes += given.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
            shown = torch.tensor([value in scan.values for value in values], device=features.device)
            best = torch.where(shown, best.maximum(2 * both / sizes.clamp(min=1)), best)
        return best

    def _match_itself(
        self, network: nn.Module, features: Tensor, scores: Tensor, possible: Tensor, compete: bool, fewest: int = 3
    ) -> Tensor:
        """Scores by the query's own confident cells; the given ones for a class with fewer than ``fewest`` of them."""
        depth, grid = len(features), features.shape[-2:]
        sure = margins(scores) > self.confident_margin if compete else scores > self.confident_margin
        sure_background = None if compete else scores < -self.confident_margin
        neighbors = torch.arange(depth, device=features.device)[:, None] + torch.tensor([-1, 0, 1]).to(features.device)
        inside = (neighbors >= 0) & (neighbors < depth)
        out = scores.clone()
        rows = [slice(1, None)] if compete else [slice(row, row + 1) for row in range(scores.shape[1])]
        for row in rows:
            can = possible[:, row].to(scores.dtype)[..., None, None]
            ways = sure[:, row] * can
            rest = sure[:, 0] if sure_background is None else sure_background[:, row.start] * can[:, 0]
            where = can.flatten(1).any(dim=1).nonzero()[:, 0]
            for part in where.split(self.slice_batch_size) if len(where) else ():
                index = neighbors[part].clamp(0, depth - 1)  # (b, 3)
                known = inside[part].to(scores.dtype)[..., None, None]
                foreground = (ways[index] * known[:, :, None]).transpose(1, 2)  # (b, n, 3, h, w)
                background = rest[index] * known
                found = network.match(features[part], features[index], foreground.flatten(1, 2), background, None, None)
                enough = (foreground.flatten(2).sum(dim=2) >= fewest) & (background.flatten(1).sum(1) >= fewest)[
                    :, None
                ]
                if compete:
                    enough = torch.cat([enough.any(dim=1, keepdim=True), enough], dim=1)
                    out[part] = torch.where(enough[..., None, None], found, out[part])
                else:
                    own = (found[:, 1:] - found[:, :1]).reshape(len(part), 1, *grid)
                    out[part, row] = torch.where(enough[..., None, None], own, out[part, row])
        return out


def _to_grid(masks: Tensor, grid: Sequence[int]) -> Tensor:
    return F.interpolate(masks, size=tuple(grid), mode="bilinear", align_corners=False)


def _first(value: Any) -> Any:
    """The entry of a collated batch of one, or the value itself."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
