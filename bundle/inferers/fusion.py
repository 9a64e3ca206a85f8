"""What several support scans say, as one: averaged by their similarity, smoothed across slices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .matching import SliceMatching
from .scans import EncodedQuery, EncodedSupport, Registration, turn_back
from .scores import smooth_slices


class ScanFusion:
    """Averages what support scans say of a label over those that annotate it, and smooths it along the slices.

    All labels that a scan annotates are exclusive in one match with it. A scan that does not annotate a label has no
    say about it: there, its organ lies unmarked in what looks like background. A label can appear in a slice where
    scans of half the weight show it. A scan that is labelled on some of its slices weighs in each slice by how similar
    the nearest of these is, and has no say about what it does not know.

    Args:
        similarity_temperature: scans that are less similar by this weigh less by a factor of e.
        smoothing_mm: largest standard deviation of a Gaussian along the slice axis that smooths the scores; 0 for none.
            Slices where a label cannot appear take no part.
        smoothing_share: standard deviation for each label as a share of the height of its tallest part on the support,
            where that is less: what suits a liver would wipe out a hippocampus.
    """

    def __init__(
        self, similarity_temperature: float = 0.1, smoothing_mm: float = 8.0, smoothing_share: float = 0.03
    ) -> None:
        self.similarity_temperature = similarity_temperature
        self.smoothing_mm = smoothing_mm
        self.smoothing_share = smoothing_share

    def __call__(
        self,
        network: nn.Module,
        query: EncodedQuery,
        placed: Sequence[tuple[EncodedSupport, Registration]],
        values: Sequence[int],
        matching: SliceMatching,
    ) -> tuple[Tensor, Tensor]:
        """Match a query to scans.

        Args:
            network: the network that matches.
            query: the query.
            placed: the support scans and where the query lies on them.
            values: the ``n`` labels.
            matching: matches it to one scan.

        Returns:
            Scores ``(D, 1 + n, h, w)`` relative to the background's, and where each class can appear ``(D, 1 + n)``.
        """
        features = query.features()
        total = features.new_zeros(len(features), len(values), *features.shape[-2:])
        weight = features.new_zeros(len(features), len(values))
        asked = torch.zeros_like(weight)
        best = max(registered.similarity for _, registered in placed)
        for scan, registered in placed:
            rows = [row for row, value in enumerate(values) if scan.annotates(value)]
            if not rows:
                continue
            own, turned = [values[row] for row in rows], query.features(registered.turn)
            scores, shown = matching(network, turned, scan, own, registered)
            scores = turn_back(scores, registered.turn)
            share, told = self._shares(turned, scan, own, registered, best)
            answer = share * shown
            total[:, rows] += answer[..., None, None] * (scores[:, 1:] - scores[:, :1])
            weight[:, rows] += answer
            asked[:, rows] += told
        scores = total / weight.clamp(min=1e-12)[..., None, None]
        possible = (weight > 0) & (weight >= asked / 2)
        return F.pad(scores, (0, 0, 0, 0, 1, 0)), F.pad(possible, (1, 0), value=True)

    def _shares(
        self, features: Tensor, scan: EncodedSupport, values: Sequence[int], registered: Registration, best: float
    ) -> tuple[Tensor | float, Tensor | float]:
        """What a scan weighs for slices ``(D, channels, h, w)``, and what of it counts where it finds nothing.

        One number each, or ``(D, 1)`` and ``(D, n)`` of a scan that is labelled on some of its slices.
        """
        if scan.bounds is None:
            share = math.exp((registered.similarity - best) / self.similarity_temperature)
            return share, share
        positions = registered.positions.cpu()
        nearest = scan.slices[(positions[:, None] - scan.slices).abs().argmin(dim=1)].to(features.device)
        similar = F.cosine_similarity(features, scan.features[nearest], dim=1).mean(dim=(1, 2))
        shares = ((similar - best) / self.similarity_temperature).exp()[:, None]
        return shares, shares * ~scan.unknown(values, positions).to(shares.device)

    def widths_mm(self, encoded: Sequence[EncodedSupport], values: Sequence[int]) -> Tensor:
        """Standard deviation in mm along the slices by which each label's scores are smoothed ``(n,)``."""
        widths = []
        for value in values:
            heights = [scan.height_mm(value) for scan in encoded if value in scan.values]
            widths.append(min(self.smoothing_mm, self.smoothing_share * sum(heights) / max(len(heights), 1)))
        return torch.tensor(widths)

    @staticmethod
    def smooth(scores: Tensor, possible: Tensor, exclusive: bool, sigmas: Tensor) -> Tensor:
        """Smooth each label along the slices, exclusive ones as they differ from the background, which is channel 0."""
        if exclusive:
            scores, sigmas = scores - scores[:, :1], F.pad(sigmas, (1, 0))
        return smooth_slices(scores, possible, sigmas)
