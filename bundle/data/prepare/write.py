"""Write the result: each file in one step, so that what stands under its name is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ...atomic import replacing, write_json

RECORDS = ".prepare"  # folder of one file for each finished case; its presence is what finished means


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume in one step."""
    whole = np.issubdtype(array.dtype, np.integer)
    if whole and array.dtype != np.uint8 and abs(array).max() <= 32767:
        array = array.astype(np.int16)
    image = nib.Nifti1Image(array if array.dtype in (np.uint8, np.int16) else array.astype(np.float64), affine)
    if array.dtype != np.uint8:
        image.set_data_dtype(np.int16)  # other numbers: nibabel stores a scale that maps them to 16 bits and back
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1, strip_shears=True)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None, 0)  # a shear: the sform alone can say it
    with replacing(path) as temporary:
        nib.save(image, temporary)


def read_records(dst: Path) -> list[dict[str, Any]]:
    """Records of the finished cases, by name; those that a kill left half-written are hidden."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted((dst / RECORDS).glob("[!.]*.json"))]


def write_origins(dst: Path, src: Path, origins: Mapping[str, Any]) -> None:
    """Write ``dicom.json``: which DICOM series each case was made of; without DICOM there is no such file."""
    if origins:
        write_json(dst / "dicom.json", {"src": str(src.resolve()), "cases": origins})
    else:
        (dst / "dicom.json").unlink(missing_ok=True)


def write_dataset(dst: Path, names: Mapping[int, str]) -> dict[str, str]:
    """Write ``dataset.json`` from the records of all finished cases.

    Args:
        dst: folder of the result.
        names: names of label values. If there are none, values are named by their numbers.

    Returns:
        Names of the label values, with the background.
    """
    records = read_records(dst)
    if not names:
        names = {v: f"label {v}" for v in sorted({int(v) for record in records for v in record["voxels"]})}
    labels = {"0": "background", **{str(value): str(name) for value, name in sorted(names.items()) if value != 0}}
    modalities = sorted({record["modality"] for record in records})
    training = []
    for record in records:
        if record["subset"] == "Tr":
            entry = {"image": f"./imagesTr/{record['case']}.nii.gz"}
            training.append(entry | ({"label": f"./labelsTr/{record['case']}.nii.gz"} if record["voxels"] else {}))
    content: dict[str, Any] = {
        "name": dst.resolve().name,
        "description": f"prepared with the recipe {records[0]['recipe']}",
        "modality": {"0": " and ".join(modalities)},
        "labels": labels,
        "numTraining": len(training),
        "training": training,
        "test": [f"./imagesTs/{r['case']}.nii.gz" for r in records if r["subset"] == "Ts"],
        "cases": {
            r["case"]: {k: r[k] for k in ("modality", "shape", "spacing_mm", "orientation", "body_box")}
            for r in records
        },
    }
    write_json(dst / "dataset.json", content)
    return labels
