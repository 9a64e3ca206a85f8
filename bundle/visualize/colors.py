"""Colors of labels: told apart by color-blind readers and readable on grey images."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

# Okabe and Ito's palette without its black and grey, the colors of highest contrast on grey images first.
PALETTE = ("#56B4E9", "#E69F00", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")

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
