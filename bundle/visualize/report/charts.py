"""Charts as inline SVG, colored by the page's style sheet so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from ..figures import running_mean
from .runs import mean_sd


def strip_chart(scores: Mapping[str, Sequence[float]], width: int = 460) -> str:
    """Dice of each label: a dot a case on a line from 0 to 100, with mean and standard deviation.

    Args:
        scores: label name to Dice in percent.
        width: of the drawing in its own units.
    """
    left, row, top = 112, 30, 6
    height = top + row * len(scores) + 26
    scale = (width - left - 56) / 100
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Dice of each label">']
    for tick in range(0, 101, 20):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{tick}</text>')
    for index, (name, values) in enumerate(scores.items()):
        y = top + row * (index + 0.5)
        mean, spread = mean_sd(values)
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        if not np.isnan(spread):
            low, high = (left + scale * float(np.clip(mean + side * spread, 0, 100)) for side in (-1, 1))
            parts.append(f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts += [f'<circle class="dot" cx="{left + v * scale:.1f}" cy="{y:.1f}" r="4.5"/>' for v in values]
        if not np.isnan(mean):
            x = left + mean * scale
            parts.append(f'<line class="mean" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 10:.1f}" y2="{y + 10:.1f}"/>')
            parts.append(f'<text class="value" x="{width - 40}" y="{y + 4:.1f}">{mean:.1f}</text>')
    return "".join([*parts, "</svg>"])


def line_chart(name: str, steps: ArrayLike, values: ArrayLike, width: int = 420, height: int = 230) -> str:
    """One training curve: the values in pale, their running mean in strong, the best value marked.

    Args:
        name: of the curve; names with ``loss`` are best where they are lowest.
        steps: of the values.
        values: NaN and infinite ones are left out.
        width: of the drawing in its own units.
        height: of the drawing.
    """
    xs, ys = np.asarray(steps, float), np.asarray(values, float)
    xs, ys = xs[np.isfinite(ys)], ys[np.isfinite(ys)]
    if len(ys) == 0:
        return ""
    left, right, top, bottom = 52, 14, 26, 30
    low, high = float(ys.min()), float(ys.max())
    high = high if high > low else low + (abs(low) or 1.0)
    first, last = float(xs[0]), float(xs[-1])
    across = (width - left - right) / ((last - first) or 1.0)
    up = (height - top - bottom) / (high - low)

    def line(curve: np.ndarray, kind: str) -> str:
        keep = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), 600)).astype(int))
        points = " ".join(
            f"{left + (xs[i] - first) * across:.1f},{height - bottom - (curve[i] - low) * up:.1f}" for i in keep
        )
        return f'<polyline class="{kind}" points="{points}"/>'

    falls = "loss" in name.lower()
    best = int(ys.argmin() if falls else ys.argmax())
    x, y = left + (xs[best] - first) * across, height - bottom - (ys[best] - low) * up
    title = f"{name}: {'lowest' if falls else 'highest'} {ys[best]:.4g} at {xs[best]:g}"
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text class="name" x="{left}" y="15">{escape(title)}</text>')
    for share in (0.0, 0.5, 1.0):
        level = height - bottom - share * (high - low) * up
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        text = f"{low + share * (high - low):.3g}"
        parts.append(f'<text class="tick" x="{left - 6}" y="{level + 4:.1f}" text-anchor="end">{text}</text>')
    for place, step, anchor in ((left, first, "start"), (width - right, last, "end")):
        parts.append(f'<text class="tick" x="{place}" y="{height - 10}" text-anchor="{anchor}">{step:g}</text>')
    many = len(ys) >= 30
    parts.append(line(ys, "pale" if many else "strong"))
    if many:
        parts.append(line(running_mean(ys), "strong"))
    parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return "".join([*parts, "</svg>"])
