"""A studies folder of MONAI Label, as its local datastore writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def make_studies(root: Path, data: Path, finished: dict[str, list[dict]] | None = None) -> Path:
    """Images of a data set as studies, with the finished labels of some, given as {case: label_info}."""
    finished = finished or {}
    (root / "labels" / "final").mkdir(parents=True)
    objects = {}
    for image in sorted((data / "imagesTr").glob("*.nii.gz")):
        case = image.name.removesuffix(".nii.gz")
        shutil.copy(image, root / image.name)
        objects[case] = {"image": {"ext": ".nii.gz", "info": {"name": image.name}}, "labels": {}}
        if case in finished:
            shutil.copy(data / "labelsTr" / image.name, root / "labels" / "final" / image.name)
            info = {"label_info": finished[case], "ts": list(finished).index(case)}
            objects[case]["labels"]["final"] = {"ext": ".nii.gz", "info": info}
    (root / "datastore_v2.json").write_text(json.dumps({"name": "studies", "images_dir": ".", "objects": objects}))
    return root
