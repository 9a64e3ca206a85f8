"""Support scans: read, encoded, completed, and kept until they or the network change."""

from __future__ import annotations

import json
import os
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..data.support import SLICES, VALUES, SupportScan, load_support, resolve_support, showing_entries
from ..identity import file_state
from ..keys import IMAGE, LABEL
from .completion import SliceCompletion
from .region import RegionOfInterest
from .scans import EncodedQuery, EncodedSupport, SupportSummary
from .slice_registration import SliceRegistration

Kept = TypeVar("Kept")


class Cache:
    """Keeps what was made for a key, and makes it once, however many threads ask; no lock is held meanwhile.

    Args:
        size: how many are kept, the last ones that were asked for.
    """

    def __init__(self, size: float) -> None:
        self.size = size
        self._kept: OrderedDict[Hashable, Future] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Kept], in_use: int = 0) -> Kept:
        """What belongs to a key; at least ``in_use`` of them stay."""
        with self._lock:
            mine = key not in self._kept
            future = self._kept.setdefault(key, Future())
            self._kept.move_to_end(key)
            while len(self._kept) > max(self.size, in_use, 1):
                self._kept.popitem(last=False)
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._kept.get(key) is future:
                        del self._kept[key]
                future.set_exception(error)
                raise
        return future.result()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()


def weights_digest(network: nn.Module) -> int:
    """What tells a network's weights from others, by their values: versions do not show every way of writing them."""
    weights = [*network.parameters(), *network.buffers()]
    if not weights:
        return 0
    values = torch.cat([weight.detach().reshape(-1).contiguous().view(torch.uint8) for weight in weights])
    return zlib.crc32(values.cpu().numpy())


class SupportEncoder:
    """The support scans that answer for a query, encoded once and kept until their files or the weights change.

    The only stage that knows files. Of many scans, only the most similar answer for a query.

    Args:
        support: ``[{"image": path, "label": path}, …]``; may be empty if :meth:`set_support` is called.
        preprocessing: transform of a support entry into the network's frame; the same as the queries'.
        labels: values to segment; ``None`` for all that the support shows.
        dataset_dir: folder to which paths of the support may be relative.
        num_supports: of the support scans that show a label, so many answer for a query: those whose slices are the
            most similar to it; ``None`` for all.
        completion: labels the slices between the annotated ones of a support scan, which then answer too; ``None`` for
            none.
        slice_batch_size: slices a pass through the network.
        cache_size: encoded scans that are kept, at least those that answer for a query.
        extension: how far a label goes on beyond the outermost slices of a scan that is labelled on some of its slices,
            as a share of its diameter there, see :func:`label_bounds`; 0 for half a gap between labelled slices alone.
        region_of_interest: a scan's region of interest is encoded, too; ``None`` for none.

    Raises:
        ValueError: for ``num_supports`` below 1, or a negative ``extension``.
    """

    def __init__(
        self,
        support: Sequence[Mapping[str, Any]] = (),
        preprocessing: Callable | None = None,
        labels: Sequence[int] | None = None,
        dataset_dir: str | os.PathLike | None = None,
        num_supports: int | None = 5,
        completion: SliceCompletion | None = SliceCompletion(),  # noqa: B008, has no state
        slice_batch_size: int = 16,
        cache_size: int = 8,
        extension: float = 0.75,
        region_of_interest: RegionOfInterest | None = RegionOfInterest(),  # noqa: B008, has no state
    ) -> None:
        if num_supports is not None and num_supports < 1:
            raise ValueError(f"num_supports must be at least 1, or None for all, got {num_supports}")
        if extension < 0:
            raise ValueError(f"extension must be at least 0, got {extension}")
        self.support = list(support)
        self.preprocessing = preprocessing
        self.labels = list(labels) if labels is not None else None
        self.dataset_dir = dataset_dir
        self.num_supports = num_supports
        self.completion = completion
        self.slice_batch_size = slice_batch_size
        self.cache_size = cache_size
        self.extension = extension
        self.region_of_interest = region_of_interest
        self._given: list[SupportScan] = []
        self._scans = Cache(cache_size)
        self._summaries = Cache(float("inf"))

    def set_support(self, scans: Sequence[SupportScan]) -> None:
        """Use scans in memory instead of files; an empty sequence goes back to the files."""
        self._given = list(scans)
        self._scans.clear()
        self._summaries.clear()

    @property
    def given(self) -> list[SupportScan]:
        """The scans in memory that are used instead of files."""
        return list(self._given)

    def encode(self, network: nn.Module, slices: Tensor) -> Tensor:
        """Features ``(D, channels, h, w)`` of slices ``(D, C, H, W)``, some at a time."""
        return torch.cat([network.encode(batch) for batch in slices.split(self.slice_batch_size)])

    def __call__(
        self, network: nn.Module, query: EncodedQuery, registration: SliceRegistration, own: Any = None
    ) -> tuple[list[EncodedSupport], list[int]]:
        """The scans that answer for a query, see ``num_supports``, and the values of all of them.

        Args:
            network: the network that will match.
            query: the query.
            registration: describes slices, and finds where they lie on each other.
            own: entries of the query's own support, which count before the configured ones.
        """
        device, sources = query.volume.device, self._sources(own)
        count = len(sources) if self.num_supports is None else min(self.num_supports, len(sources))
        if count == len(sources):
            encoded = self.encode_all(network, registration, device, own)
            return encoded, self.label_values(encoded)
        owner = self._owner(network, device)
        scan = partial(self._scan, network, registration, device, owner)

        def summary(key: tuple, load: Callable[[], SupportScan]) -> SupportSummary:
            """What tells how near a support scan is to a query, kept where the scan itself is not."""
            return self._summaries.get((*owner, key), lambda: scan(key, load).summary())

        known = [summary(key, load) for key, load in sources.items()]
        values = self.label_values(known)
        chosen = nearest_scans(query, known, values, count, registration)
        taken = [source for index, source in enumerate(sources.items()) if index in chosen]
        return [scan(key, load, len(chosen)) for key, load in taken], values

    def encode_all(
        self, network: nn.Module, registration: SliceRegistration, device: torch.device | str = "cpu", own: Any = None
    ) -> list[EncodedSupport]:
        """Every support scan."""
        owner, sources = self._owner(network, device), self._sources(own)
        return [
            self._scan(network, registration, device, owner, key, load, len(sources)) for key, load in sources.items()
        ]

    def label_values(self, scans: Sequence[EncodedSupport | SupportSummary]) -> list[int]:
        """Label values of the result: the wanted ones, or all that the support shows."""
        return self.labels or sorted({value for scan in scans for value in scan.values})

    def complete(self, network: nn.Module, registration: SliceRegistration, scan: EncodedSupport) -> EncodedSupport:
        """The scan with what is known between its annotated slices."""
        if self.completion is None:
            return scan
        return self.completion(network, scan, registration.cells, self.slice_batch_size)

    def _sources(self, own: Any) -> dict[tuple, Callable[[], SupportScan]]:
        """What tells each support scan from others, and how it is read."""
        if self._given:
            return {("given", index): partial(lambda s: s, scan) for index, scan in enumerate(self._given)}
        if self.preprocessing is None:
            raise RuntimeError("no support yet: call set_support first, or give support and preprocessing")
        entries = resolve_support(own if own is not None else self.support, self.dataset_dir)
        return {
            (
                *((entry[key], *file_state(entry[key])) for key in (IMAGE, LABEL)),
                json.dumps([entry.get(VALUES), entry.get(SLICES)]),
            ): partial(load_support, entry, self.preprocessing, self.labels)
            for entry in showing_entries(entries, self.labels)
        }

    @staticmethod
    def _owner(network: nn.Module, device: Any) -> tuple:
        """What an encoded scan depends on besides the scan; a reference, since a number may be another's later."""
        return weakref.ref(network), weights_digest(network), str(device)

    def _scan(
        self,
        network: nn.Module,
        registration: SliceRegistration,
        device: Any,
        owner: tuple,
        key: tuple,
        load: Callable[[], SupportScan],
        in_use: int = 0,
    ) -> EncodedSupport:
        def encode(scan: SupportScan) -> EncodedSupport:
            features = self.encode(network, scan.image.movedim(-1, 0).to(device))
            descriptor = registration.describe(features)
            encoded = EncodedSupport.from_scan(scan, features, descriptor, self.slice_batch_size, self.extension)
            return self.complete(network, registration, encoded)

        def make() -> EncodedSupport:
            scan = load()
            encoded = encode(scan)
            if self.region_of_interest is not None:
                encoded.region = self.region_of_interest.on_support(scan.label)
                if encoded.region is not None:
                    encoded.finer = encode(self.region_of_interest.cut(scan, encoded.region.box))
            return encoded

        return self._scans.get((*owner, key), make, in_use)


def nearest_scans(
    query: EncodedQuery,
    known: Sequence[SupportSummary],
    values: Sequence[int],
    count: int,
    registration: SliceRegistration,
) -> set[int]:
    """Numbers of the support scans that are the most similar to a query: for each label, of those that show it."""
    descriptor = registration.describe(query.features())
    similarities = [registration.similarity(descriptor, query.spacing_mm, scan) for scan in known]
    order = sorted(range(len(known)), key=lambda index: -similarities[index])
    chosen: set[int] = set()
    for value in values:
        chosen.update([index for index in order if value in known[index].values][:count])
    return chosen
