"""A query matched to what it is sure of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .matching import match_own_cells
from .scores import margins


@dataclass(frozen=True)
class SelfSupportRefinement:
    """Averages scores with those that the query's own confident cells give, as support of the slices around.

    An organ looks more like itself in the next slice than like that of another body.

    Args:
        rounds: how often.
        reach: neighboring slices on each side.
        margin: by how much a class must win in a cell for the cell to count as confident.
        fewest_cells: a class that is confident in fewer cells of these slices keeps its scores.

    Raises:
        ValueError: for a negative number.
    """

    rounds: int = 1
    reach: int = 1
    margin: float = 1.0
    fewest_cells: int = 3

    def __post_init__(self) -> None:
        if min(self.rounds, self.reach, self.margin, self.fewest_cells) < 0:
            raise ValueError(
                "rounds, reach, margin and fewest_cells must be at least 0, got "
                f"{self.rounds}, {self.reach}, {self.margin} and {self.fewest_cells}"
            )

    def __call__(
        self,
        network: nn.Module,
        features: Tensor,
        scores: Tensor,
        possible: Tensor,
        exclusive: bool,
        smooth: Callable[[Tensor], Tensor],
        batch_size: int,
    ) -> Tensor:
        """Refine scores.

        Args:
            network: the network that matches.
            features: ``(D, channels, h, w)``.
            scores: ``(D, n, h, w)``, see ``exclusive``.
            possible: where each class can appear ``(D, n)``.
            exclusive: whether the channels are classes, the background first, or each label stands against 0.
            smooth: what is done with scores after each round.
            batch_size: slices a pass.

        Returns:
            Scores of the same kind and shape.
        """
        for _ in range(self.rounds):
            again = self._match(network, features, scores, possible, exclusive, batch_size)
            scores = smooth((scores + again) / 2)
        return scores

    def _match(
        self, network: nn.Module, features: Tensor, scores: Tensor, possible: Tensor, exclusive: bool, batch_size: int
    ) -> Tensor:
        """Scores by the confident cells alone."""
        sure = margins(scores) > self.margin if exclusive else scores > self.margin
        sure_background = None if exclusive else scores < -self.margin
        out = scores.clone()
        rows = [slice(1, None)] if exclusive else [slice(row, row + 1) for row in range(scores.shape[1])]
        for row in rows:
            can = possible[:, row].to(scores.dtype)[..., None, None]
            ways = sure[:, row] * can
            rest = sure[:, 0] if sure_background is None else sure_background[:, row.start] * can[:, 0]
            where = can.flatten(1).any(dim=1).nonzero()[:, 0]
            if not len(where):
                continue
            found, answering = match_own_cells(network, features, ways, rest, where, self.reach, batch_size)
            enough = (answering >= self.fewest_cells).all(dim=2)
            if exclusive:
                enough = torch.cat([enough.any(dim=1, keepdim=True), enough], dim=1)
                out[where] = torch.where(enough[..., None, None], found, out[where])
            else:
                own = found[:, 1:] - found[:, :1]
                out[where, row.start] = torch.where(enough[..., None, None], own, out[where, row])[:, 0]
        return out
