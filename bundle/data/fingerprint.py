"""What scan files hold, and what is wrong with them: each file is opened once, before any long work."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..checks import check_geometry, check_label_values, check_volume
from ..commands import next_command
from ..keys import IMAGE, LABEL
from ..terminal import progress as show_progress
from .cache import ArrayCache
from .datalist import SUFFIXES, case_name, label_names
from .grid import check_placement
from .reader import affine_in_mm, other_affine, spacing_tolerance, unit_in_mm

FOLDERS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
CONVERTED = (
    ".dcm",
    ".dicom",
    ".ima",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".img",
    ".img.gz",
    ".mgz",
    ".mgh",
)  # by scripts.prepare
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Fingerprint:
    """What a NIfTI file holds.

    Attributes:
        shape: of the volume; further axes of length 1 do not count.
        affine: ``(4, 4)``, voxel indices to mm.
        dtype: number format in the file.
        low, high: smallest and largest intensity.
        values: the values of a label map besides 0; ``None`` for an image.
        digest: equal for equal voxels.
        other_affine: the other form of the header, where it has two; see :func:`other_affine`.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: str
    low: float
    high: float
    values: tuple[int, ...] | None
    digest: str
    other_affine: np.ndarray | None = None

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distances of neighboring voxels."""
        return tuple(float(v) for v in nib.affines.voxel_sizes(self.affine))


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        line: the file, what is wrong with it, and the remedy.
        index: which entry of the checked list it spoils; ``None`` for what spoils none.
    """

    line: str
    index: int | None = None


def read_fingerprint(path: str | os.PathLike, is_label: bool = False) -> Fingerprint:
    """Read a file to its end and check it on its own.

    A process reads each file once; it reads it again when the time of its last change or its size is another.

    Args:
        path: NIfTI file.
        is_label: whether it is a label map; otherwise an image.

    Raises:
        ValueError, FileNotFoundError: in one line with the file and the remedy.
    """
    status = _status(path)
    return _read_fingerprint(os.fspath(path), is_label, status.st_mtime_ns, status.st_size)


def prepare_command(folder: str | os.PathLike) -> str:
    """The command that brings a folder of any scans into the layout, in a folder beside it."""
    src = os.path.normpath(folder)
    dst = f"{os.path.abspath(src) if src.endswith('.') else src}_prepared"  # "." and ".." have no name to add to
    return next_command("prepare", "folder", "--src", src, "--dst", dst)


def _status(path: str | os.PathLike) -> os.stat_result:
    """Size and time of a file that is there and not empty."""
    path = os.fspath(path)
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{path}: is a link to {os.readlink(path)}, which does not exist; restore or remove it")
    try:
        status = os.stat(path)
    except OSError as error:
        raise FileNotFoundError(f"{path}: {(error.strerror or 'not found').lower()}; check the path") from None
    if os.path.isdir(path):
        empty = not any(item.is_file() for item in Path(path).rglob("*"))
        parent = Path(os.path.abspath(path)).parent
        what, root = ("the data set", Path(path).parent.parent) if parent.name in FOLDERS else ("it", path)
        remedy = "it is empty, remove it" if empty else f"convert {what} with `{prepare_command(root)}`"
        raise ValueError(f"{path}: is a folder, not a NIfTI file; {remedy}")
    if status.st_size == 0:
        raise ValueError(f"{path}: cannot be read as NIfTI (0 bytes); copy it again")
    return status


@lru_cache(maxsize=4096)
def _read_fingerprint(path: str, is_label: bool, _mtime: int, _size: int) -> Fingerprint:
    data = Path(path).read_bytes()
    if path.endswith(".gz"):
        if data[:2] != b"\x1f\x8b":
            raise ValueError(f"{path}: cannot be read as NIfTI (not compressed, as its suffix says); replace the file")
        try:
            data = gzip.decompress(data)  # at once, since nibabel stops before the checksum at the end
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: cannot be read to its end ({_first_line(error)}); copy it again") from None
    try:
        size = int.from_bytes(data[:4], "little" if data[:2] != b"\0\0" else "big")
        kind = nib.Nifti2Image if size == 540 else nib.Nifti1Image
        image = kind.from_bytes(data)
        stored = kind.header_class(data[: size or 348], check=False)  # nibabel's check makes spacing positive
    except Exception as error:  # nibabel raises whatever the broken byte leads to; all of it means the same
        raise ValueError(f"{path}: cannot be read as NIfTI ({_first_line(error)}); replace the file") from None
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iufb":
        raise ValueError(f"{path}: voxels must be single real numbers, got {dtype}; convert the file to gray values")
    try:
        array = np.asarray(image.dataobj, dtype=np.float32)  # as LoadImage reads, whatever the file's type
    except Exception as error:  # as above: a truncated gzip stream, a short file, a checksum
        raise ValueError(f"{path}: cannot be read to its end ({_first_line(error)}); copy it again") from None
    if array.ndim > 3 and set(array.shape[3:]) == {1}:
        array = array.reshape(array.shape[:3])
    if is_label:
        if array.ndim != 3 or 0 in array.shape:
            raise ValueError(f"{path}: expected one 3D label map, got shape {array.shape}; save one value a voxel")
        values = tuple(check_label_values(array, path))
    else:
        check_volume(array[None], path)
        values = None
    affine, unit = affine_in_mm(image.affine, image.header), unit_in_mm(image.header)
    check_geometry(affine, path, stored["pixdim"][1:4] * unit, tolerance=spacing_tolerance(image.header))
    digest = hashlib.sha1(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array.T).data)  # nibabel's arrays are contiguous in this order
    return Fingerprint(
        array.shape,
        affine,
        str(dtype),
        float(array.min()),
        float(array.max()),
        values,
        digest.hexdigest(),
        other_affine(image.header),
    )


def check_label_file(
    label: str | os.PathLike, image: str | os.PathLike, allow_empty: bool = False, max_values: int = 500
) -> None:
    """Check a label map, its image, and that they belong together.

    Args:
        label: NIfTI file of the label map.
        image: NIfTI file of its image.
        allow_empty: whether it may show nothing.
        max_values: what has more values is a scan of gray values, no label map.

    Raises:
        ValueError, FileNotFoundError: in one line with the file and the remedy.
    """
    if os.path.realpath(label) == os.path.realpath(image):
        raise ValueError(f"{label}: is given as image and as label; give the label map of this image")
    scan, found = read_fingerprint(image), read_fingerprint(label, is_label=True)
    if found.values and len(found.values) > max_values:
        raise ValueError(
            f"{label}: has {len(found.values)} values, as a scan has; a label map has at most {max_values}: give the "
            "label map, and check that image and label are not mixed"
        )
    names = os.fspath(label), os.fspath(image)
    check_placement(found.shape, found.affine, scan.shape, scan.affine, *names, scan.other_affine)
    if not found.values and not allow_empty:
        raise ValueError(f"{label}: has no foreground, every voxel is 0; label at least one structure")


def check_names(label: str | os.PathLike, names: Mapping[int, str]) -> list[Finding]:
    """A finding if a label map has values without a name, which spoils nothing; none without any names."""
    if not names:
        return []
    unnamed = [value for value in read_fingerprint(label, is_label=True).values or () if value not in names]
    if not unnamed:
        return []
    return [
        Finding(
            f"{label}: label values {unnamed[:5]} have no name in dataset.json, which names {sorted(names)}; "
            "add them there or correct the label"
        )
    ]


def check_entries(
    entries: Sequence[Mapping[str, Any]],
    with_labels: bool = True,
    names: Mapping[int, str] | None = None,
    known: Mapping[str, str] | None = None,
    num_workers: int | None = None,
    progress: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> list[Finding]:
    """Check scans, with their labels where they have one, in parallel; one finding for each bad one.

    Besides each file and pair, no two entries may have one case name, whose results would share a folder, or the same
    voxels.

    Args:
        entries: ``[{"image": path, "label": path}, …]``.
        with_labels: whether to check labels.
        names: names of label values, see :func:`check_names`.
        known: digests of scans with which entries must not coincide, with what to call them.
        num_workers: threads, each holding one scan; ``None`` for as many as there are processors, at most 8.
        progress: show how many scans are checked.
        cache_dir: folder that remembers which files were good, see :class:`ArrayCache`; ``None`` for none.
    """
    cache = ArrayCache(cache_dir, [Fingerprint, check_volume])

    def check(entry: Mapping[str, Any]) -> tuple[str, str]:
        """The digest of a scan, or what is wrong with it."""
        keys = [key for key in (IMAGE, LABEL)[: 1 + with_labels] if entry.get(key) is not None]
        try:
            for key in keys:
                _status(entry[key])
            files = {f"{key}{Path(entry[key]).suffix}": entry[key] for key in keys}  # the suffix must be right, too
            return str(cache.get(files, partial(digest, entry, LABEL in keys))["digest"]), ""
        except (ValueError, OSError) as error:
            return "", " ".join(str(error).split())

    def digest(entry: Mapping[str, Any], with_label: bool) -> dict[str, np.ndarray]:
        if with_label:
            check_label_file(entry[LABEL], entry[IMAGE])
        return {"digest": np.array(read_fingerprint(entry[IMAGE]).digest)}

    with ThreadPoolExecutor(num_workers or min(8, os.cpu_count() or 1)) as pool:
        checked = pool.map(check, entries)
        results = list(show_progress(checked, len(entries), "check") if progress else checked)
    findings = []
    digests: dict[str, Any] = dict(known or {})
    cases: dict[str, str] = {}
    for index, (entry, (voxels, problem)) in enumerate(zip(entries, results)):
        path = os.fspath(entry[IMAGE])
        case = same_name(path)
        if problem:
            findings.append(Finding(problem, index))
        elif case in cases or case.strip(".") == "":
            other = f"the case name of {cases[case]}" if case in cases else "no name besides its suffix"
            findings.append(Finding(f"{path}: has {other}, results need one of their own; rename it", index))
        elif voxels in digests:
            line = f"{path}: holds the same voxels as {digests[voxels]}; remove one of them"
            findings.append(Finding(line, index))
        else:
            cases[case] = digests[voxels] = path
            if with_labels and entry.get(LABEL) is not None:
                findings += check_names(entry[LABEL], names or {})
    return findings


def same_name(path: str | os.PathLike) -> str:
    """The case name of a file in the form in which file systems without letter case compare names."""
    return unicodedata.normalize("NFC", case_name(path)).casefold()


def check_folder(dataset_dir: str | os.PathLike) -> list[Finding]:
    """Check the names of a data set's folders and files against its layout; no scan is opened.

    Raises:
        ValueError: if ``dataset.json`` is broken.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        return []
    lines = []
    expected = {name.lower(): name for pair in FOLDERS.items() for name in pair}
    for item in sorted(root.iterdir()):
        wanted = expected.get(item.name.lower())
        if item.is_dir() and wanted is not None and item.name != wanted:
            lines.append(f"{item}: is not read, the folder's name must be {wanted}; rename it")
    for images, labels in FOLDERS.items():
        named: dict[str, str] = {}
        for item in _files(root / images, root, lines):
            if same_name(item) in named:
                other = named[same_name(item)]
                lines.append(f"{item}: differs from {other} in letter case or suffix alone; rename one of them")
            named[same_name(item)] = item.name
        for item in _files(root / labels, root, lines):
            image = named.get(same_name(item))
            if image is None:
                lines.append(f"{item}: is a label without an image in {images}; add the image or remove the label")
            elif image != item.name:
                lines.append(f"{item}: is not read, its image is {image}; give it exactly this name")
    label_names(root)
    return [Finding(line) for line in [*lines, *_listed(root)]]


def unread_files(folder: str | os.PathLike, root: str | os.PathLike) -> list[str]:
    """One line, with a remedy, about each file or folder in a folder of scans that is not read as a scan.

    Args:
        folder: the folder.
        root: the data set that it belongs to, or the folder itself.
    """
    lines: list[str] = []
    _files(Path(folder), Path(root), lines)
    return lines


def _files(folder: Path, root: Path, lines: list[str]) -> list[Path]:
    """NIfTI files of a folder of a data set; lines about what is none."""
    found = []
    for item in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = item.name.lower()
        if item.name.startswith("."):
            continue
        remedy = f"convert {'it' if folder == root else 'the data set'} with `{prepare_command(root)}`"
        if item.name.endswith(SUFFIXES):
            found.append(item)
        elif item.is_dir():
            if any(path.is_file() for path in item.rglob("*")):
                lines.append(f"{item}: is not read, it is a folder; if it holds scans, {remedy}")
        elif name.endswith(SUFFIXES):
            lines.append(f"{item}: is not read, its suffix must be in lower case; rename it")
        elif name.endswith(CONVERTED):
            lines.append(f"{item}: is not read, only NIfTI is; {remedy}")
        elif name.endswith((*PICTURE_SUFFIXES, ".npy", ".npz")):
            lines.append(
                f"{item}: is not read, it has no geometry; save the volume as NIfTI, with 3D Slicer or nibabel"
            )
    return found


def _listed(root: Path) -> list[str]:
    """Lines about the files that ``dataset.json`` lists. What counts are the folders; the list is never followed."""
    file = root / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    lines = []
    for item in [*(content.get("training") or []), *(content.get("test") or [])]:
        for path in item.values() if isinstance(item, dict) else [item]:
            target = Path(os.path.normpath(root / str(path)))
            if root not in target.parents and Path(os.path.normpath(root)) not in target.parents:
                lines.append(f"{file}: lists {path}, which lies outside of the data set and is not read; remove it")
            elif not target.exists():
                lines.append(f"{file}: lists {path}, which is not there; copy the file or remove it from the list")
    return lines


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
