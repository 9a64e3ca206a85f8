"""How far a prediction can be trusted, measured without truth: reverse Dice, absence, confidence, similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.blocks.prototypes import normalize
from .matching import SliceMatching
from .scans import EncodedQuery, EncodedSupport, Registration, turn_back
from .scores import leave_out, smooth_slices
from .slice_registration import SliceRegistration, invert_slice_map
from .truncated_structures import TruncatedStructures


class Quality:
    """Measures a prediction, leaves out what is absent by that, and lowers the confidence in what is unsure.

    Args:
        min_reverse_dice: a label whose :meth:`reverse_dice` is below is taken for absent from the query.
        reverse_dice_discount: where a label wins, scores are divided by one more than this times what its reverse Dice
            lacks of 1, so that a label which does not give the support's back counts as less sure; more, if much of the
            support is completed. Supports that annotate it share the discount like independent measurements, by the
            root of their number.
        truncated_structures: what is found at the first or last slice of a query may be the rest of a structure that
            the scan cuts off, or another one that is taken for it. A label there that is unsure and small beside its
            volume on the support, of what as many slices can show, is left out; ``None`` for none.
        keep_similarity: whether :meth:`similarity` is wanted.
    """

    def __init__(
        self,
        min_reverse_dice: float = 0.1,
        reverse_dice_discount: float = 1.5,
        truncated_structures: TruncatedStructures | None = TruncatedStructures(),  # noqa: B008, has no state
        keep_similarity: bool = False,
    ) -> None:
        self.min_reverse_dice = min_reverse_dice
        self.reverse_dice_discount = reverse_dice_discount
        self.truncated_structures = truncated_structures
        self.keep_similarity = keep_similarity

    def similarity(
        self, query: EncodedQuery, answering: Sequence[tuple[EncodedSupport, Tensor, int]], batch_size: int
    ) -> Tensor:
        """How similar the most similar support cell is to each query cell, whatever its label.

        Where it is low, the support has nothing like the query, and what the network says there is a guess.

        Args:
            query: the query.
            answering: each scan with its slices ``(D, K)`` that answer for the query's, -1 for none, and the query's
                turn.
            batch_size: slices at a time.

        Returns:
            ``(D, h, w)``: the largest cosine, 0 if that is negative or no slice answers.
        """
        upright = query.features()
        best = upright.new_zeros(len(upright), 1, *upright.shape[-2:])
        for scan, chosen, turn in answering:
            cells = normalize(scan.features, 1).flatten(2)  # (Ds, channels, h * w)
            for part in torch.arange(len(upright)).split(batch_size):
                turned = normalize(query.features(turn)[part], 1)
                cosines = turned.new_zeros(len(part), 1, *turned.shape[-2:]).flatten(2)
                for index in chosen[part].to(turned.device).unbind(dim=1):
                    found = torch.bmm(turned.flatten(2).transpose(1, 2), cells[index.clamp(min=0)]).amax(dim=2)
                    cosines = torch.where(index[:, None, None] >= 0, cosines.maximum(found[:, None]), cosines)
                best[part] = best[part].maximum(turn_back(cosines.reshape(len(part), 1, *turned.shape[-2:]), turn))
        return best[:, 0].clamp(max=1)

    def reverse_dice(
        self,
        network: nn.Module,
        query: EncodedQuery,
        placed: Sequence[tuple[EncodedSupport, Registration]],
        values: Sequence[int],
        scores: Tensor,
        registration: SliceRegistration,
        matching: SliceMatching,
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
            registration: places the support scans on the query.
            matching: matches them to it.

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
            [back] = registration.on_maps(scan.features, predicted, slice_map[None], scan.spacing_mm, rate=False)
            own = scan.slices[back.support_index[scan.slices, 0] >= 0]
            if not len(own):
                continue
            coordinates = back.coordinates[own] if back.coordinates is not None else None
            back = Registration(back.support_index[own], coordinates, back.similarity, back.positions[own])
            found, shown = matching(network, scan.features[own], predicted, values, back)
            found = smooth_slices(found, F.pad(shown, (1, 0), value=True), 0.0)
            given = F.one_hot(found.max(dim=1).indices, 1 + len(values)).movedim(-1, 1)[:, 1:].bool()
            truth = scan.wanted(values)[0][own] > 0.5
            sizes = given.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
            dice = 2 * (given & truth).sum(dim=(0, 2, 3)) / sizes.clamp(min=1)
            best = torch.where(scan.wanted(values)[1].any(dim=0), best.maximum(dice), best)
        return best

    def present(self, scores: Tensor, reverse_dice: Tensor) -> Tensor:
        """Competing scores ``(D, 1 + n, h, w)`` without the labels that are absent by their reverse Dice ``(n,)``."""
        return leave_out(scores, reverse_dice >= self.min_reverse_dice)

    def finish(
        self,
        scores: Tensor,
        encoded: Sequence[EncodedSupport],
        values: Sequence[int],
        reverse_dice: Tensor,
        spacing_mm: float,
        completion_discount: float,
        batch_size: int,
    ) -> None:
        """Leave out truncated structures and lower what is unsure, in place and some slices at a time.

        Args:
            scores: competing scores ``(D, 1 + n, H, W)``.
            encoded: the support scans.
            values: the ``n`` labels.
            reverse_dice: ``(n,)``.
            spacing_mm: distance of the slices.
            completion_discount: see :class:`SliceCompletion`.
            batch_size: slices at a time.
        """
        left_out, some = torch.zeros(len(values), dtype=torch.bool, device=scores.device), False
        if self.truncated_structures is not None:
            left_out = self.truncated_structures.find(scores, encoded, values, spacing_mm, batch_size)
            some = bool(left_out.any())
        discounts = F.pad(self.discounts(encoded, values, reverse_dice, completion_discount), (1, 0))
        for part in scores.split(batch_size):
            if some:
                part.copy_(leave_out(part, ~left_out))
            part /= (1 + discounts)[part.max(dim=1, keepdim=True).indices]

    def discounts(
        self, encoded: Sequence[EncodedSupport], values: Sequence[int], reverse_dice: Tensor, completion_discount: float
    ) -> Tensor:
        """Confidence discount of each label ``(n,)``, see ``reverse_dice_discount``."""
        discounts = self.reverse_dice_discount * (1 - reverse_dice)
        for row, value in enumerate(values):
            completed = [scan.completed_share for scan in encoded if scan.annotates(value)]
            if completed:
                discounts[row] += completion_discount * sum(completed) / len(completed)
            discounts[row] /= math.sqrt(max(len(completed), 1))
        return discounts
