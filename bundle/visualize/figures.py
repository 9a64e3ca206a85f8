"""Figures for people: superpixels, episodes, overlays, the support's part in a result, training curves.

Every function returns a ``matplotlib`` figure with its own Agg canvas: nothing is registered, shown or configured
globally, and a figure is freed when it goes out of scope. Slices are planes in picture orientation, see
:func:`to_planes`; each picture carries the letter of the patient's side at its left and top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import ArrayLike

from ..atomic import replacing
from ..data.datalist import spread
from .colors import PALETTE, Color, hex_color, label_colors, nth_color, parse_color
from .picture import (
    Planes,
    borders,
    labelled_slices,
    picture_size,
    plane_dice,
    render_slice,
    resize_grey,
    resize_labels,
    to_grey,
)
from .prototypes import PrototypeMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Figure_, _ = optional_import("matplotlib.figure", name="Figure")
FigureCanvas, _ = optional_import("matplotlib.backends.backend_agg", name="FigureCanvasAgg")
Patch, _ = optional_import("matplotlib.patches", name="Patch")
Line, _ = optional_import("matplotlib.lines", name="Line2D")
Ticks, _ = optional_import("matplotlib.ticker", name="MaxNLocator")
stroke, _ = optional_import("matplotlib.patheffects", name="withStroke")

CONVENTION = {
    "R": "radiological view: the patient's right (R) is on the left of each picture",
    "A": "sagittal view: the patient's front (A) is on the left of each picture",
}
INK, PAPER, BORDER = "#1b1f24", "#ffffff", "#F0E442"


def new_figure(
    rows: int, columns: int, width: float, aspect: float = 1.0, head: float = 0.0, foot: float = 0.0
) -> tuple[Any, np.ndarray]:
    """A figure of ``rows * columns`` pictures, each under a title line, with room above and below.

    Args:
        rows: rows of pictures.
        columns: columns of pictures.
        width: of a column in inches.
        aspect: width of a picture divided by its height.
        head: inches above the pictures.
        foot: inches below the pictures.

    Returns:
        The figure and its axes ``(rows, columns)``, each exactly as large as its picture.
    """
    gap, title = 0.06, 0.25
    height = (width - gap) / aspect
    total = head + rows * (title + height + gap) + foot
    figure = Figure_(figsize=(columns * width, total), dpi=100, facecolor=PAPER)
    FigureCanvas(figure)
    axes = np.empty((rows, columns), dtype=object)
    for row in range(rows):
        bottom = total - head - (row + 1) * (title + height) - row * gap
        for column in range(columns):
            left = column * width + gap / 2
            box = (left / (columns * width), bottom / total, (width - gap) / (columns * width), height / total)
            axes[row, column] = figure.add_axes(box)
            axes[row, column].set_axis_off()
    return figure, axes


def draw_picture(ax: Axes, picture: np.ndarray, title: str, planes: Planes | None = None, **kwargs: Any) -> None:
    """Show a picture with its title, and the letters of the patient's sides if ``planes`` tells them."""
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    ax.imshow(picture, interpolation="nearest", **kwargs)
    ax.set_title(title, fontsize=8.5, color=INK, pad=3)
    if planes is not None:
        style = {"color": "white", "fontsize": 9, "fontweight": "bold", "transform": ax.transAxes}
        edge = [stroke(linewidth=1.8, foreground="black")]
        ax.text(0.02, 0.5, planes.left, ha="left", va="center", path_effects=edge, **style)
        ax.text(0.5, 0.985, planes.top, ha="center", va="top", path_effects=edge, **style)


def draw_legend(
    figure: Figure, names: Mapping[int, str], colors: Mapping[int, Color], notes: Sequence[Any] = (), foot: float = 0.0
) -> None:
    """Names and colors of labels below the pictures, and what fill and line mean."""
    handles = [Patch(facecolor=hex_color(colors[v]), edgecolor="none", label=name) for v, name in names.items()]
    handles = [*handles, *notes]
    if handles:
        columns = max(1, min(len(handles), int(figure.get_figwidth() / 1.25)))
        figure.legend(
            handles=handles,
            loc="lower center",
            ncol=columns,
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
            bbox_to_anchor=(0.5, foot / figure.get_figheight()),
            handlelength=1.4,
            columnspacing=1.4,
        )


def draw_notes(figure: Figure, title: str, text: str) -> None:
    """A heading on top of the figure and one line at its bottom."""
    if title:
        figure.text(0.01, 1 - 0.09 / figure.get_figheight(), title, ha="left", va="top", fontsize=11, color=INK)
    figure.text(0.01, 0.07 / figure.get_figheight(), text, ha="left", va="bottom", fontsize=7.5, color="#57606a")


def layout(count: int, aspect: float, columns: int | None = None) -> tuple[int, int]:
    """Rows and columns of ``count`` pictures of the given aspect, a little wider than high."""
    columns = min(count, columns or max(1, round(math.sqrt(1.9 * count / aspect))))
    return math.ceil(count / columns), columns


def legend_room(count: int, width: float) -> float:
    """Inches that a legend of ``count`` entries and the note below it take in a figure ``width`` inches wide."""
    return 0.34 + 0.2 * math.ceil(count / max(1, int(width / 1.25)))


def names_of(values: Sequence[int], names: Mapping[int, str] | None) -> dict[int, str]:
    """A name for each label value."""
    return {int(v): (names or {}).get(int(v), f"label {int(v)}") for v in sorted(set(values)) if v > 0}


def superpixel_figure(
    image: Planes,
    superpixels: ArrayLike,
    slices: Sequence[int] | None = None,
    title: str = "",
    count: int = 8,
    side_px: int = 384,
) -> Figure:
    """Borders of superpixels over slices, each superpixel tinted; the number of superpixels above each.

    Args:
        image: the scan.
        superpixels: maps ``(D, H, W)`` on the planes of ``image``, 0 for none; or several levels ``(L, D, H, W)``,
            each in a row of its own.
        slices: which; ``None`` for ``count`` of those that have superpixels, with levels 4 at most.
        title: heading.
        count: number of slices to choose.
        side_px: longer side of a picture.

    Raises:
        ValueError: if the maps have another shape than the image.
    """
    maps = np.asarray(superpixels)
    maps = maps[None] if maps.ndim == 3 else maps
    if maps.shape[1:] != image.values.shape:
        raise ValueError(f"superpixels of shape {maps.shape} do not fit the planes of shape {image.values.shape}")
    levels = len(maps)
    count = count if levels == 1 else min(count, 4)
    chosen = spread(labelled_slices(*maps), count) if slices is None else list(slices)
    chosen = chosen or [maps.shape[1] // 2]
    rows, columns = layout(len(chosen), image.aspect) if levels == 1 else (levels, len(chosen))
    figure, axes = new_figure(rows, columns, 2.6, image.aspect, 0.3 if title else 0.0, 0.24)
    grey = to_grey(image.values)
    size = picture_size(maps.shape[2:], image.pixel_mm, side_px)
    for ax, (level, z) in zip(axes.flat, [(level, z) for level in range(levels) for z in chosen]):
        plane = maps[level, z]
        identifiers = np.unique(plane[plane > 0])
        colors = {int(v): nth_color(i % len(PALETTE)) for i, v in enumerate(identifiers)}
        tinted = render_slice(grey[z], fill=plane, colors=colors, size=size, opacity=0.15)
        tinted[borders(resize_labels(plane, size))] = parse_color(BORDER)
        prefix = "" if levels == 1 else f"level {level + 1}, "
        draw_picture(ax, tinted, f"{prefix}slice {z + 1}: {len(identifiers)} superpixels", image)
    draw_notes(figure, title, CONVENTION.get(image.left, ""))
    return figure


def episode_figure(
    episodes: Sequence[Mapping[str, ArrayLike]], title: str = "", note: str = "", aspect: float = 1.0
) -> Figure:
    """Episodes side by side: support view with its mask, query view, its true mask, and a prediction if there is one.

    Args:
        episodes: each with planes ``(H, W)``: ``support``, ``support_mask``, ``query``, ``query_mask``, optional
            ``prediction``, see :func:`episode_planes`. Grey values of any scale; masks are label maps, 0 background.
        title: heading.
        note: line at the bottom.
        aspect: width of a picture divided by its height, in mm.

    Raises:
        ValueError: without an episode.
    """
    if not episodes:
        raise ValueError("episodes must hold at least one episode, got none")
    predicted = any("prediction" in episode for episode in episodes)
    columns = 4 if predicted else 3
    figure, axes = new_figure(len(episodes), columns, 2.4, aspect, 0.3 if title else 0.0, 0.24)
    view = Planes(np.zeros((1, 1, 1)), "R", "A", (1.0, 1.0), 1.0)
    for row, episode in zip(axes, episodes):
        support, query = to_grey(episode["support"]), to_grey(episode["query"])
        height, width = support.shape
        size = picture_size(support.shape, (width / (height * aspect), 1.0), 320)
        maps = {k: np.rint(v).astype(int) for k, v in episode.items() if k not in ("support", "query")}
        values = sorted({int(v) for labels in maps.values() for v in np.unique(labels) if v > 0})
        colors = {value: nth_color(value % len(PALETTE)) for value in values}
        drawn = [(support, "support_mask", "support"), (query, "query_mask", "query, true")]
        for ax, (grey, key, name) in zip(row[[0, 2]], drawn):
            shown = np.unique(maps[key][maps[key] > 0])
            what = f"{int((maps[key] > 0).sum())} px" if len(values) <= 1 else f"{len(shown)} regions"
            draw_picture(ax, render_slice(grey, maps[key], maps[key], colors, size), f"{name} mask, {what}", view)
        draw_picture(row[1], render_slice(query, size=size), "query", view)
        if "prediction" in episode:
            scores = [plane_dice(maps["prediction"], maps["query_mask"], value) for value in values]
            score = f", Dice {100 * float(np.nanmean(scores)):.0f}" if scores else ""
            marked = render_slice(query, maps["prediction"], maps["query_mask"], colors, size)
            draw_picture(row[3], marked, f"prediction (line: truth){score}", view)
    draw_notes(figure, title, note or CONVENTION["R"])
    return figure


def overlay_figure(
    image: Planes,
    prediction: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    names: Mapping[int, str] | None = None,
    slices: Sequence[int] | None = None,
    title: str = "",
    count: int = 8,
    side_px: int = 384,
) -> Figure:
    """A montage of slices with the prediction filled and the truth outlined, with Dice in the titles.

    Args:
        image: the scan.
        prediction: label map ``(D, H, W)`` on the planes of ``image``, or ``None``.
        truth: the same for the truth. Alone it is filled.
        names: names of the label values.
        slices: which; ``None`` for ``count`` of those that show a label.
        title: heading; the Dice of the whole volume is added where both maps are given.
        count: number of slices to choose.
        side_px: longer side of a picture.

    Raises:
        ValueError: without any label map, or if one has another shape than the image.
    """
    given = {"prediction": prediction, "truth": truth}
    maps = {name: np.asarray(labels).astype(np.int64) for name, labels in given.items() if labels is not None}
    if not maps:
        raise ValueError("overlay_figure needs prediction or truth, got neither")
    for name, labels in maps.items():
        if labels.shape != image.values.shape:
            raise ValueError(f"{name} of shape {labels.shape} does not fit the planes of shape {image.values.shape}")
    values = sorted({int(v) for labels in maps.values() for v in np.unique(labels) if v > 0})
    known = names_of(values, names)
    colors = label_colors(values)
    both = len(maps) == 2
    chosen = spread(labelled_slices(*maps.values()), count) if slices is None else list(slices)
    chosen = chosen or spread(range(len(image.values)), count)
    rows, columns = layout(len(chosen), image.aspect)
    width = 2.6
    notes = []
    if both:
        notes = [Patch(facecolor="#8c959f", label="fill: prediction", alpha=0.6)]
        notes.append(Line([], [], color=INK, linewidth=1.6, label="line: truth"))
    foot = legend_room(len(known) + len(notes), columns * width)
    lines = heading_lines(title, maps, known, columns * width) if both else [title] * bool(title)
    figure, axes = new_figure(rows, columns, width, image.aspect, 0.19 * len(lines) + 0.12 * bool(lines), foot)
    size = picture_size(image.values.shape[1:], image.pixel_mm, side_px)
    grey = to_grey(image.values)
    for ax, z in zip(axes.flat, chosen):
        shown = {name: labels[z] for name, labels in maps.items()}
        fill = shown.get("prediction", shown.get("truth"))
        picture = render_slice(grey[z], fill, shown.get("truth", fill), colors, size)
        draw_picture(ax, picture, f"slice {z + 1}{slice_score(shown) if both else ''}", image)
    draw_legend(figure, known, colors, notes, 0.2)
    draw_notes(figure, "\n".join(lines), CONVENTION.get(image.left, ""))
    return figure


def heading_lines(title: str, maps: Mapping[str, np.ndarray], names: Mapping[int, str], width: float) -> list[str]:
    """Title and the Dice of each label in the whole volume, in lines that fit ``width`` inches."""
    parts = []
    for value, name in names.items():
        dice = plane_dice(maps["prediction"], maps["truth"], value)
        parts.append(f"{name} {100 * dice:.1f}")
    text = "Dice % (whole volume): " + ", ".join(parts)
    limit = max(20, int(width * 11))
    lines = [title] if title else []
    while len(text) > limit and ", " in text[:limit]:
        cut = text[:limit].rindex(", ")
        lines.append(text[: cut + 1])
        text = text[cut + 2 :]
    return [*lines, text] if parts else lines


def slice_score(shown: Mapping[str, np.ndarray]) -> str:
    """Mean Dice of a slice over the labels that either map shows, as the end of a title."""
    values = sorted({int(v) for plane in shown.values() for v in np.unique(plane) if v > 0})
    scores = [plane_dice(shown["prediction"], shown["truth"], value) for value in values]
    return f": Dice {100 * float(np.mean(scores)):.0f}" if scores else ""


def triptych_figure(
    support: ArrayLike,
    support_label: ArrayLike,
    query: ArrayLike,
    prediction: ArrayLike,
    names: Mapping[int, str] | None = None,
    truth: ArrayLike | None = None,
    pixel_mm: Sequence[Sequence[float]] = ((1.0, 1.0), (1.0, 1.0)),
    sides: tuple[str, str] = ("R", "A"),
) -> Figure:
    """Support with its labels, query, and prediction, in a row.

    Args:
        support: plane of grey values of any scale.
        support_label: its label plane.
        query: plane.
        prediction: its label plane.
        names: names of the label values.
        truth: the query's true labels, outlined, or ``None``.
        pixel_mm: pixel sizes of the support's and the query's plane.
        sides: letters at the left and top of the pictures.
    """
    values = [int(v) for labels in (support_label, prediction) for v in np.unique(np.asarray(labels)) if v > 0]
    known, colors = names_of(values, names), label_colors(values)
    sizes = [picture_size(np.shape(p), mm, 420) for p, mm in ((support, pixel_mm[0]), (query, pixel_mm[1]))]
    width = 3.2
    aspect = min(size[1] / size[0] for size in sizes)
    figure, axes = new_figure(1, 3, width, aspect, 0.0, legend_room(len(known), 3 * width))
    view = Planes(np.zeros((1, 1, 1)), *sides, (1.0, 1.0), 1.0)
    first = render_slice(to_grey(support), support_label, support_label, colors, sizes[0])
    line = prediction if truth is None else truth
    last = render_slice(to_grey(query), prediction, line, colors, sizes[1])
    ending = "prediction" if truth is None else "prediction (fill), truth (line)"
    draw_picture(axes[0, 0], first, "support: one labelled scan", view)
    draw_picture(axes[0, 1], render_slice(to_grey(query), size=sizes[1]), "query: a new scan", view)
    draw_picture(axes[0, 2], last, ending, view)
    draw_legend(figure, known, colors, (), 0.2)
    draw_notes(figure, "", CONVENTION.get(sides[0], ""))
    return figure


def prototype_figure(
    result: PrototypeMap,
    support: ArrayLike,
    query: ArrayLike,
    name: str = "foreground",
    pixel_mm: Sequence[Sequence[float]] = ((1.0, 1.0), (1.0, 1.0)),
    title: str = "",
) -> Figure:
    """What the support contributes to a result: its prototypes, and where in the query each of them won.

    The support's windows that give a prototype are colored, those of the background by their place (hue from left to
    right, lightness from top to bottom) so that the map of winners can be read: a cell of the query has the color of
    the support window that decided it. The third and fourth picture of the query show its probability and
    the result.

    Args:
        result: see :func:`prototype_map`.
        support: planes ``(M, H, W)``, the support slices.
        query: plane ``(H, W)``.
        name: name of the foreground.
        pixel_mm: pixel sizes of the support's and the query's planes.
        title: heading.
    """
    planes = np.asarray(support)
    count = len(planes)
    sizes = [picture_size(p, mm, 384) for p, mm in ((planes.shape[1:], pixel_mm[0]), (np.shape(query), pixel_mm[1]))]
    width = 2.8
    aspect = min(size[1] / size[0] for size in sizes)
    columns = max(count, 4)
    figure, axes = new_figure(2, columns, width, aspect, 0.32 if title else 0.0, 0.6)
    view = Planes(np.zeros((1, 1, 1)), "R", "A", (1.0, 1.0), 1.0)
    for ax, plane, colors, wins in zip(axes[0], planes, result.support_colors(), result.window_wins()):
        picture = tint(to_grey(plane), colors, sizes[0], 0.55)
        windows = int((colors.sum(axis=2) > 0).sum())
        draw_picture(ax, picture, f"support: {windows} windows, {int((wins > 0).sum())} won a cell", view)
    grey = to_grey(query)
    draw_picture(axes[1, 0], render_slice(grey, size=sizes[1]), "query", view)
    picture = tint(grey, result.query_colors(), sizes[1], 0.6)
    draw_picture(axes[1, 1], picture, "which prototype won each cell", view)
    chance = resize_grey(result.probability, sizes[1])
    draw_picture(axes[1, 2], chance, f"probability of {name}", view, cmap="cividis", vmin=0, vmax=1)
    mask = (result.winner_class > 0).astype(int)
    final = render_slice(grey, resize_labels(mask, np.shape(query)), None, {1: nth_color(1)}, sizes[1])
    draw_picture(axes[1, 3], final, f"result: {name}", view)
    handles = [
        Patch(facecolor=hex_color(nth_color(1)), label=f"{name}: local prototypes"),
        Patch(facecolor="#FFFFFF", edgecolor=INK, label=f"{name}: class prototype (mean of the mask)"),
        Patch(facecolor="#4f86c6", label="background prototypes, colored by their place in the support"),
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncol=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        bbox_to_anchor=(0.5, 0.22 / figure.get_figheight()),
    )
    draw_notes(figure, title, f"{CONVENTION['R']}; probability: 0 dark blue, 1 bright yellow")
    return figure


def tint(grey: np.ndarray, colors: np.ndarray, size: Sequence[int], opacity: float) -> np.ndarray:
    """A slice under a coarse grid of colors ``(h, w, 3)``, black cells left as they are."""
    out = np.repeat(resize_grey(grey, size)[..., None], 3, axis=2) * 255
    rows = np.arange(size[0]) * colors.shape[0] // size[0]
    columns = np.arange(size[1]) * colors.shape[1] // size[1]
    spread_out = colors[rows][:, columns].astype(np.float32)
    inside = spread_out.sum(axis=2) > 0
    out[inside] = (1 - opacity) * out[inside] + opacity * spread_out[inside]
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def curves_figure(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "") -> Figure:
    """Training curves, one panel each: the values in pale, their running mean in dark, the best value marked.

    Args:
        curves: name to steps and values, see :func:`read_curves`.
        title: heading.

    Raises:
        ValueError: without a curve.
    """
    if not curves:
        raise ValueError("curves must hold at least one curve, got none")
    rows, columns = layout(len(curves), 1.6, columns=min(3, len(curves)))
    figure = Figure_(figsize=(4.2 * columns, 2.8 * rows + 0.3), dpi=100, facecolor=PAPER, layout="constrained")
    FigureCanvas(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (0.3 if title else 0.0) / figure.get_figheight()))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, (steps, values)) in zip(axes.flat, curves.items()):
        steps, values = np.asarray(steps, float), np.asarray(values, float)
        ax.set_axis_on()
        ax.plot(steps, values, color="#56B4E9", linewidth=1, alpha=0.6, marker="." if len(values) < 30 else "")
        if len(values) >= 30:
            ax.plot(steps, running_mean(values), color="#0072B2", linewidth=1.8)
        finite = np.isfinite(values)
        if finite.any():
            falls = "loss" in name.lower()
            best = np.nanargmin(values) if falls else np.nanargmax(values)
            ax.set_title(f"{name} ({'lowest' if falls else 'highest'} {values[best]:.3g} at {steps[best]:g})")
        ax.title.set_fontsize(9)
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(Ticks(nbins=6, integer=True))
        ax.grid(alpha=0.3)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    draw_notes(figure, title, "")
    return figure


def scatter_figure(groups: Mapping[str, ArrayLike], across: str, up: str) -> Figure:
    """Points of several groups, in percent, with the line on which both are equal.

    Args:
        groups: name to the points ``(N, 2)``.
        across: what the first coordinate is.
        up: what the second one is.
    """
    figure = Figure_(figsize=(4.6, 4.6), facecolor=PAPER, layout="constrained")
    FigureCanvas(figure)
    ax = figure.add_subplot()
    ax.plot([0, 100], [0, 100], color=INK, linewidth=0.8)
    for (name, points), color in zip(groups.items(), label_colors(range(1, 1 + len(groups))).values()):
        ax.scatter(*np.asarray(points).T, s=14, color=hex_color(color), alpha=0.7, linewidths=0, label=name)
    ax.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal", xlabel=across, ylabel=up)
    ax.legend(frameon=False, fontsize=8.5, loc="upper left")
    return figure


def running_mean(values: ArrayLike, share: float = 0.05) -> np.ndarray:
    """Centered mean over ``share`` of the values, at least 5, with shorter windows at both ends; NaN left out."""
    values = np.asarray(values, float)
    half = max(2, int(len(values) * share / 2))
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    first = np.clip(np.arange(len(values)) - half, 0, None)
    last = np.clip(np.arange(len(values)) + half + 1, None, len(values))
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def figure_array(figure: Figure) -> np.ndarray:
    """A figure's pixels ``(H, W, 3)`` uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> Path:
    """Write a figure as PNG in one step and return its path; its folder is made."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return Path(path)
