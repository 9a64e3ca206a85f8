"""Colors of labels: told apart by color-blind readers and readable on grey images."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Okabe and Ito's palette without its black and grey, the colors of highest contrast on grey images first.
PALETTE = ("#56B4E9", "#E69F00", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")

# Samples of matplotlib's inferno: its lightness rises evenly, which every kind of color vision tells apart.
HEAT = ("#420A68", "#932667", "#DD513A", "#FCA50A", "#FCFFA4")
# Samples of matplotlib's viridis, for the same reason; its colors are told from those above.
VIRIDIS = ("#440154", "#3B528B", "#21918C", "#5EC962", "#FDE725")

Color = tuple[int, int, int]


def parse_color(text: str) -> Color:
    """Red, green and blue in 0..255 of ``"#RRGGBB"``.

    Raises:
        ValueError: for anything else.
    """
    try:
        if len(text) != 7 or text[0] != "#":
            raise ValueError
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    except ValueError:
        raise ValueError(f"a color must be written #RRGGBB, got {text!r}") from None


def hex_color(color: Color) -> str:
    """``"#RRGGBB"`` of a color."""
    return "#{:02X}{:02X}{:02X}".format(*color)


def nth_color(index: int) -> Color:
    """Color of the ``index``-th label, from 0: the palette first, then hues by the golden ratio in two lightnesses.

    Only the palette's seven colors are safe for color-blind readers; beyond them the legend and the contours help.
    """
    if index < len(PALETTE):
        return parse_color(PALETTE[index])
    hue = (index * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45 if index % 2 else 0.7, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def label_colors(values: Iterable[int]) -> dict[int, Color]:
    """A color for each label value besides 0.

    Values up to the palette's length always have the same color, whatever other values there are, so that a label
    keeps its color from picture to picture.
    """
    return {int(value): nth_color(int(value) - 1) for value in sorted(set(values)) if value > 0}


def heat_colors(hues: Sequence[str] = HEAT, levels: int = 13, strongest: float = 0.85) -> tuple[list[Color], list[int]]:
    """Colors and opacities of a heat in even steps: clear first, then dark to bright.

    The first two steps are clear: what is nearly good must not tint the scan.

    Args:
        hues: colors from weak to strong.
        levels: number of steps, at least 3.
        strongest: opacity of the last ones, in 0..1.

    Returns:
        ``levels`` colors, and opacities in 0..255.
    """
    anchors = [parse_color(color) for color in hues]
    colors: list[Color] = []
    alpha = []
    for level in range(levels):
        share = level / (levels - 1)
        place = min(share * (len(anchors) - 1), len(anchors) - 1 - 1e-9)
        low, high, rest = anchors[int(place)], anchors[int(place) + 1], place - int(place)
        red, green, blue = (round(a + (b - a) * rest) for a, b in zip(low, high))
        colors.append((red, green, blue))
        alpha.append(round(255 * strongest * min(1.0, 3.5 * max(0, level - 1) / (levels - 2))))
    return colors, alpha


@dataclass(frozen=True)
class HeatScale:
    """How a map in [0, 1] becomes a heat that shows where it is low.

    Attributes:
        hues: colors from weak to strong.
        clear: value from which there is no color.
        strongest: value at which the color is strongest, below ``clear``.
        good, bad: what the legend says at the ends.
    """

    hues: tuple[str, ...]
    clear: float
    strongest: float
    good: str
    bad: str


CONFIDENCE_SCALE = HeatScale(HEAT, 1.0, 0.4, "sure", "unsure")
# Between two scans of CHAOS, half of the body lies between 0.61 and 0.73, one percent of it below 0.5.
SIMILARITY_SCALE = HeatScale(VIRIDIS, 0.7, 0.4, "the support shows the like", "nothing like it in the support")
