"""Copy the bundle for those who take it in: the model zoo, a MONAI Label app.

Usage: python -m scripts.export {zoo,monailabel} DST
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from .command import command

NAME = "fewshot_alpnet_segmentation"
ROOT = Path(__file__).resolve().parent.parent
MAX_MB = 25.0  # the model zoo's limit for a file in its repository
PARTS = ("bundle", "configs", "docs", "models", "LICENSE")
UNWANTED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.ts", "*.onnx", "*.plan", "monailabel_train.json", ".*")


def rename_package(text: str, old: str = "bundle", new: str = "scripts") -> str:
    """Replace the package in the dotted names of a text: ``bundle.data.x`` but not ``monai.bundle.x``."""
    return re.sub(rf"(?<![\w./]){old}\.(?=[a-z_]+\.)", f"{new}.", text)


def copy_bundle(dst: str | Path, weights: str | None = None, source: Path = ROOT) -> Path:
    """Copy what a consumer needs, with ``weights`` as ``models/model.pt`` if given.

    Raises:
        FileExistsError: if ``dst`` is there and not empty.
        FileNotFoundError: without weights.
    """
    target = Path(dst)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: is there already; remove it or name another folder")
    model = Path(weights) if weights else source / "models" / "model.pt"
    if not model.is_file():
        raise FileNotFoundError(f"{model}: no such weights; train first, or give --weights a model.pt")
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=UNWANTED)
        elif (source / part).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)
    (target / "models").mkdir(exist_ok=True)
    shutil.copyfile(model, target / "models" / "model.pt")
    return target


def zoo(dst: str, weights: str | None = None, url: str | None = None) -> str:
    """Write the folder that is ready to submit to the MONAI model zoo.

    The package is called scripts there, as the zoo wants it; the command lines of this repository stay behind.

    Args:
        dst: folder to write, named after the bundle: models/fewshot_alpnet_segmentation in a checkout of the zoo.
        weights: file to ship as models/model.pt instead of ours.
        url: where files above the zoo's limit of 25 MB can be downloaded, as URL/models/model.pt. They are left out
            of the folder and listed in large_files.yml.
    """
    target = copy_bundle(dst, weights)
    missing = [part for part in ("LICENSE", "docs/README.md", "configs/metadata.json") if not (target / part).is_file()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)}: missing, and the zoo wants it")
    (target / "bundle").rename(target / "scripts")
    for file in (*(target / "configs").glob("*.json"), *(target / "docs").glob("*.md")):
        file.write_text(rename_package(file.read_text(encoding="utf-8")), encoding="utf-8")
    for file in (target / "scripts").rglob("*.py"):
        if re.search(r"^\s*(from|import) bundle\b", file.read_text(), re.M):
            raise ValueError(f"{file}: imports the package by name; use a relative import")
    large = sorted(f for f in target.rglob("*") if f.is_file() and f.stat().st_size > MAX_MB * 1e6)
    if large and url is None:
        raise ValueError(
            f"{large[0]}: {large[0].stat().st_size / 1e6:.1f} MB, the zoo takes {MAX_MB:g} MB a file; upload it and "
            "give --url"
        )
    if large:
        list_large_files(target, large, str(url))
    return f"wrote {target}: {_size(target):.1f} MB, package 'scripts', {len(large)} large files"


def list_large_files(target: Path, files: Sequence[Path], url: str) -> None:
    """Write large_files.yml, from which the zoo and MONAI download files, and delete them from the folder."""
    lines = ["large_files:"]
    for file in files:
        path = file.relative_to(target).as_posix()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines += [f'  - path: "{path}"', f'    url: "{url.rstrip("/")}/{path}"']
        lines += [f'    hash_val: "{digest}"', '    hash_type: "sha256"']
        file.unlink()
    (target / "large_files.yml").write_text("\n".join(lines) + "\n")


def monailabel(
    dst: str, labels: str | Sequence[str] | None = None, studies: str | None = None, weights: str | None = None
) -> str:
    """Put the bundle into a MONAI Label app, as DST/model/fewshot_alpnet_segmentation.

    An earlier copy there keeps its weights, which the annotators may have trained, unless others are given.

    Args:
        dst: folder of MONAI Label's app monaibundle.
        labels: names that clients offer, in the order of their values: liver,spleen. A label of such a name has that
            value in every answer. By default the names of dataset.json in the studies folder, or else those of its
            finished labels; without names a client shows one called structure.
        studies: studies folder.
        weights: file to use as models/model.pt instead of ours.
    """
    target = Path(dst) / "model" / NAME
    trained = target / "models" / "model.pt"
    if target.is_dir():
        old = target.with_name(f".{NAME}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        trained = old / "models" / "model.pt"
    copy_bundle(target, weights or (str(trained) if trained.is_file() else None))
    shutil.rmtree(target.with_name(f".{NAME}.old"), ignore_errors=True)
    names = _names(labels, studies)
    if names:
        file = target / "configs" / "metadata.json"
        metadata = json.loads(file.read_text())
        metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "background", **names}
        file.write_text(json.dumps(metadata, indent=4) + "\n")
        file = target / "configs" / "inference.json"
        config = json.loads(file.read_text()) | {"app_labels": {name: int(value) for value, name in names.items()}}
        file.write_text(json.dumps(config, indent=4) + "\n")
    return f"wrote {target}: labels {list(names.values()) or 'named by the support'}"


def _names(labels: str | Sequence[str] | None, studies: str | None) -> dict[str, str]:
    """Names of the labels by their values, as text."""
    if labels is not None:
        listed = [str(name).strip() for name in (labels.split(",") if isinstance(labels, str) else labels)]
        if not all(listed) or len({name.casefold() for name in listed}) < len(listed):
            raise ValueError(f"labels must be different names, such as liver,spleen, got {labels!r}")
        return {str(value): name for value, name in enumerate(listed, start=1)}
    if studies is None:
        return {}
    from bundle.data.datalist import label_names  # the zoo's copy is written without it
    from bundle.data.datastore import Datastore

    found = {str(value): name for value, name in sorted(label_names(studies).items())}
    store = None if found else Datastore.find(Path(studies) / "scan")
    if store is not None and store.finished():
        return {str(value): name for name, value in store.entries(store.finished())[1].items()}
    return found


def _size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    command({"zoo": zoo, "monailabel": monailabel}, "scripts.export")


if __name__ == "__main__":
    main()
