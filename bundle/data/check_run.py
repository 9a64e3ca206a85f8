"""Checks before any long work: what would fail later fails here, in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nibabel as nib
import numpy as np

from ..checks import check_label, check_volume
from ..keys import IMAGE, LABEL
from .support import resolve_support


def check_run(
    queries: Sequence[Mapping[str, Any]],
    support: Sequence[Mapping[str, Any]],
    dataset_dir: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    num_workers: int = 4,
) -> None:
    """Check everything that an inference needs without running it: every file is read to its end.

    Args:
        queries: ``[{"image": path}, …]``.
        support: ``[{"image": path, "label": path}, …]``.
        dataset_dir: folder to which paths of the support may be relative.
        weights: file with the network's weights.
        num_workers: threads that read queries, each holding one scan.

    Raises:
        ValueError, FileNotFoundError: naming the file and the remedy.
    """
    if weights is not None and not os.path.isfile(weights):
        raise FileNotFoundError(f"{weights}: no such weights; train first, or set ckpt_path to a model.pt")
    for entry in resolve_support(support, dataset_dir):
        image, label = _read(entry[IMAGE]), _read(entry[LABEL])
        check_volume(image, entry[IMAGE])
        check_label(label, image.shape[1:], entry[LABEL], entry[IMAGE])
    if not queries:
        raise ValueError(f"{dataset_dir}: no query images; put them into imagesTs or imagesTr, or set datalist")
    paths = []
    for query in queries:
        path = os.fspath(query[IMAGE])
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such query image; check datalist")
        paths.append(path)
    with ThreadPoolExecutor(num_workers) as pool:
        list(pool.map(lambda path: check_volume(_read(path), path), paths))


def _open(path: str) -> nib.spatialimages.SpatialImage:
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel raises whatever the broken byte leads to; all of it means the same
        raise ValueError(f"{path}: cannot be read as NIfTI ({str(error).splitlines()[0]}); replace the file") from None
    if image.get_data_dtype().fields is not None or image.get_data_dtype().kind == "c":
        raise ValueError(f"{path}: voxels must be single real numbers, got {image.get_data_dtype()}; convert the file")
    return image


def _read(path: str) -> np.ndarray:
    image = _open(path)
    try:
        return np.asarray(image.dataobj, dtype=np.float32)[None]  # as LoadImage reads, whatever the file's type
    except Exception as error:  # as above: a truncated gzip stream, a short file, a checksum
        raise ValueError(
            f"{path}: cannot be read to its end ({str(error).splitlines()[0]}); replace the file"
        ) from None
