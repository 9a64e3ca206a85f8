"""Finished labels of a MONAI Label studies folder, as support scans.

Such a folder holds the images, ``datastore_v2.json`` and ``labels/final/``. Nothing of MONAI Label is imported: the
files are the interface, which is the same in the server, in its training process and on the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from monai.transforms import LoadImage
from monai.utils import optional_import

from ..checks import check_label_values
from ..keys import IMAGE, LABEL
from .reader import NiftiReader
from .support import SLICES, VALUES

pydicom, HAS_PYDICOM = optional_import("pydicom")

INDEX = "datastore_v2.json"
FINAL = "final"
ORIGINAL = "original"  # what the server segmented itself


def label_value_names(values: Sequence[int], label_info: Sequence[Mapping[str, Any]], name: str = "label") -> dict:
    """Name of each value of a finished label.

    Annotation clients number the segments themselves, so that one organ may have another value in every scan. The
    datastore's ``label_info`` says which. 3D Slicer counts a background segment before it drops it: where the listed
    numbers are not those of the file, both are matched in ascending order.

    Args:
        values: values that occur in the file besides 0.
        label_info: ``[{"name": "liver", "idx": 1}, …]``; may be empty, then ``1`` is called ``label 1``.
        name: what messages call the file.

    Returns:
        ``{value: name}`` in ascending order of the values.

    Raises:
        ValueError: if names and values cannot be matched.
    """
    listed = sorted((int(i["idx"]), str(i["name"])) for i in label_info if i.get("name") and i.get("idx") is not None)
    names = dict(listed)
    if not names:
        return {value: f"label {value}" for value in sorted(values)}
    if set(values) <= set(names):
        return {value: names[value] for value in sorted(values)}
    if len(names) == len(values):
        return dict(zip(sorted(values), (label for _, label in listed)))
    raise ValueError(
        f"{name}: the label values {sorted(values)} do not fit the names {names} of the datastore; save the label again"
    )


def studies_folder() -> str | None:
    """The studies folder of the MONAI Label server in whose process this runs; ``None`` outside of one.

    The server says it in its environment. Of a DICOMweb archive it keeps a copy, in a folder named after the address.
    """
    studies = os.environ.get("MONAI_LABEL_STUDIES", "").strip()
    if not studies.startswith(("http://", "https://")):
        return studies or None
    copies = os.environ.get("MONAI_LABEL_DICOMWEB_CACHE_PATH", "").strip()
    digest = hashlib.md5(studies.rstrip("/").encode(), usedforsecurity=False).hexdigest()
    return str(Path(copies or Path.home() / ".cache" / "monailabel" / "dicom") / digest)


class Datastore:
    """Reads a studies folder: images, their finished labels, and what their values mean.

    Args:
        root: the studies folder.

    Raises:
        ValueError: if its index is no valid JSON.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root).resolve()
        try:
            self.objects: dict[str, Any] = json.loads((self.root / INDEX).read_text()).get("objects", {})
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.root / INDEX}: no valid JSON ({error})") from None

    @staticmethod
    def find(image: str | os.PathLike, studies: str | os.PathLike | None = None) -> Datastore | None:
        """The studies folder of an image: where it lies, or the given one; ``None`` if neither has an index."""
        for folder in (Path(image).resolve().parent, studies):
            if folder and (Path(folder) / INDEX).is_file():
                return Datastore(folder)
        return None

    def identify(self, image: str | os.PathLike) -> str | None:
        """Identifier of an image of this folder; ``None`` for any other file."""
        path = os.path.realpath(image)
        for key, item in self.objects.items():
            if os.path.realpath(self._image(key, item)) == path:
                return key
        return None

    def finished(self) -> list[str]:
        """Identifiers of the scans with a finished label, the label that was finished first first."""
        found = []
        for key, item in self.objects.items():
            if FINAL in item.get("labels", {}):
                files = (self._image(key, item), self.label(key, FINAL))
                if all(file.is_file() for file in files):
                    found.append((item["labels"][FINAL].get("info", {}).get("ts", 0), key))
        return [key for _, key in sorted(found)]

    def unfinished(self, key: str) -> str | None:
        """Tag of a label of a scan that somebody drew and did not finish, the last one; ``None`` if there is none."""
        labels = self.objects[key].get("labels", {})
        drawn = [tag for tag in labels if tag not in (FINAL, ORIGINAL) and self.label(key, tag).is_file()]
        return max(drawn, key=lambda tag: labels[tag].get("info", {}).get("ts", 0), default=None)

    def unlabelled(self) -> list[str]:
        """Identifiers of the scans without a finished label, sorted."""
        done = set(self.finished())
        return [key for key in sorted(self.objects) if key not in done]

    def reverse_dice(self, key: str) -> dict[str, float]:
        """How well each label agreed when a scan was last segmented, in 0..1; empty if it never was."""
        for label in self.objects[key].get("labels", {}).values():
            found = label.get("info", {}).get("params", {}).get("reverse_dice")
            if found:
                return {str(name): float(number) for name, number in found.items()}
        return {}

    def label(self, key: str, tag: str = FINAL) -> Path:
        """Path of a scan's label with a tag, which the index lists."""
        extension = self.objects[key]["labels"][tag].get("ext", "")
        return self._inside(self.root / "labels" / tag / f"{key}{extension}")

    def entries(
        self, keys: Sequence[str], tags: Mapping[str, str] | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Support entries of finished scans, on one common numbering of the names.

        A name has the value that the first of the scans gives it; if another name has that already, the lowest free.
        Names that differ in upper and lower case alone are one, as the first scan writes it.

        Args:
            keys: identifiers of scans with a finished label.
            tags: ``{identifier: tag}`` of scans of which another label counts; of these, some slices are labelled.

        Returns:
            ``[{"image": path, "label": path, "values": {"file's value": value}}, …]`` and ``{name: value}``.

        Raises:
            ValueError: for an unknown identifier, or a label that is not finished, empty or unclear.
        """
        numbers: dict[str, int] = {}
        spelled: dict[str, str] = {}
        entries = []
        for key in keys:
            item = self.objects.get(key)
            if item is None:
                raise ValueError(f"support {key!r}: no such image in the studies folder, only {sorted(self.objects)}")
            tag = (tags or {}).get(key, FINAL)
            if tag == FINAL and key not in self.finished():
                raise ValueError(f"support {key!r}: has no finished label; finished are {self.finished()}")
            label = self.label(key, tag)
            info = item["labels"][tag].get("info", {}).get("label_info") or self._segments(key, tag)
            names = label_value_names(label_values(label), info, str(label))
            if not names:
                raise ValueError(f"{label}: the label is empty; label at least one structure, or delete it")
            names = {value: spelled.setdefault(name.strip().casefold(), name.strip()) for value, name in names.items()}
            for value, name in names.items():
                if name not in numbers:
                    taken = set(numbers.values())
                    free = next(n for n in range(1, len(taken) + 2) if n not in taken)
                    numbers[name] = value if value not in taken else free
            mapped = {str(value): numbers[name] for value, name in names.items()}
            entry = {IMAGE: str(self._image(key, item)), LABEL: str(label), VALUES: mapped}
            entries.append({**entry, SLICES: "labelled"} if key in (tags or {}) else entry)
        return entries, dict(sorted(numbers.items(), key=lambda pair: pair[1]))

    def inside(self, path: str) -> str:
        """A file of this folder by its path, absolute or relative to the folder.

        Raises:
            ValueError: if the path leads out of the folder or to no file.
        """
        resolved = (self.root / path).resolve()
        if self.root not in resolved.parents:
            raise ValueError(f"support {path!r}: lies outside of the studies folder; give ids or paths inside it")
        if not resolved.is_file():
            raise ValueError(f"support {path!r}: no such file in the studies folder")
        return str(resolved)

    def _image(self, key: str, item: Mapping[str, Any]) -> Path:
        return self._inside(self.root / f"{key}{item.get('image', {}).get('ext', '')}")

    def _segments(self, key: str, tag: str) -> list[dict[str, Any]]:
        """Names and values of a label that was fetched as a DICOM segmentation, whose file is kept beside the label."""
        series = self.objects[key]["labels"][tag].get("info", {}).get("SeriesInstanceUID")
        if not series or not HAS_PYDICOM:
            return []
        folder = self._inside(self.root / "labels" / tag / str(series))
        return [
            {"name": str(segment.SegmentLabel), "idx": int(segment.SegmentNumber)}
            for file in sorted(folder.glob("*.dcm"))[:1]
            for segment in pydicom.dcmread(file, stop_before_pixels=True).get("SegmentSequence", [])
        ]

    def _inside(self, path: Path) -> Path:
        """The path, if the index names a file of this folder; links are the folder's owner's and may lead elsewhere."""
        if self.root not in Path(os.path.normpath(path)).parents:
            raise ValueError(f"{self.root / INDEX}: names {path}, which lies outside of the folder; repair the index")
        return path


def label_values(path: str | os.PathLike) -> list[int]:
    """Values besides 0 that occur in a label file, read once for every change of the file."""
    status = os.stat(path)
    return list(_label_values(os.fspath(path), status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=256)
def _label_values(path: str, mtime: int, size: int) -> tuple[int, ...]:
    return tuple(check_label_values(LoadImage(image_only=True, reader=NiftiReader)(path), path))
