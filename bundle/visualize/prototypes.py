"""Which prototype of the support decided each cell of a query."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.blocks.prototypes import class_prototypes, grid_positions, local_prototypes, resize_mask, similarity
from .colors import nth_color


def frame_to_picture(array: np.ndarray) -> np.ndarray:
    """Turn the last two axes from the network's frame to picture orientation: ``(…, H, W)`` to ``(…, W, H)``."""
    return np.ascontiguousarray(np.flip(np.swapaxes(array, -1, -2), (-1, -2)))


@dataclass(frozen=True)
class PrototypeMap:
    """The matching of one query slice with ``M`` support slices for one structure, in picture orientation.

    Attributes:
        grid: ``(M, gh, gw)``, the support's pooling windows.
        foreground: ``(M, gh, gw)`` boolean, windows that give a prototype of the structure.
        background: the same for the background.
        winner_class: ``(h, w)``, 1 where the structure won.
        winner: ``(h, w)``, number of the window of that class most similar to each cell, counted through ``grid``;
            -1 where the most similar prototype is a mean over a whole mask (class-level).
        margin: ``(h, w)``, score of the structure less that of the background.
        mismatch: largest difference of the network's scores and those of the prototypes shown here; near 0 while
            both follow the same rules.
    """

    grid: tuple[int, int, int]
    foreground: np.ndarray
    background: np.ndarray
    winner_class: np.ndarray
    winner: np.ndarray
    margin: np.ndarray
    mismatch: float = 0.0

    @property
    def probability(self) -> np.ndarray:
        """Probability ``(h, w)`` of the structure: the softmax of both scores."""
        return 1.0 / (1.0 + np.exp(-np.clip(self.margin, -50, 50)))

    def window_colors(self) -> np.ndarray:
        """A color ``(M, gh, gw, 3)`` for each window by its place, as of the background."""
        count, height, width = self.grid
        out = np.zeros((count, height, width, 3), np.uint8)
        for row in range(height):
            for column in range(width):
                hue = 0.45 + 0.45 * column / max(1, width - 1)  # green over blue to purple, away from the orange
                light = 0.72 - 0.42 * row / max(1, height - 1)
                out[:, row, column] = [round(255 * v) for v in colorsys.hls_to_rgb(hue, light, 0.65)]
        return out

    def support_colors(self) -> np.ndarray:
        """Colors ``(M, gh, gw, 3)`` of the windows that give a prototype, black elsewhere."""
        colors = np.where(self.background[..., None], self.window_colors(), 0).astype(np.uint8)
        colors[self.foreground] = nth_color(1)
        return colors

    def query_colors(self) -> np.ndarray:
        """Color ``(h, w, 3)`` of the prototype that decided each cell; class-level ones are white, or grey."""
        windows = self.window_colors().reshape(-1, 3)
        colors = windows[np.maximum(self.winner, 0)].copy()
        colors[self.winner_class > 0] = nth_color(1)
        colors[self.winner < 0] = (128, 128, 128)
        colors[(self.winner < 0) & (self.winner_class > 0)] = (255, 255, 255)
        return colors

    def window_wins(self) -> np.ndarray:
        """How many cells of the query each window decided: ``(M, gh, gw)``."""
        chosen = self.winner[self.winner >= 0]
        return np.bincount(chosen, minlength=int(np.prod(self.grid))).reshape(self.grid)


@torch.no_grad()
def prototype_map(
    network: nn.Module, query: Tensor, support: Tensor, foreground: Tensor, background: Tensor | None = None
) -> PrototypeMap:
    """Match one query slice for one structure and tell which prototype was most similar in each cell.

    The scores are the network's own; the most similar valid prototype of the winning class is the one with the
    largest weight in its softmax.

    Args:
        network: :class:`ALPNet` in evaluation mode.
        query: slice ``(C, H, W)`` in the network's frame.
        support: slices ``(M, C, H, W)``.
        foreground: masks ``(M, H, W)`` of the structure.
        background: masks of the background; ``None`` for all that is not foreground. Parts in neither give nothing.

    Raises:
        ValueError: if the shapes do not fit, or the structure is on none of the slices.
    """
    if support.ndim != 4 or foreground.shape != support.shape[:1] + support.shape[2:]:
        raise ValueError(f"foreground {tuple(foreground.shape)} does not fit support {tuple(support.shape)}")
    if not bool((foreground > 0).any()):
        raise ValueError("foreground is empty on every support slice; choose slices that show the structure")
    count = len(support)
    features = network.encode(torch.cat([query[None], support]))
    cells, support_features = features[:1], features[None, 1:]
    grid = list(features.shape[-2:])
    inside = foreground.float()[None]
    outside = 1 - inside if background is None else background.float()[None]
    inside, outside = resize_mask(inside, grid), resize_mask(outside, grid)
    scores = network.match(cells, support_features, inside, outside)[0]  # (2, h, w)

    masks = torch.stack([outside, inside], dim=1)  # (1, 2, M, h, w)
    window = network.testing_window
    vectors, coverage = local_prototypes(support_features, masks, window)
    levels, centers = class_prototypes(support_features, masks)
    gate = network.gate(masks[:, 1:], coverage[:, 1:])[..., None]
    local_background = coverage[:, :1] > network.background_threshold
    local_foreground = (coverage[:, 1:] > network.foreground_threshold) & gate
    present = masks.flatten(3).sum(dim=3) > 0
    share = present / present.sum(dim=2, keepdim=True).clamp(min=1)
    mean_levels, mean_centers = ((x * share[..., None]).sum(dim=2) for x in (levels, centers))
    use_mean = ~torch.stack([local_background.any(), gate.any()])
    none = torch.zeros_like(present)
    none[:, 1] = present[:, 1] & gate[:, 0]
    shots = torch.zeros(2, 2, count, dtype=torch.bool)
    shots[1, 1] = none[0, 1].cpu()
    valid = torch.cat(
        [
            torch.cat([local_background, local_foreground], dim=1)[0].cpu(),
            shots.flatten(1),
            torch.eye(2, dtype=torch.bool) & use_mean.cpu()[:, None],
        ],
        dim=1,
    )  # (2, P)
    side = min(window, *grid)
    height, width = grid[0] // side, grid[1] // side
    spots = near = None
    if network.position_weight != 0.0:
        weight = network.position_weight**0.5
        places = grid_positions(height, width, features)[None].repeat(1, count, 1)
        spots = weight * torch.cat([places, centers.flatten(1, 2), mean_centers], dim=1)
        near = weight * grid_positions(grid[0], grid[1], features)[None]
    prototypes = torch.cat([vectors, levels.flatten(1, 2), mean_levels], dim=1)
    similar = similarity(cells, prototypes, network.temperature, spots, near)[0].cpu()
    weights = torch.where(valid[..., None], similar[None], torch.full_like(similar[None], -1e4)).softmax(dim=1)
    again = (weights * valid[..., None] * similar[None]).sum(dim=1).reshape(2, *grid)
    mismatch = float((again - scores.cpu()).abs().max())
    winner_class = scores.argmax(dim=0).cpu()  # (h, w)
    own = valid[winner_class.flatten()].T  # (P, h * w)
    winner = torch.where(own, similar, torch.full_like(similar, -torch.inf)).argmax(dim=0).reshape(grid)

    windows = count * height * width
    order = np.arange(windows).reshape(count, height, width)
    renumber = np.empty(windows, np.int64)
    renumber[frame_to_picture(order).ravel()] = np.arange(windows)
    number = np.where(winner.numpy() < windows, renumber[np.minimum(winner.numpy(), windows - 1)], -1)
    shown = valid[:, :windows].reshape(2, count, height, width).numpy()
    return PrototypeMap(
        (count, width, height),
        frame_to_picture(shown[1]),
        frame_to_picture(shown[0]),
        frame_to_picture(winner_class.numpy()),
        frame_to_picture(number),
        frame_to_picture((scores[1] - scores[0]).cpu().numpy()),
        mismatch,
    )
