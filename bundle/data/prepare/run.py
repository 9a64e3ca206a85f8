"""Prepare a data set: every case on its own, in parallel, so that a bad one or an interruption costs nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import aff2axcodes
from tqdm import tqdm

from ...atomic import write_json
from .cases import ARCHIVES
from .dicom_series import Series
from .folder import find_folder_cases
from .load import load_case
from .recipe import Recipe
from .source import Case, Found, Options
from .volume import apply_recipe, guess_body_box, guess_modality
from .write import RECORDS, read_records, write_dataset, write_nifti, write_origins

VERSION = 2  # of the results: a change of the code that changes voxels raises it, and old results are made anew


def prepare_dataset(
    kind: str,
    src: str | os.PathLike,
    dst: str | os.PathLike,
    recipe: Recipe,
    options: Options | None = None,
    label_names: Mapping[int, str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Bring an archive or folder into the data layout: ``imagesTr``, ``labelsTr``, ``dataset.json``.

    A finished case is recognized by its record and skipped; source files or settings that changed make it anew.
    Every file appears under its name only when it is complete.

    Args:
        kind: one of ``ARCHIVES``.
        src: where the archive was unpacked.
        dst: folder of the result.
        recipe: what to do to the scans.
        options: how to read them.
        label_names: names of label values, over those that the archive gives.
        num_workers: cases at a time; ``None`` for as many as there are processors, at most 8.
        progress: whether to show a progress bar.
        say: receives one line for each case that is left out; ``None`` writes to stderr.

    Returns:
        The summary, as in ``prepare_summary.json``.

    Raises:
        FileNotFoundError: if ``src`` is no folder.
        ValueError: if there is nothing to prepare, or ``dst`` holds something else.
    """
    started = time.perf_counter()
    src, dst, options = Path(src), Path(dst), options or Options()
    say = say or (lambda line: tqdm.write(line, file=sys.stderr))
    if not src.is_dir():
        raise FileNotFoundError(f"{src}: no such folder; unpack the archive first and give its folder as --src")
    if src.resolve() == dst.resolve():
        raise ValueError(f"{dst}: dst must be another folder than src")
    if num_workers is not None and not (isinstance(num_workers, int) and num_workers > 0):
        raise ValueError(f"num_workers must be a positive whole number, got {num_workers!r}")
    found = find_folder_cases(src, dst, options, progress) if kind == "folder" else ARCHIVES[kind].find(src)
    _check_found(kind, src, found)
    _check_destination(kind, dst)
    cases, skipped, notes = [], [], list(found.notes)

    def skip(case: Case, reason: str) -> None:
        skipped.append({"case": case.name, "reason": reason})
        say(f"skipped {case.name}: {reason}")

    with (
        ThreadPoolExecutor(num_workers or min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(found.cases), desc=f"prepare {kind}", unit="case", disable=not progress) as bar,
    ):
        jobs = {pool.submit(_prepare_case, kind, case, dst, recipe, options): case for case in found.cases}
        try:
            for job in as_completed(jobs):
                try:
                    cases.append(job.result())
                except Exception as error:  # whatever is wrong with one case, the others go on
                    skip(jobs[job], one_line(error))
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    order = {case.name: index for index, case in enumerate(found.cases)}
    cases.sort(key=lambda record: order[record["case"]])
    skipped.sort(key=lambda item: order[item["case"]])
    notes += [note for record in cases for note in record["notes"]]
    if len({record["modality"] for record in cases}) > 1:
        notes.append("CT and MR in one folder: they need different settings, so prepare each into a folder of its own")
    sources = {case.name: case for case in found.cases}
    shared = Counter(case.image for case in found.cases)
    for record in cases:
        case = sources[record["case"]]
        title = f" series {case.series.title}".rstrip() if case.series is not None and shared[case.image] > 1 else ""
        record["image"] = _below(src, case.image) + title
        record["dicom"] = None if case.series is None else _origin(src, case.series)
        record["label"] = None if case.label is None else _below(src, case.label)
    summary = {
        "recipe": kind,
        "layout": found.layout or kind,
        "src": str(src),
        "dst": str(dst),
        "settings": {**asdict(recipe), **asdict(options)},
        "prepared": sum(not record["reused"] for record in cases),
        "already_there": sum(record["reused"] for record in cases),
        "skipped": skipped,
        "aside": [{"file": file, "reason": reason} for file, reason in found.aside],
        "notes": notes,
        "cases": cases,
    }
    names = {**recipe.label_names, **found.label_names, **(label_names or {})}
    if cases:
        summary["label_names"] = write_dataset(dst, names)
        origins = {record["case"]: record.pop("dicom") for record in cases}
        write_origins(dst, src, {name: origin for name, origin in origins.items() if origin is not None})
    summary["seconds"] = round(time.perf_counter() - started, 2)
    dst.mkdir(parents=True, exist_ok=True)
    write_json(dst / "prepare_summary.json", summary)
    return summary


def _below(src: Path, path: Path) -> str:
    """A path relative to the source, with a slash at the end of a folder."""
    return path.relative_to(src).as_posix() + ("/" if path.is_dir() else "")


def _origin(src: Path, series: Series) -> dict[str, Any]:
    """Which DICOM series a case is, for those who want its result as DICOM."""
    files = [path.relative_to(src).as_posix() for path in series.files]
    return {"series": series.header.series, "mark": series.mark, "files": files}


def _check_found(kind: str, src: Path, found: Found) -> None:
    if not found.cases:
        first = "".join(f"; {file}: {reason}" for file, reason in found.aside[:1])
        raise ValueError(f"{src}: nothing to prepare; expected {ARCHIVES[kind].hint}{first}")
    twice = [name for name, count in Counter(case.name for case in found.cases).items() if count > 1]
    if twice:
        raise ValueError(f"{src}: several scans of one name, {', '.join(twice[:3])}; give the folder of one copy")


def _check_destination(kind: str, dst: Path) -> None:
    """Raise if the folder holds scans of another origin: they would be trained on without a word."""
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"{dst}: is a file; give a folder as --dst")
    records = read_records(dst)
    others = sorted({record["recipe"] for record in records} - {kind})
    if others:
        raise ValueError(f"{dst}: holds a data set prepared with {others[0]!r}; give another folder as --dst")
    known = {record["case"] for record in records}
    for image in sorted(dst.glob("images*/*.nii*")):
        if not image.name.startswith(".") and image.name.split(".nii")[0] not in known and not _leftover(dst, image):
            raise ValueError(f"{image}: was not made by prepare; give another folder as --dst")


def _leftover(dst: Path, image: Path) -> bool:
    """Whether an image lacks its record because a run was stopped between the two."""
    return (dst / RECORDS / f"{image.name.split('.nii')[0]}.started").exists()


def _prepare_case(kind: str, case: Case, dst: Path, recipe: Recipe, options: Options) -> dict[str, Any]:
    """Prepare one case, or recognize it as done; its record."""
    image_file = dst / f"images{case.subset}" / f"{case.name}.nii.gz"
    label_file = dst / f"labels{case.subset}" / f"{case.name}.nii.gz"
    record_file = dst / RECORDS / f"{case.name}.json"
    started_file = record_file.with_suffix(".started")
    key = _fingerprint(case, recipe, options)
    if record_file.is_file():
        record = json.loads(record_file.read_text())
        if record["key"] == key and image_file.is_file() and label_file.is_file() == bool(record["voxels"]):
            return {**record, "reused": True}
    record_file.parent.mkdir(parents=True, exist_ok=True)
    started_file.touch()
    record_file.unlink(missing_ok=True)
    for old in (image_file, label_file):
        old.unlink(missing_ok=True)
    image, label, notes = load_case(case, recipe, options)
    result, result_label = apply_recipe(image, label, recipe)
    values = result_label.array if result_label is not None else np.zeros(0, np.uint8)
    voxels = {str(v): int(n) for v, n in zip(*np.unique(values, return_counts=True)) if v > 0}
    if result_label is not None and not voxels:
        if recipe.need_label:
            raise ValueError(f"{case.label}: nothing is labeled, every voxel is 0")
        result_label = None
    modality = recipe.modality or guess_modality(image)
    record = {
        "case": case.name,
        "recipe": kind,
        "subset": case.subset,
        "modality": modality,
        "shape": list(result.array.shape),
        "spacing_mm": [round(v, 5) for v in result.spacing_mm],
        "orientation": "".join(aff2axcodes(result.affine)),
        "range": [float(result.array.min()), float(result.array.max())],
        "body_box": guess_body_box(result, modality),
        "voxels": voxels,
        "notes": notes,
        "source_shape": list(image.array.shape),
        "source_spacing_mm": [round(v, 5) for v in image.spacing_mm],
        "key": key,
    }
    if result_label is not None:  # first, so that no image stands there without its label
        dtype = np.uint8 if values.max() < 256 else np.int16
        write_nifti(label_file, result_label.array.astype(dtype), result_label.affine)
    write_nifti(image_file, result.array, result.affine)
    write_json(record_file, record)
    started_file.unlink(missing_ok=True)
    return {**record, "reused": False}


def _fingerprint(case: Case, recipe: Recipe, options: Options) -> str:
    """Changes with the source files and with every setting; does not change when the archive moves."""
    parts: list[Any] = [VERSION, case.subset, case.label_map, recipe, options]
    parts += [(part.path.name, part.target, part.value, part.layer) for part in case.parts]
    labels = dict.fromkeys(part.path for part in case.parts) or (case.label,)
    for source in (case.image, *labels):
        if source is not None:
            files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
            if source == case.image and case.series is not None:
                files = case.series.files
            parts.append([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    return hashlib.sha1(repr(parts).encode()).hexdigest()


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its type too where the text alone would not tell."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: {text}"
