"""Measures what docs/integration.md says: ``python -m tests.integration.measure DATASET --output_dir DIR``.

Every consumer segments scans of a labelled data set with the support of one scan; the Dice is the mean over the labels
in percent, over whole volumes. Prints the tables of the page; the results stay in the folder, for pictures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fire
import nibabel as nib
import numpy as np

from bundle.data import label_names

from .client import ROOT, Client, make_app, serve

WEIGHTS = ROOT / "models" / "model.pt"
INFERENCE, ONNX = "configs/inference.json", "configs/inference_onnx.json"
TS = "configs/inference_ts.json"
EXPORTS: dict[str, tuple[str, list[str], list[str]]] = {  # file, command that writes it, configs that run it
    "model.pt": ("model.pt", [], [INFERENCE]),
    "TorchScript": ("scripted.ts", ["ckpt_export", "network_def", "--config_file", INFERENCE], [INFERENCE, TS]),
    "TorchScript, traced": (
        "traced.ts",
        [
            *("ckpt_export", "network_def", "--config_file", INFERENCE),
            *("--use_trace", "True", "--input_shape", "[1,3,256,256]"),
        ],
        [INFERENCE, TS],
    ),
    "ONNX Runtime": (
        "encoder.onnx",
        [
            *("onnx_export", "encoder_only", "--config_file", str([INFERENCE, ONNX])),
            *("--input_shape", "[2,3,256,256]", "--converter_kwargs"),
            "{'input_names':['image'],'output_names':['features'],'dynamic_axes':"
            "{'image':{0:'b',2:'h',3:'w'},'features':{0:'b',2:'h',3:'w'}}}",
        ],
        [INFERENCE, ONNX],
    ),
    "TensorRT's overlay": ("model.pt", [], [INFERENCE, "configs/inference_trt.json"]),
}


def read(path: Path) -> np.ndarray:
    """Values of a label map."""
    return np.asarray(nib.load(path).dataobj)


def mean_dice(path: Path, truth: Path) -> float:
    """Mean Dice in percent over the labels that the truth shows."""
    pred, true = read(path), read(truth)
    masks = [(pred == value, true == value) for value in np.unique(true) if value]
    return 100 * float(np.mean([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in masks]))


def renumber(label: Path, dst: Path, table: Sequence[int]) -> None:
    """Write a label map with other values: as an annotator's client numbers them."""
    stored = nib.load(label)
    values = np.asarray(table, np.uint8)[np.asarray(stored.dataobj).astype(int)]
    nib.save(nib.Nifti1Image(values, stored.affine), dst)


def stopwatch() -> Callable[[], float]:
    """A function that tells the seconds since now."""
    start = time.monotonic()
    return lambda: time.monotonic() - start


def bundle(*arguments: str | Path) -> float:
    """Run ``python -m monai.bundle`` in the bundle's folder; the seconds that it took."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MONAI_LABEL_STUDIES": ""}
    seconds = stopwatch()
    command = [sys.executable, "-m", "monai.bundle", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return seconds()


def segment(
    data: Path, out: Path, supports: Sequence[str], queries: Sequence[str], configs: Sequence[str], *options: str | Path
) -> tuple[list[Path], float]:
    """Segment scans on the command line: their label maps and the seconds."""
    entries = [{key: f"{key}sTr/{case}.nii.gz" for key in ("image", "label")} for case in supports]
    images = [{"image": str(data / "imagesTr" / f"{query}.nii.gz")} for query in queries]
    seconds = bundle(
        *("run", "--config_file", str(configs), "--dataset_dir", data, "--output_dir", out),
        *("--support", str(entries), "--datalist", str(images)),
        *options,
    )
    return [out / query / f"{query}_seg.nii.gz" for query in queries], seconds


def exports(data: Path, out: Path, support: str, query: str) -> None:
    """Segment a scan by each form of the network."""
    print("| network | export | inference | Dice | other voxels |\n|---|---|---|---|---|")
    truth, reference = data / "labelsTr" / f"{query}.nii.gz", None
    single = ("--precision", "float32")
    for name, (file, exporter, configs) in EXPORTS.items():
        exported, weights = "", WEIGHTS
        if exporter:
            weights = out / file
            given = ("--filepath", weights, "--ckpt_file", WEIGHTS, "--meta_file", "configs/metadata.json")
            exported = f"{bundle(*exporter, *given, *single):.0f} s"
        (found,), seconds = segment(data, out / name, [support], [query], configs, "--ckpt_path", weights, *single)
        reference = reference or found
        other = int((read(found) != read(reference)).sum())
        print(f"| {name} | {exported} | {seconds:.0f} s | {mean_dice(found, truth):.2f} | {other} |", flush=True)


def rounds(
    client: Client, queries: Sequence[str], out: Path, labels: Path
) -> tuple[dict[str, Path], dict[str, float], float]:
    """Segment scans one by one: their files, their Dice, and the seconds of a scan."""
    out.mkdir()
    files = {query: out / f"{query}.nii.gz" for query in queries}
    seconds = stopwatch()
    for query, file in files.items():
        status, answer = client.infer(query, file)
        if status != 200:
            raise RuntimeError(answer)
    each = seconds() / len(files)
    return files, {query: mean_dice(file, labels / file.name) for query, file in files.items()}, each


def server(data: Path, out: Path, supports: Sequence[str], queries: Sequence[str], epochs: int) -> None:
    """Annotate one scan on a server, then a second, then train."""
    labels, names = data / "labelsTr", list(label_names(data).values())
    studies = out / "studies"
    studies.mkdir()
    for case in [*supports, *queries]:
        shutil.copy(data / "imagesTr" / f"{case}.nii.gz", studies)
    environment = subprocess.run([ROOT / "scripts" / "monailabel_env.sh"], check=True, capture_output=True, text=True)
    python = Path(environment.stdout.split()[-1])
    app = make_app(python, out / "app", WEIGHTS, {"epoch_length": 16, "val_length": 8})
    seconds = stopwatch()
    with serve(python, app, studies, out / "server.log") as client:
        print(f"\nMONAI Label: start {seconds():.0f} s")
        client.finish(supports[0], labels / f"{supports[0]}.nii.gz", names)
        seconds = stopwatch()
        client.infer(queries[0])
        print(f"first request {seconds():.0f} s", end=", ")
        one, first, each = rounds(client, queries, out / "one", labels)
        print(f"next {each:.1f} s a scan")
        (file,), took = segment(data, out / "command_line", supports[:1], queries[:1], [INFERENCE])
        dice = mean_dice(file, labels / f"{queries[0]}.nii.gz")
        print(f"{queries[0]}: server {first[queries[0]]:.2f}, command line {dice:.2f} in {took:.0f} s", flush=True)

        seconds = stopwatch()
        with ThreadPoolExecutor(3) as pool:
            together = {query: out / f"{query}_together.nii.gz" for query in queries[:3]}
            list(pool.map(lambda query: client.infer(query, together[query]), together))
            same = [np.array_equal(read(file), read(one[query])) for query, file in together.items()]
            print(f"three requests at once: {seconds():.0f} s, {sum(same)} of {len(same)} equal the serial ones")
        seconds = stopwatch()
        client.batch(workers=2)
        took = seconds()
        batch = [studies / "labels" / "original" / file.name for file in one.values()]
        same = [np.array_equal(read(a), read(b)) for a, b in zip(batch, one.values())]
        print(f"batch of {len(queries) + 1}, two workers: {took:.0f} s, {sum(same)} of {len(same)} equal", flush=True)

        values = [0, *range(len(names), 0, -1)]
        renumber(labels / f"{supports[1]}.nii.gz", out / "renumbered.nii.gz", values)
        client.finish(supports[1], out / "renumbered.nii.gz", names, values[1:])
        _, second, each = rounds(client, queries, out / "two", labels)
        print(f"two labels: {each:.1f} s a scan")
        seconds = stopwatch()
        client.train(epochs)
        print(f"training, {epochs} epoch of 16 episodes on {len(queries) + 2} scans: {seconds():.0f} s", flush=True)
        _, third, _ = rounds(client, queries[:3], out / "trained", labels)
    print("\n| query | one label | two labels | gain | after training |\n|---|---|---|---|---|")
    for query in queries:
        after = f"{third[query]:.1f}" if query in third else ""
        gain = second[query] - first[query]
        print(f"| {query} | {first[query]:.1f} | {second[query]:.1f} | {gain:+.1f} | {after} |")
    one_label, two_labels = (float(np.mean(list(scores.values()))) for scores in (first, second))
    print(f"| mean | {one_label:.1f} | {two_labels:.1f} | {two_labels - one_label:+.1f} | |")


def pairs(data: Path, out: Path, chosen: Sequence[Sequence[str]], queries: Sequence[str]) -> None:
    """Whether a second label helps, whichever two scans are labelled: each alone, then both."""
    print("\n| labelled | the first alone | the second alone | both |\n|---|---|---|---|")
    for first, second in chosen:
        means = []
        for supports in ([first], [second], [first, second]):
            folder = out / "pairs" / "_".join(supports)
            maps, _ = segment(data, folder, supports, queries, [INFERENCE], "--overlays", "False")
            scores = [mean_dice(file, data / "labelsTr" / f"{query}.nii.gz") for file, query in zip(maps, queries)]
            means.append(float(np.mean(scores)))
        print(f"| {first}, {second} | {means[0]:.1f} | {means[1]:.1f} | {means[2]:.1f} |", flush=True)


def measure(
    dataset: str,
    output_dir: str,
    supports: Sequence[str] = ("chaos_08", "chaos_05"),
    queries: Sequence[str] | int = 10,
    epochs: int = 1,
    more: Sequence[Sequence[str]] = (("chaos_31", "chaos_32"), ("chaos_33", "chaos_34")),
) -> None:
    """Measure the exports, the server and other choices of the labelled scans on a labelled data set.

    Args:
        dataset: folder of the data set.
        output_dir: folder to write, which must not exist.
        supports: scan that is labelled first, and the one that is labelled second.
        queries: scans to segment, or how many of the others.
        epochs: epochs of the training on the server.
        more: other pairs of scans to label, measured without a server; none of them is segmented.
    """
    data, out = Path(dataset).resolve(), Path(output_dir).resolve()
    cases = [path.name.removesuffix(".nii.gz") for path in sorted((data / "labelsTr").glob("*.nii.gz"))]
    labelled = {case for pair in (supports, *more) for case in pair}
    chosen = [c for c in cases if c not in labelled][:queries] if isinstance(queries, int) else list(queries)
    out.mkdir(parents=True)
    exports(data, out, supports[0], chosen[0])
    server(data, out, supports, chosen, epochs)
    pairs(data, out, more, chosen)


if __name__ == "__main__":
    fire.Fire(measure, name="tests.integration.measure")
