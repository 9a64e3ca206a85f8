"""Arrays that were computed from files, kept on disk for the next run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing
from ..identity import describe, file_digest, installed_versions

PACKAGES = ("monai", "nibabel", "numpy", "scikit-image", "scipy", "torch")


class ArrayCache:
    """Arrays computed from files: who asks for the same again gets them from the disk, bit by bit.

    The name of an entry is a digest of all that decides about it: the content of the files, the settings with their
    code, the versions of packages. So no entry is ever out of date; trainings and data sets may share a folder, which
    may be deleted at any time. An entry appears as a whole or not at all, however many processes write it. One that
    cannot be read is computed again, and one that cannot be written is done without, with a line in the log each.
    (MONAI's ``PersistentDataset`` knows files by their paths, and ends with an error at half an entry.)

    Args:
        folder: where they are kept; ``None`` computes everything each time.
        settings: objects and values that decide about the arrays besides the files, see :func:`describe`.
    """

    def __init__(self, folder: str | os.PathLike | None, settings: Any) -> None:
        self.folder = Path(folder) if folder else None
        self.settings = settings

    def get(
        self, files: Mapping[str, str | os.PathLike], compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Arrays by name, from the disk if they are there.

        Args:
            files: what they are computed from.
            compute: does it.

        Raises:
            OSError: if a file cannot be read.
        """
        if self.folder is None:
            return compute()
        content = {name: file_digest(path) for name, path in files.items()}
        key = hashlib.sha1(json.dumps([self._shared, content], sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{key}.npz"
        arrays = _read(path)
        if arrays is None:
            arrays = compute()
            _write(path, arrays)
        return arrays

    @cached_property
    def _shared(self) -> list[Any]:
        """What decides about all entries."""
        return [describe(self.settings), installed_versions(PACKAGES)]


def _read(path: Path) -> Mapping[str, np.ndarray] | None:
    try:
        with np.load(path) as archive:
            return dict(archive)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a broken byte leads to; all of it means the same
        _log(f"{path}: cannot be read ({error}); what it held is computed again")
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                member = zipfile.ZipInfo(f"{name}.npy")  # without the time: same arrays, same file
                # maps of whole numbers get thirty times smaller; the noise of images stays and only costs time
                member.compress_type = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError as error:
        _log(f"{error}; the next run computes it again")


def _log(text: str) -> None:
    logging.getLogger(__name__).warning(text)
