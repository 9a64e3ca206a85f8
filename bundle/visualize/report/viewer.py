"""Slices of a case as pictures inside the page."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import optional_import
from nibabel.filebasedimages import ImageFileError

from ...data.datalist import SUFFIXES, spread
from ...keys import CONFIDENCE, SIMILARITY
from ..colors import CONFIDENCE_SCALE, SIMILARITY_SCALE, Color, HeatScale, heat_colors, hex_color, label_colors
from ..picture import labelled_slices, outline, picture_size, plane_dice, resize_grey, resize_labels, to_grey, to_planes

PictureFile, _ = optional_import("PIL.Image")
ndimage, _ = optional_import("scipy.ndimage")


def find_file(dataset_dir: str | os.PathLike | None, kind: str, case: str) -> Path | None:
    """Image or label (``kind`` ``"images"`` or ``"labels"``) of a case in a data set; ``None`` if it is not there."""
    if dataset_dir is None:
        return None
    names = [Path(dataset_dir) / f"{kind}{part}" / f"{case}{suffix}" for part in ("Tr", "Ts") for suffix in SUFFIXES]
    return next((path for path in names if path.is_file()), None)


def case_pictures(
    prediction: str | os.PathLike,
    image: str | os.PathLike | None,
    label: str | os.PathLike | None,
    names: Mapping[int, str],
    count: int = 48,
    side_px: int = 512,
    quality: int = 82,
    confidence: str | os.PathLike | None = None,
    similarity: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Everything a viewer of one case needs, with pictures as data URIs.

    Args:
        prediction: label map.
        image: the scan on the same grid; ``None`` for a black background.
        label: the truth on the same grid; ``None`` for none.
        names: names of the label values.
        count: slices at most.
        side_px: longest side of the label pictures; the scan keeps its own size if that is smaller.
        quality: of the scan's JPEG.
        confidence: percent on the same grid; ``None`` for none.
        similarity: to the support, as before.

    Returns:
        ``slices`` (each ``number``, ``image``, ``prediction``, ``truth``, ``confidence``, ``similarity``, ``note``),
        ``start``, ``total``, ``left``, ``top``, ``aspect``, ``legend`` (name and color), ``truth``, ``confidence`` and
        ``similarity`` (whether there is any), ``note`` (what is missing).

    Raises:
        ValueError: if a file cannot be read or the files are not on one grid.
    """
    predicted, affine = _read(prediction)
    planes = to_planes(predicted, affine)
    maps = {"prediction": planes.values.astype(np.int64)}
    grey, missing = np.zeros(planes.values.shape, np.float32), []
    for name, path in (("image", image), ("truth", label)):
        if path is None:
            missing.append(f"no {'scan' if name == 'image' else 'truth'} found")
            continue
        volume = _read(path)[0]
        if volume.shape != predicted.shape:
            raise ValueError(f"{path}: shape {volume.shape} does not fit the prediction {predicted.shape}")
        turned = to_planes(volume, affine).values
        if name == "image":
            grey = to_grey(turned)
        else:
            maps["truth"] = turned.astype(np.int64)
    heats: dict[str, tuple[np.ndarray, HeatScale]] = {}
    for name, path, scale in ((CONFIDENCE, confidence, CONFIDENCE_SCALE), (SIMILARITY, similarity, SIMILARITY_SCALE)):
        if path is None:
            continue
        volume = _read(path)[0]
        if volume.shape != predicted.shape:
            raise ValueError(f"{path}: shape {volume.shape} does not fit the prediction {predicted.shape}")
        heats[name] = np.clip(to_planes(volume, affine).values, 0, 100), scale
    values = sorted({int(v) for labels in maps.values() for v in np.unique(labels) if v > 0})
    colors = label_colors(values)
    shown = labelled_slices(*maps.values()) or list(range(len(grey)))
    chosen = spread(range(max(0, shown[0] - 1), min(len(grey), shown[-1] + 2)), count)
    size = picture_size(planes.values.shape[1:], planes.pixel_mm, side_px)
    small = picture_size(planes.values.shape[1:], planes.pixel_mm, min(side_px, max(planes.values.shape[1:])))
    slices = []
    for z in chosen:
        entry = {"number": z + 1, "image": _jpeg(grey[z], small, quality), "note": ""}
        for name, labels in maps.items():
            if labels[z].any():
                entry[name] = _label_png(resize_labels(labels[z], size), colors, lines=name == "truth")
        for name, (percent, scale) in heats.items():
            entry[name] = _heat_png(percent[z], small, scale)
        if "truth" in maps:
            scores = [plane_dice(maps["prediction"][z], maps["truth"][z], value) for value in values]
            known = [score for score in scores if not math.isnan(score)]
            entry["note"] = f"Dice in this slice {100 * float(np.mean(known)):.0f}" if known else "no label here"
        slices.append(entry)
    reference = maps.get("truth", maps["prediction"])
    area = [(len(np.unique(reference[z])), int((reference[z] > 0).sum())) for z in chosen]
    return {
        "slices": slices,
        "start": max(range(len(chosen)), key=area.__getitem__),
        "total": len(grey),
        "left": planes.left,
        "top": planes.top,
        "aspect": round(planes.aspect, 4),
        "legend": [(names.get(value, f"label {value}"), hex_color(colors[value])) for value in values],
        "truth": "truth" in maps,
        CONFIDENCE: CONFIDENCE in heats,
        SIMILARITY: SIMILARITY in heats,
        "note": "; ".join(missing),
    }


def _read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    try:
        file = nib.load(path)
        volume = np.asanyarray(file.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if volume.ndim != 3:
        raise ValueError(f"{path}: expected one 3D volume, got shape {volume.shape}")
    return volume, file.affine


def _jpeg(grey: np.ndarray, size: list[int], quality: int) -> str:
    picture = PictureFile.fromarray(np.rint(grey * 255).astype(np.uint8))
    if (picture.height, picture.width) != tuple(size):
        picture = picture.resize((size[1], size[0]), PictureFile.Resampling.BICUBIC)
    memory = io.BytesIO()
    picture.save(memory, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode()


def _label_png(labels: np.ndarray, colors: Mapping[int, Color], lines: bool) -> str:
    """A label plane as a PNG with transparency: filled, or as lines with a dark edge."""
    plane = outline(labels, 2) if lines else labels
    index = np.zeros(plane.shape, np.uint8)
    palette, alpha = [(0, 0, 0)], [0]
    for value, color in list(colors.items())[:254]:
        index[plane == value] = len(palette)
        palette.append(color)
        alpha.append(255)
    if lines:
        index[(ndimage.maximum_filter(plane, 3) > 0) & (plane == 0)] = len(palette)
        palette.append((0, 0, 0))
        alpha.append(150)
    picture = PictureFile.fromarray(index).convert("L")
    picture = PictureFile.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([part for color in palette for part in color])
    memory = io.BytesIO()
    picture.save(memory, "PNG", transparency=bytes(alpha), optimize=True)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


def _heat_png(percent: np.ndarray, size: list[int], scale: HeatScale) -> str:
    """A map as a heat of where it is low: transparent where it is high, see :func:`heat_colors`."""
    plane = resize_grey(percent.astype(np.float32) / 100, size)
    colors, alpha = heat_colors(scale.hues)
    share = (scale.clear - plane) / (scale.clear - scale.strongest)
    index = np.rint(share * (len(colors) - 1)).clip(0, len(colors) - 1).astype(np.uint8)
    picture = PictureFile.frombytes("P", (index.shape[1], index.shape[0]), index.tobytes())
    picture.putpalette([part for color in colors for part in color])
    memory = io.BytesIO()
    picture.save(memory, "PNG", transparency=bytes(alpha), optimize=True)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()
