"""The series in DICOM files as folders really are: copies, localizers, several series and phases, reports between."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .dicom_frames import MARKS, Frame, Header, dicom_files, pydicom, read_header
from .formats import natural_key

FEW_SLICES = 3  # as few slices in another plane than those of their series are a localizer
PLANE_TOLERANCE = 0.02  # of the directions of slices that lie in one plane
SAME_PLACE_MM = 1e-3


@dataclass(frozen=True)
class Series:
    """The slices of one volume.

    Attributes:
        folder: where they lie.
        frames: the slices, in the order of their places.
        header: of one of them.
        mark: what tells it from other volumes of its series, such as ``"echo2"``.
        instances: images of the whole series, copies not counted.
        problem: why there is no volume; empty if there is.
        notes: what is to be known.
    """

    folder: Path
    frames: tuple[Frame, ...]
    header: Header
    mark: str = ""
    instances: int = 0
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The files, each once."""
        return list(dict.fromkeys(frame.path for frame in self.frames))

    @property
    def title(self) -> str:
        """Number, description and mark of the series, as a part of a file name."""
        text = "_".join(word for word in (self.header.number, self.header.description, self.mark) if word)
        return re.sub(r"[^\w-]+", "_", text).strip("_")


@dataclass
class Findings:
    """What DICOM files hold.

    Attributes:
        series: the volumes.
        labels: segmentations and structure sets.
        aside: files that are neither, and why.
    """

    series: list[Series]
    labels: list[Header]
    aside: list[tuple[Path, str]]


def find_series(files: Iterable[Path], progress: bool = False) -> Findings:
    """Sort DICOM files into volumes, labels and what is neither.

    Args:
        files: the files.
        progress: whether to show a progress bar.

    Raises:
        RuntimeError: without pydicom.
    """
    paths = tqdm(sorted(files, key=natural_key), "headers", unit="file", disable=not progress, file=sys.stderr)
    headers = [read_header(path) for path in paths]
    found = Findings([], [], [(each.path, each.reason) for each in headers if not each.kind])
    images = _without_copies([each for each in headers if each.kind == "image"], found.aside)
    found.labels = _without_copies([each for each in headers if each.kind == "label"], found.aside)
    for group in _group(images):
        found.series += _volumes(group, found.aside)
    _set_scouts_aside(found)
    bad = [(path, reason) for path, reason in found.aside if "; " in reason]  # what may have been slices
    found.series = [_with_neighbors(each, bad) for each in found.series]
    return found


def only_series(folder: Path) -> Series:
    """The one series in a folder.

    Raises:
        RuntimeError: without pydicom.
        ValueError: if there is none, or several.
    """
    files = dicom_files(folder)
    if not files:
        raise ValueError(f"{folder}: no DICOM files")
    found = find_series(files)
    if not found.series:
        path, reason = found.aside[0]
        raise ValueError(f"{path}: {reason}")
    if len(found.series) > 1:
        sizes = " and ".join(str(len(each.frames)) for each in found.series)
        raise ValueError(
            f"{folder}: {len(found.series)} series in one folder, of {sizes} slices; move each into a folder of its own"
        )
    return found.series[0]


def _without_copies(headers: Sequence[Header], aside: list[tuple[Path, str]]) -> list[Header]:
    """One of each: a copy has the same identifier and the same place."""
    kept: dict[Hashable, Header] = {}
    for header in headers:
        places = tuple((frame.position, frame.number) for frame in header.frames)
        key = (header.instance, header.series, places) if header.instance else header.path
        if key in kept:
            aside.append((header.path, f"a copy of {kept[key].path.name}, which is taken"))
        else:
            kept[key] = header
    return list(kept.values())


def _group(headers: Sequence[Header]) -> list[list[Header]]:
    """The files of each series: of one folder, or of several where patient, study and series say so."""
    folders: dict[Path, list[Header]] = defaultdict(list)
    for header in headers:
        folders[header.path.parent].append(header)
    groups: dict[Hashable, list[Header]] = defaultdict(list)
    for folder, inside in folders.items():
        uids = {header.series for header in inside}
        # as many identifiers as files are the trace of an anonymizer, not series
        scattered = 2 < len(uids) == len(inside) and all(len(header.frames) == 1 for header in inside)
        for header in inside:
            known = header.patient and header.study and header.series
            whole = (header.patient, header.study, header.series) if known else (folder, header.series)
            groups[folder if scattered else whole].append(header)
    apart: list[list[Header]] = []
    for group in groups.values():
        places = Counter((frame.position, frame.directions) for header in group for frame in header.frames)
        if len({header.path.parent for header in group}) > 1 and max(places.values()) > 1:
            by_folder = defaultdict(list)
            for header in group:
                by_folder[header.path.parent].append(header)
            apart += by_folder.values()
        else:
            apart.append(group)
    return apart


def _volumes(group: Sequence[Header], aside: list[tuple[Path, str]]) -> list[Series]:
    """The volumes of one series."""
    of_file = {header.path: header for header in group}
    named = [header for header in group if header.localizer]
    aside += [(header.path, "a localizer by its header (ImageType)") for header in named]
    frames = [frame for header in group if not header.localizer for frame in header.frames]
    stacks = _split(frames, _same_grid)
    stacks.sort(key=len, reverse=True)
    planes = _split([stack[0] for stack in stacks], _same_plane)
    kept, rest = stacks[:1], stacks[1:]
    few = [len(stack) <= FEW_SLICES for stack in stacks]
    if len(planes) > 1 and (few[0] or (len(planes) > 2 and not few[1])):
        text = f"a localizer: the {len(frames)} images of its series lie in {len(planes)} planes"
        aside += [(path, text) for path in dict.fromkeys(frame.path for frame in frames)]
        return []
    for stack in rest:
        if len(stack) > FEW_SLICES:
            kept.append(stack)
        else:
            reason = _why_apart(stack[0], stacks[0][0])
            aside += [(path, reason) for path in dict.fromkeys(frame.path for frame in stack)]
    found = []
    for number, stack in enumerate(kept, 1):
        for mark, part, problem in _phases(stack):
            header = of_file[part[0].path]
            both = "_".join(word for word in (f"stack{number}" if len(kept) > 1 else "", mark) if word)
            folder = _common([frame.path for frame in part])
            found.append(Series(folder, tuple(part), header, both, len(group), problem))
    return found


def _split(frames: Sequence[Frame], same: Callable[[Frame, Frame], bool]) -> list[list[Frame]]:
    """Groups of frames that are like the first of each."""
    groups: list[list[Frame]] = []
    for frame in frames:
        fitting = next((group for group in groups if same(group[0], frame)), None)
        if fitting is None:
            groups.append([frame])
        else:
            fitting.append(frame)
    return groups


def _same_grid(first: Frame, second: Frame) -> bool:
    return (
        first.shape == second.shape
        and np.allclose(first.spacing_mm, second.spacing_mm, atol=1e-3)
        and np.allclose(first.directions, second.directions, atol=1e-3)
    )


def _same_plane(first: Frame, second: Frame) -> bool:
    return bool(np.abs(np.cross(first.normal, second.normal)).max() < PLANE_TOLERANCE)


def _why_apart(frame: Frame, main: Frame) -> str:
    if not _same_plane(frame, main):
        return f"a localizer: it lies in another plane than {main.path.name} and the other slices of its series"
    what, own, theirs = next(
        (name, own, theirs)
        for name, own, theirs in (
            ("shape", frame.shape, main.shape),
            ("pixel spacing", frame.spacing_mm, main.spacing_mm),
            ("directions", frame.directions, main.directions),
        )
        if not np.allclose(own, theirs, atol=1e-3)
    )
    own, theirs = np.round(own, 3).tolist(), np.round(theirs, 3).tolist()
    return f"{what} {own} differs from {theirs} of {main.path.name}; keep one series in each folder"


def _phases(stack: Sequence[Frame]) -> list[tuple[str, list[Frame], str]]:
    """Split the frames of one grid into volumes that have one frame at each place.

    Returns:
        ``[(mark, frames in order, problem), …]``.
    """
    frames = sorted(stack, key=lambda frame: frame.place_mm)
    for some in (list, _without_twins):  # copies under another identifier cost a look at all pixels
        frames = some(frames)
        if not _collision(frames):
            return [("", frames, "")]
        parts = _parts(frames)
        if parts:
            digits = len(str(len(parts)))
            return [(f"{what}{n:0{digits}d}", part, "") for n, (what, part) in enumerate(parts, 1)]
    first, second = _collision(frames)
    text = (
        f"{_frame_name(first)} and {_frame_name(second)} lie at the same place, {first.place_mm:.1f} mm; there are two "
        "series or phases in one folder, keep one"
    )
    return [("", frames, text)]


def _parts(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Volumes of about the same size that one or two marks tell apart; empty if there are none."""
    names = [name for name, _ in MARKS]
    for keys in [*combinations(names, 1), *combinations(names, 2)]:
        parts: dict[tuple[str, ...], list[Frame]] = defaultdict(list)
        for frame in frames:
            parts[tuple(frame.marks.get(key, "") for key in keys)].append(frame)
        sizes = [len(part) for part in parts.values()]
        if len(parts) > 1 and 2 * min(sizes) >= max(sizes) and not any(map(_collision, parts.values())):
            order = sorted(parts, key=lambda values: [_as_number(value) for value in values])
            return [("_".join(keys), parts[values]) for values in order]
    return []


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return 0.0, text


def _collision(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Two neighbors at one place; empty if there are none."""
    pairs = (pair for pair in zip(frames, frames[1:]) if pair[1].place_mm - pair[0].place_mm < SAME_PLACE_MM)
    return next(pairs, ())


def _without_twins(frames: Sequence[Frame]) -> list[Frame]:
    """Leave out frames with the pixels of another at the same place: copies under another identifier."""
    kept: list[Frame] = []
    seen: set[tuple[float, bytes]] = set()
    for frame in frames:
        pixels = _pixels(frame) if frame.index is None else None
        twin = None if pixels is None else (round(frame.place_mm, 2), pixels)
        if twin is None or twin not in seen:
            kept.append(frame)
        if twin is not None:
            seen.add(twin)
    return kept


def _pixels(frame: Frame) -> bytes | None:
    """A digest of the stored pixels."""
    try:
        return hashlib.sha1(pydicom.dcmread(frame.path, force=True).PixelData).digest()
    except Exception:  # a broken file is named when it is read
        return None


def _set_scouts_aside(found: Findings) -> None:
    """A series of one image beside one of many is a localizer, and so is one of a few images in another plane."""
    for series in list(found.series):
        if len(series.frames) > FEW_SLICES or series.mark:
            continue
        for other in found.series:
            study = series.header.study
            near = other.folder == series.folder or (study and other.header.study == study)
            planes = len(series.frames) > 1 and _same_plane(series.frames[0], other.frames[0])
            if near and not planes and len(other.frames) > FEW_SLICES:
                images = (
                    "a single image" if len(series.frames) == 1 else f"{len(series.frames)} images in another plane"
                )
                text = f"a localizer: {images} beside the {len(other.frames)} slices of {other.folder.name}"
                found.series.remove(series)
                found.aside += [(path, text) for path in series.files]
                break


def _with_neighbors(series: Series, bad: Sequence[tuple[Path, str]]) -> Series:
    """A series whose notes name the files beside it that may have been its slices."""
    folders = {path.parent for path in series.files}
    notes = tuple(f"{path.name}: {reason}" for path, reason in bad if path.parent in folders)
    return replace(series, notes=series.notes + notes)


def _frame_name(frame: Frame) -> str:
    return frame.path.name if frame.index is None else f"frame {frame.index + 1} of {frame.path.name}"


def _common(paths: Sequence[Path]) -> Path:
    """The folder of several files."""
    folder = paths[0].parent
    while any(folder not in path.parents for path in paths):
        folder = folder.parent
    return folder


def dicom_files_below(folder: Path) -> list[Path]:
    """The DICOM files in a folder and in those below it."""
    places = [folder, *(place for place in folder.rglob("*") if place.is_dir())]
    return [path for place in places for path in dicom_files(place)]


def series_of(found: Findings, uid: str, mark: str) -> Series:
    """The series of an identifier and mark.

    Raises:
        ValueError: if it is not there.
    """
    for series in found.series:
        if (series.header.series, series.mark) == (uid, mark):
            return series
    raise ValueError(f"series {uid} {mark}".rstrip() + " is not in its files any more; prepare the data set again")
