"""Segment whole volumes by a support that is encoded once."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from ..checks import check_volume
from ..data.protocol import support_slices
from ..data.support import VALUES, SupportScan, load_support, resolve_support, slice_spacing
from ..keys import IMAGE, LABEL, SIMILARITY
from ..networks.blocks.prototypes import normalize
from .location import align_scans, describe_slices, nearest_slices
from .refine import margins, smooth_slices, upsample_scores


class EncodedSupport:
    """Features and labels of one support scan, kept between queries.

    Attributes:
        features: ``(Ds, D, h, w)``.
        label: ``(Ds, H, W)`` label map.
        description: ``(Ds, F)``, see :func:`describe_slices`.
        spacing_mm: distance of the slices.
        values: label values that occur.
        annotates: whether the scan says where a value is, see :meth:`SupportScan.annotates`.
    """

    def __init__(self, scan: SupportScan, features: Tensor) -> None:
        self.features = features
        self.label = scan.label.movedim(-1, 0).to(features.device)
        self.description = describe_slices(features)
        self.spacing_mm = scan.spacing_mm
        self.values = scan.values
        self.annotates = scan.annotates


class FewShotInferer(Inferer):
    """Segments every slice of a query volume with the labels of support scans.

    Works in the network's frame: queries ``(1, C, H, W, D)`` come from ``preprocessing``, slices along the last axis.
    Each support scan is encoded once and kept until its files or the network's weights change; each query slice is
    encoded once for all labels.

    How query slices meet support slices:

    - by default the scans are aligned along z by their own features, and each query slice is matched to the
      ``num_slices`` nearest support slices, all labels at once. Where none of these shows a label, it cannot appear;
      where no support slice is near, all is background. Gives scores ``(1, 1 + n, H, W, D)``.
    - with ``chunks`` ``(n, D)`` and ``num_chunks`` in the query's meta data, as the published protocols prescribe,
      each label is matched alone against its background, to the support slice of the query slice's chunk. Gives
      differences of foreground and background ``(1, n, H, W, D)``.

    The result is a ``MetaTensor`` with the query's meta data and ``label_values``, the values of the ``n`` labels.

    Args:
        support: ``[{"image": path, "label": path}, …]``; a query may bring its own as a JSON string in its meta data
            under ``support``, which then counts. May be empty if :meth:`set_support` is called.
        preprocessing: transform of a support entry into the network's frame; the same as the queries'.
        labels: values to segment; ``None`` for all that the support shows.
        dataset_dir: folder to which paths of the support may be relative.
        num_slices: support slices that answer for a query slice.
        slice_batch_size: slices a pass through the network; memory does not depend on the number of slices.
        cache_size: encoded support scans that are kept.
        smoothing_mm: standard deviation of a Gaussian along the slice axis that smooths the scores; 0 for none.
            Slices where a label cannot appear take no part.
        num_refinements: how often the scores are averaged with those that the query's own confident cells give, as
            support of the same and the two neighboring slices.
        confident_margin: by how much a class must win in a cell for the cell to count as confident.
        guided_radius_px, guided_epsilon: guided filter that fits the scores to the image, see
            :func:`upsample_scores`; a radius of 0 leaves it out.
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
        slice_batch_size: int = 8,
        cache_size: int = 8,
        smoothing_mm: float = 0.0,
        num_refinements: int = 0,
        confident_margin: float = 1.0,
        guided_radius_px: int = 0,
        guided_epsilon: float = 0.02,
        keep_similarity: bool = False,
    ) -> None:
        super().__init__()
        self.support = list(support)
        self.preprocessing = preprocessing
        self.labels = list(labels) if labels is not None else None
        self.dataset_dir = dataset_dir
        self.num_slices = num_slices
        self.slice_batch_size = slice_batch_size
        self.cache_size = cache_size
        self.smoothing_mm = smoothing_mm
        self.num_refinements = num_refinements
        self.confident_margin = confident_margin
        self.guided_radius_px = guided_radius_px
        self.guided_epsilon = guided_epsilon
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
        if "chunks" in meta:
            chunks = torch.as_tensor(np.asarray(meta["chunks"])).reshape(len(values), -1)
            num_chunks = int(torch.as_tensor(meta["num_chunks"]).flatten()[0])
            chosen = self._chunk_slices(encoded, values, chunks, num_chunks)
            scores, possible = self._match_chunks(network, features, encoded, values, chunks, num_chunks)
        else:
            chosen, fit = self._locate(features, encoded, slice_spacing(inputs))
            scores, possible = self._match_nearest(network, features, encoded, values, chosen)
            meta["support_fit"] = torch.tensor([fit])
        if self.keep_similarity:
            answering = [(s, index) for s, index in zip(encoded, chosen) if any(s.annotates(v) for v in values)]
            meta[SIMILARITY] = self.measure_similarity(features, answering).movedim(0, -1)[None].cpu()
        compete, sigma = "chunks" not in meta, self.smoothing_mm / slice_spacing(inputs)
        scores = smooth_slices(scores, possible, sigma)
        for _ in range(self.num_refinements):
            scores = (scores + self._match_itself(network, features, scores, possible, compete)) / 2
            scores = smooth_slices(scores, possible, sigma)
        parts = zip(scores.split(self.slice_batch_size), volume.split(self.slice_batch_size))
        scores = torch.cat(
            [
                upsample_scores(part, images, compete, self.guided_radius_px, self.guided_epsilon)
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
                    self._cached(network, ("given", index), device, lambda s=scan: s)  # type: ignore[misc]
                    for index, scan in enumerate(self._given)
                ]
            if self.preprocessing is None:
                raise RuntimeError("no support yet: call set_support first, or give support and preprocessing")
            entries = json.loads(_first(own)) if own is not None else self.support
            return [
                self._cached(
                    network,
                    (*(file_state(entry[key]) for key in (IMAGE, LABEL)), json.dumps(entry.get(VALUES))),
                    device,
                    lambda e=entry: load_support(e, self.preprocessing, self.labels),  # type: ignore[misc]
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
            encoded = EncodedSupport(scan, self._encode(network, slices))
            self._cache[key] = (weakref.ref(network), encoded)
        self._cache.move_to_end(key)
        while len(self._cache) > max(self.cache_size, len(self.support), in_use):
            self._cache.popitem(last=False)
        return encoded

    def _encode(self, network: nn.Module, slices: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.encode(batch) for batch in slices.split(self.slice_batch_size)])

    def _locate(
        self, features: Tensor, encoded: Sequence[EncodedSupport], spacing_mm: float
    ) -> tuple[list[Tensor], float]:
        """Support slices ``(D, K)`` of each scan for the query's, and how well the best scan fits, in -1..1."""
        description = describe_slices(features)
        chosen, fit = [], -1.0
        for scan in encoded:
            positions, similar = align_scans(description, scan.description, spacing_mm, scan.spacing_mm)
            chosen.append(nearest_slices(positions, len(scan.features), self.num_slices))
            fit = max(fit, similar)
        return chosen, fit

    def _match_nearest(
        self,
        network: nn.Module,
        features: Tensor,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
        chosen: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(D, 1 + n, h, w)`` by the nearest support slices, and where each class can appear ``(D, 1 + n)``.

        A label is matched against the scans that annotate it: on others, its organ lies unmarked in what looks like
        background. Labels of the same scans compete in one match; where the scans differ, each label's score is taken
        relative to the background of its own scans.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, value in enumerate(values):
            groups.setdefault(tuple(i for i, scan in enumerate(encoded) if scan.annotates(value)), []).append(row)
        scores = features.new_zeros(len(features), 1 + len(values), *features.shape[-2:])
        possible = torch.zeros(scores.shape[:2], dtype=torch.bool, device=features.device)
        possible[:, 0] = True
        for scans, rows in groups.items():
            if not scans:
                continue  # a wanted label that nobody annotated
            some, ways, slices = [encoded[i] for i in scans], [values[r] for r in rows], [chosen[i] for i in scans]
            part, can = self._match_group(network, features, some, ways, slices)
            if len(groups) == 1:
                return part, can
            columns = [1 + row for row in rows]
            scores[:, columns] = part[:, 1:] - part[:, :1]
            possible[:, columns] = can[:, 1:]
        return scores, possible

    def _match_group(
        self,
        network: nn.Module,
        features: Tensor,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
        chosen: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Match labels that the same scans annotate; shapes as in :meth:`_match_nearest`."""
        grid = features.shape[-2:]
        wanted = torch.tensor(list(values), device=features.device)
        scores, possible = [], []
        for part in torch.arange(len(features)).split(self.slice_batch_size):
            support, foreground, background = [], [], []
            for scan, slices in zip(encoded, chosen):
                index = slices[part]  # (b, K)
                known = (index >= 0).to(features.device)[..., None, None]
                labels = scan.label[index.clamp(min=0)]  # (b, K, H, W)
                shown = (labels[:, None] == wanted[None, :, None, None, None]) & known[:, None]
                support.append(scan.features[index.clamp(min=0)])
                foreground.append(shown.float())
                background.append((known & (labels == 0)).float())
            masks = torch.cat(foreground, dim=2)  # (b, n, M, H, W)
            scores.append(
                network.match(
                    features[part],
                    torch.cat(support, dim=1),
                    _to_grid(masks.flatten(1, 2), grid),
                    _to_grid(torch.cat(background, dim=1), grid),
                )
            )
            present = masks.flatten(2).any(dim=2)  # (b, n)
            possible.append(torch.cat([torch.ones_like(present[:, :1]), present], dim=1))
        return torch.cat(scores), torch.cat(possible)

    def _match_chunks(
        self,
        network: nn.Module,
        features: Tensor,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
        chunks: Tensor,
        num_chunks: int,
    ) -> tuple[Tensor, Tensor]:
        """Foreground less background ``(D, n, h, w)`` by each chunk's slice, and where a chunk is given ``(D, n)``."""
        grid = features.shape[-2:]
        out = torch.zeros((len(features), len(values), *grid), device=features.device)
        for row, value in enumerate(values):
            scans = [
                (s, support_slices(s.label.eq(value).flatten(1).any(1).nonzero()[:, 0].tolist(), num_chunks))
                for s in encoded
                if value in s.values
            ]
            for chunk in chunks[row].unique().tolist() if scans else []:
                if chunk < 0:
                    continue
                where = (chunks[row] == chunk).nonzero()[:, 0].to(features.device)
                for part in where.split(self.slice_batch_size):
                    support = torch.stack([s.features[slices[chunk]] for s, slices in scans])[None]
                    mask = torch.stack([s.label[slices[chunk]] == value for s, slices in scans]).float()[None]
                    mask = _to_grid(mask, grid).expand(len(part), -1, -1, -1)
                    scores = network.match(features[part], support.expand(len(part), -1, -1, -1, -1), mask, 1 - mask)
                    out[part, row] = scores[:, 1] - scores[:, 0]
        shown = torch.tensor([any(value in scan.values for scan in encoded) for value in values])
        return out, ((chunks >= 0) & shown[:, None]).T.to(features.device)

    @staticmethod
    def _chunk_slices(
        encoded: Sequence[EncodedSupport], values: Sequence[int], chunks: Tensor, num_chunks: int
    ) -> list[Tensor]:
        """Slices ``(D, n)`` of each scan that answer for each label; -1 for none."""
        chosen = []
        for scan in encoded:
            index = torch.full_like(chunks, -1)
            for row, value in enumerate(values):
                if value in scan.values:
                    shown = scan.label.eq(value).flatten(1).any(1).nonzero()[:, 0].tolist()
                    slices = torch.tensor(support_slices(shown, num_chunks), dtype=chunks.dtype)
                    index[row] = torch.where(chunks[row] >= 0, slices[chunks[row].clamp(min=0)], index[row])
            chosen.append(index.T)
        return chosen

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
                found = network.match(features[part], features[index], foreground.flatten(1, 2), background)
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


def file_state(path: str) -> tuple[str, int, int]:
    """What changes when a file does: its path, time of change in ns and size in bytes."""
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def _to_grid(masks: Tensor, grid: Sequence[int]) -> Tensor:
    return F.interpolate(masks, size=tuple(grid), mode="bilinear", align_corners=False)


def _first(value: Any) -> Any:
    """The entry of a collated batch of one, or the value itself."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
