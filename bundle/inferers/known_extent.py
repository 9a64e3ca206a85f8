"""The published protocols: the extent of each organ is known, and each label stands alone against its background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..data.protocol import support_slices
from .atlas_fallback import AtlasFallback
from .matching import SliceMatching
from .scans import EncodedQuery, EncodedSupport, ExtentMatch, Registration, turn_back
from .slice_registration import SliceRegistration
from .support_encoder import SupportEncoder


class KnownExtents:
    """Matches each label alone within its known extent.

    To the support slice of the query slice's chunk, or with a completed support to the slices at the same height of the
    organ.

    Args:
        atlas_fallback: what finds a label by its place, where its look misleads; ``None`` for nothing. It needs a
            registration of the cells. Without a known extent, a label may be absent, and is not looked for so.
    """

    def __init__(self, atlas_fallback: AtlasFallback | None = AtlasFallback()) -> None:  # noqa: B008, has no state
        self.atlas_fallback = atlas_fallback

    def __call__(
        self,
        network: nn.Module,
        query: EncodedQuery,
        scans: Sequence[EncodedSupport],
        values: Sequence[int],
        chunks: Tensor,
        num_chunks: int,
        turn_of: Callable[[EncodedSupport, Sequence[EncodedSupport]], int],
        registration: SliceRegistration,
        matching: SliceMatching,
        support_encoder: SupportEncoder,
    ) -> ExtentMatch:
        """Match a query.

        Args:
            network: the network that matches.
            query: the query.
            scans: the support scans.
            values: the ``n`` labels.
            chunks: which chunk of each label's extent a slice belongs to ``(n, D)``; -1 for none.
            num_chunks: parts of an extent.
            turn_of: quarter turns after which the query lies as a scan does, of which some views are annotated.
            registration: finds where cells lie on a scan.
            matching: matches slices.
            support_encoder: completes the scans as the protocol annotates them.
        """
        features = query.features()
        out = features.new_zeros(len(features), len(values), *features.shape[-2:])
        weight = features.new_zeros(len(features), len(values))
        answering: list[tuple[EncodedSupport, Tensor, int]] = []
        by_place, asking = torch.zeros(len(values)), torch.zeros(len(values))
        complete = partial(support_encoder.complete, network, registration)
        for scan in scans:
            views = {value: scan.as_published(value, num_chunks, complete) for value in values if value in scan.values}
            turn = turn_of(scan, [*views.values()])
            turned = query.features(turn)
            asked = torch.full((len(features), len(values), registration.num_slices), -1)
            for row, value in enumerate(values):
                given = (chunks[row] >= 0).nonzero()[:, 0]
                if value not in views or not len(given):
                    continue
                view, own_chunks = views[value], chunks[row, given]
                heights = None if support_encoder.completion is None else given
                registered = self._register(
                    turned[given], view, own_chunks, num_chunks, query.spacing_mm, registration, heights
                )
                scores, _ = matching(network, turned[given], view, [value], registered)
                own = scores[:, 1] - scores[:, 0]
                asking[row] += scan.labelled
                if self.atlas_fallback is not None and registered.coordinates is not None and scan.labelled:
                    found = self.atlas_fallback(
                        network, turned[given], own, view, registered.coordinates, matching.slice_batch_size
                    )
                    if found is not None:
                        own, by_place[row] = found, by_place[row] + 1
                out[given, row] += turn_back(own[:, None], turn)[:, 0]
                weight[given, row] += 1
                asked[given, row, : registered.support_index.shape[1]] = registered.support_index
            if scan.labelled:
                answering.append((scan, asked.flatten(1), turn))
        scores = out / weight.clamp(min=1)[..., None, None]
        return ExtentMatch(scores, weight > 0, answering, by_place / asking.clamp(min=1))

    def finish(self, scores: Tensor, by_place: Tensor) -> None:
        """Lower the scores ``(D, n, H, W)`` of what was found by its place, in place."""
        if self.atlas_fallback is not None:
            scores /= (1 + self.atlas_fallback.discount * by_place.to(scores))[:, None, None]

    @staticmethod
    def _register(
        features: Tensor,
        view: EncodedSupport,
        chunks: Tensor,
        num_chunks: int,
        spacing_mm: float,
        registration: SliceRegistration,
        heights: Tensor | None,
    ) -> Registration:
        """Where the query's slices of a known extent lie on a scan, see :meth:`EncodedSupport.as_published`.

        With their numbers as ``heights``, the scan answers with the slices at the same height of the organ; without,
        with the slice of the query slice's chunk.
        """
        shown = view.extent(view.values[0])
        if heights is not None:
            first, last = shown[0], shown[-1]
            height = (heights - heights[0] + 0.5) / (heights[-1] - heights[0] + 1)
            positions = first - 0.5 + height * (last - first + 1)
            positions = positions.clamp(float(view.answering[0]), float(view.answering[-1]))
            chosen = registration.nearest(positions, view)
        else:
            chosen = torch.tensor(support_slices(shown, num_chunks))[chunks][:, None]
            positions = chosen[:, 0].float()
        coordinates = None
        if registration.cells is not None:
            coordinates = registration.cells(features, view.features, positions, spacing_mm, view.spacing_mm)
        return Registration(chosen, coordinates, 0.0, positions)
