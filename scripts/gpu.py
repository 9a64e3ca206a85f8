"""Check and measure the bundle on a GPU in one unattended run of at most eight minutes, or get everything ready for it.

    python -m scripts.gpu pack --dataset_dir DIR     here: .gpu/ gets the data set and the wheels that are missing there
    ./scripts/gpu.sh OUT                             there: all parts, OUT/gpu.md and OUT/results.json

The machine needs PyTorch with CUDA, scikit-image, scipy, matplotlib, tensorboard, tqdm and pytest, and no network. Send
it the working tree with ``.gpu/``, which git ignores: 47 MiB with the 20 scans of CHAOS.
"""

from __future__ import annotations

import cProfile
import gc
import json
import os
import pstats
import queue
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle import __version__
from bundle.atomic import write_json, write_text
from bundle.errors import SHOW_TRACEBACK

from .benchmark import accuracy
from .command import command
from .on_demand import OnDemand
from .speed import (
    RESNET,
    ROOT,
    Row,
    clock,
    device_name,
    in_turns,
    inference_rows,
    matmul_peak,
    peak_memory,
    read,
    scaling_rows,
    support_and_query,
    training_rows,
)

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np
    import torch
    import torch.nn.functional as F

    from bundle.data import SupportScan
else:
    nib = OnDemand("nibabel")
    np = OnDemand("numpy")
    torch = OnDemand("torch")
    F = OnDemand("torch.nn.functional")
data = OnDemand("bundle.data")
networks = OnDemand("bundle.networks")
loops = OnDemand("scripts.literal")
WHEELS = ("monai", "nibabel", "pytorch-ignite", "fire", "termcolor")
GPU_TESTS = ("tests/cuda", "tests/data/test_bank.py")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class Place:
    """Where and with what the parts are measured.

    Args:
        dataset_dir: folder of the data set, every image labelled.
        work_dir: folder of caches and trainings.
        device: where.
        weights: of the inference.
        batch_size: episodes a step.
        steps: steps a round.
        rounds: turns of the bundle and the literal loop.
        slices: slices of the long scan.
        labels: its labels.
        num_folds: folds of the data set.
        overrides: further ids of the configs.
    """

    def __init__(
        self,
        dataset_dir: str,
        work_dir: str,
        device: str = "cuda:0",
        weights: str = "models/model.pt",
        batch_size: int = 16,
        steps: int = 8,
        rounds: int = 2,
        slices: int = 444,
        labels: int = 13,
        num_folds: int = 5,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        self.dataset_dir = str(dataset_dir)
        self.work_dir = Path(work_dir)
        self.device = device
        self.weights = ROOT / weights
        self.batch_size = batch_size
        self.steps = steps
        self.rounds = rounds
        self.slices = slices
        self.labels = labels
        self.num_folds = num_folds
        self.overrides = dict(overrides or {})

    @property
    def common(self) -> dict[str, Any]:
        """Ids of every training."""
        places = {"dataset_dir": self.dataset_dir, "cache_dir": str(self.work_dir / "cache"), "device": self.device}
        return {**places, **self._known_to("train")}

    @property
    def inference_overrides(self) -> dict[str, Any]:
        """The overrides that a segmentation has."""
        return self._known_to("inference")

    def _known_to(self, config: str) -> dict[str, Any]:
        """The overrides whose ids a config has: a run refuses others."""
        known = json.loads((ROOT / "configs" / f"{config}.json").read_text())
        return {key: value for key, value in self.overrides.items() if key.partition("#")[0] in known}

    def inference(self, device: str, settings: dict[str, Any]) -> tuple[Any, Any, SupportScan, Any]:
        """Inferer, network, support scan and query of the data set."""
        chosen = {**self.inference_overrides, **settings}
        parser = read(["inference"], {"dataset_dir": self.dataset_dir, "device": device, **chosen})
        network = networks.load_weights(parser.get_parsed_content("network"), self.weights).eval()
        return parser.get_parsed_content("inferer"), network, *support_and_query(parser, self.dataset_dir, device)


def tests(place: Place) -> Iterator[Row]:
    """The tests that need a GPU."""
    words = [sys.executable, "-m", "pytest", "-v", "-W", "ignore", "-m", "gpu", *GPU_TESTS]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.strip())
    last = [line for line in lines if line][-1]
    passed = re.search(r"(\d+) passed", last)
    yield Row("tests marked gpu", float(passed[1]) if passed else 0.0, None, "passed", last)


def agreement(place: Place) -> Iterator[Row]:
    """Same weights, same scan: how many voxels get the same label on the device as on the CPU, in either precision."""

    def label_map(device: str, precision: str) -> torch.Tensor:
        inferer, network, support, query = place.inference(device, {"precision": precision})
        inferer.set_support([support])
        return inferer(query[None], network)[0].as_subclass(torch.Tensor).argmax(dim=0).cpu()

    def row(what: str, expected: torch.Tensor, found: torch.Tensor) -> Row:
        same, shown = expected == found, (expected > 0) | (found > 0)
        note = f"{100 * float(same[shown].float().mean()):.3f}% of those that one of both labels"
        return Row(f"voxels labelled as {what}", 100 * float(same.float().mean()), None, "%", note)

    maps = {}
    for precision in ("float32", "bfloat16"):
        maps[precision] = label_map(place.device, precision)
        print(f"{precision} on {place.device} done", file=sys.stderr, flush=True)
        yield row(f"on the CPU, {precision}", label_map("cpu", precision), maps[precision])
    yield row("in float32 by bfloat16", maps["float32"], maps["bfloat16"])


def training(place: Place, **acceleration: Any) -> Iterator[Row]:
    """Published one-way episodes with ResNet-101 beside the literal loop, and both recipes of the default encoder."""
    device = torch.device(place.device)
    peak = matmul_peak(device)
    common = {**place.common, **acceleration}
    how = "".join(f", {name}" for name in acceleration)
    for name, encoder in (("ResNet-101", RESNET), ("EfficientNet-Lite0", None)):
        if encoder is not None and "network_def#encoder" in place.overrides:
            continue  # a dry run
        for row in training_rows(name, encoder, common, device, place.batch_size, place.steps, place.rounds, peak):
            yield replace(row, what=row.what + how)


def compiled(place: Place) -> Iterator[Row]:
    """The same with generated code."""
    return training(place, compile=True)


def graphs(place: Place) -> Iterator[Row]:
    """The same with CUDA graphs."""
    return training(place, cuda_graphs=True)


def inference(place: Place) -> Iterator[Row]:
    """A scan of the data set, and one of many slices and labels, beside the literal loop."""
    device = torch.device(place.device)
    yield from inference_rows(place.dataset_dir, str(place.weights), device, place.rounds, place.inference_overrides)
    inferer, network, support, query = place.inference(place.device, {})
    spacing_mm = support.spacing_mm * support.image.shape[-1] / place.slices
    image = F.interpolate(
        query.as_subclass(torch.Tensor)[None], size=(*query.shape[1:3], place.slices), mode="trilinear"
    )
    long = type(query)(image[0], affine=query.affine)
    long.affine[2, 2] = spacing_mm
    size = (*support.label.shape[:2], place.slices)
    label = F.interpolate(support.label[None, None].float(), size=size)[0, 0].long()
    parts = torch.arange(size[0])[:, None, None] // 8 % 4  # each label becomes several
    label = torch.where(label > 0, 1 + ((label - 1) * 4 + parts) % place.labels, 0)
    image = F.interpolate(support.image[None], size=size, mode="trilinear")[0]
    many = data.SupportScan(image.cpu(), label.cpu(), spacing_mm, "many slices")

    def run() -> None:
        inferer.set_support([many])
        inferer(long[None], network)

    every = 20  # slices between two that the literal loop takes; it takes as long for each
    some = data.SupportScan(many.image[..., ::every], many.label[..., ::every], spacing_mm * every, "fewer slices")
    few = long.as_subclass(torch.Tensor)[..., ::every]

    def literal() -> None:
        loops.segment_volume(network, few, some, many.values, spacing_mm * every)

    (seconds,) = in_turns([run], device, 1)
    known = clock(lambda: inferer(long[None], network), device)
    slow = clock(literal, device) * place.slices / few.shape[-1]
    note = f"{known:.2f} s with the support encoded before; the literal loop of every {every}th slice, times "
    note += f"{place.slices / few.shape[-1]:.1f}"
    what = f"inference, {place.slices} slices, {len(many.values)} labels, the whole default"
    yield Row(what, seconds, slow, "s", note)
    profile = cProfile.Profile()
    yield Row("peak memory of it", profile.runcall(peak_memory, run, device), None, "MB")
    pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
    profile = cProfile.Profile()
    inferer.set_support([support])
    profile.runcall(clock, lambda: inferer(query[None], network), device)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(60)


def folds(place: Place) -> Iterator[Row]:
    """All folds trained and evaluated side by side, and the first evaluated by the same weights on the CPU."""
    folder = place.work_dir / "folds"
    every = list(range(place.num_folds))
    settings: dict[str, Any] = {"num_folds": place.num_folds}
    overrides = {**place.overrides, "device": place.device}
    started = time.perf_counter()
    accuracy(place.dataset_dir, str(folder), folds=every, jobs=len(every), overrides=overrides, **settings)
    seconds = time.perf_counter() - started

    def dice(path: Path) -> float:
        return float(json.loads((path / "official" / "summary.json").read_text())["mean"])

    runs = [folder / "setting1" / f"fold{fold}_seed0" for fold in every]
    trained = max(json.loads((run / "run.json").read_text())["seconds"] for run in runs)
    note = f"the longest training took {trained:.0f} s; Dice {', '.join(f'{dice(run):.1f}' for run in runs)}"
    yield Row(f"{len(every)} folds side by side, from the scans to the Dice", seconds, None, "s", note)
    yield Row("Dice of the first", dice(runs[0]), None, "%")
    settings |= {"weights": str(runs[0] / "models" / "model_final.pt")}
    overrides = {**place.inference_overrides, "device": "cpu"}
    accuracy(place.dataset_dir, str(folder / "cpu"), folds=[0], overrides=overrides, **settings)
    found = dice(folder / "cpu" / "setting1" / "fold0_seed0")
    yield Row("Dice of the first by the same weights on the CPU", found, None, "%")


def processes(place: Place) -> Iterator[Row]:
    """Training by as many processes as there are GPUs."""
    number = max(1, torch.cuda.device_count())
    folder = str(place.work_dir / "processes")
    return scaling_rows(place.common, folder, sorted({1, number}), place.batch_size, launched=True)


START_S = 90  # what a process may take until its first part begins
PARTS: dict[str, tuple[Callable[..., Iterator[Row]], int]] = {  # with the most seconds that each may take
    "training": (training, 90),
    "agreement": (agreement, 60),
    "folds": (folds, 200),
    "tests": (tests, 120),
    "inference": (inference, 70),
    "processes": (processes, 60),
    "graphs": (graphs, 40),
    "compiled": (compiled, 60),
}


def run(
    output_dir: str,
    dataset_dir: str,
    parts: Sequence[str] = tuple(PARTS),
    work_dir: str | None = None,
    limit_s: float = 480.0,
    **settings: Any,
) -> str:
    """Measure part by part, and write the table after each line of it.

    What an earlier call with the same folder measured is not measured again; what failed is. One process measures all
    parts, since starting one takes as long as some of them; after a part that failed or took too long another goes on.
    What ``limit_s`` leaves no time for is measured by the next call.

    Args:
        output_dir: folder of ``gpu.md``, the table, ``results.json`` and ``log.txt``.
        dataset_dir: folder of the data set, every image labelled.
        parts: what to measure, out of training, agreement, folds, tests, inference, processes, graphs, compiled.
        work_dir: folder of caches and trainings; by default one for temporary files, which a later call finds again.
        limit_s: seconds of all parts together.
        **settings: see :class:`Place`.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"parts must be among {sorted(PARTS)}, got {unknown}")
    folder, end = Path(output_dir), time.monotonic() + limit_s
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(work_dir or Path(tempfile.gettempdir()) / "bundle_gpu")
    work.mkdir(parents=True, exist_ok=True)
    place = {"dataset_dir": str(Path(dataset_dir).resolve()), "work_dir": str(work), **settings}
    results = folder / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    todo = [name for name in parts if "rows" not in found.get(name, {}) or "problem" in found[name]]

    def write() -> None:
        write_json(results, found)
        write_text(folder / "gpu.md", table(found, place.get("device", "cuda:0")) + "\n")

    while todo and end - time.monotonic() > 5:
        for name, result in _watch(todo, place, folder, end):
            found[name] = result
            if "problem" in result or "seconds" in result:
                print(f"{name}: {result.get('problem', 'done')}", flush=True)
                todo.remove(name)
            write()
    found.update({name: {"problem": "no time was left"} for name in todo})
    write()
    return table(found, place.get("device", "cuda:0"))


def _watch(
    names: Sequence[str], place: dict[str, Any], folder: Path, end: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure parts in one process; yields a part's result as it grows, and ends after one that failed."""
    arguments = ["measure", repr(list(names)), repr(place)]
    environment = {**os.environ, SHOW_TRACEBACK: "1"}  # the log shall say where a part failed
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stderr=log, start_new_session=True, **pipes)
    told: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in process.stdout or ():
            told.put(line)
        told.put("")

    threading.Thread(target=listen, daemon=True).start()
    left = list(names)
    name = left[0]
    rows: list[dict[str, Any]] = []
    begun, limit = time.monotonic(), float(START_S + PARTS[name][1])
    try:
        while left:
            try:
                line = told.get(timeout=max(0.1, min(begun + limit, end) - time.monotonic()))
            except queue.Empty:
                problem = f"not finished in {time.monotonic() - begun:.0f} s"
                break
            event = json.loads(line) if line else {}
            if "begin" in event:
                name, rows, begun, limit = event["begin"], [], time.monotonic(), float(PARTS[event["begin"]][1])
            elif "row" in event:
                rows.append(event["row"])
                yield name, {"rows": list(rows)}
            elif "done" in event:
                left.remove(name)
                yield name, {"rows": rows, "seconds": round(time.monotonic() - begun, 1)}
            else:
                problem = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1][:300]
                break
        else:
            return
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the trainings that it started
        process.wait()
    yield name, {"rows": rows, "problem": problem}


COMMAND = (sys.executable, "-W", "ignore", "-m", "scripts.gpu")


def measure(names: Sequence[str], place: dict[str, Any]) -> None:
    """Measure parts in this process, and tell each row on standard output; what else is printed goes to the log."""
    tell = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.backends.cudnn.benchmark = True  # the fastest kernels, for both sides
    started = time.monotonic()

    def event(**what: Any) -> None:
        print(f"{time.monotonic() - started:6.1f} s {what}", file=sys.stderr, flush=True)
        print(json.dumps(what), file=tell, flush=True)

    for name in names:
        event(begin=name)
        for row in PARTS[name][0](Place(**place)):
            event(row=vars(row))
        event(done=name)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def table(found: dict[str, Any], device: str) -> str:
    """The results as Markdown."""
    there = device != "cpu" and torch.cuda.is_available()
    lines = [
        f"{device_name(torch.device(device if there else 'cpu'))}, bundle {__version__}, torch {torch.__version__}.",
        "",
        "| what | bundle | literal | times faster | |",
        "|---|---|---|---|---|",
    ]
    for name, result in found.items():
        lines += [str(Row(**row)) for row in result.get("rows", [])]
        if "problem" in result:
            part = f"{name}, {'the rest' if result.get('rows') else 'all'}"
            lines.append(f"| {part} | not measured | | | {result['problem'].replace('|', '/')} |")
    return "\n".join(lines)


def pack(dataset_dir: str, folder: str = ".gpu", wheels: bool = True, python: str = "3.12") -> str:
    """Put a data set, as 16-bit integers in one archive, and wheels into a folder that git ignores.

    Args:
        dataset_dir: folder with ``imagesTr`` and ``labelsTr``.
        folder: where to.
        wheels: load wheels of what a machine with PyTorch lacks, in the versions that are installed here.
        python: version of Python there.

    Raises:
        ValueError: for a scan whose values are not whole numbers of 16 bits.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, tarfile.open(target / "data.tar.xz", "w:xz") as archive:
        for path in sorted(Path(dataset_dir).rglob("*")):
            if path.name.endswith((".nii", ".nii.gz")):
                plain = Path(made) / path.name.removesuffix(".gz")
                save_integers(path, plain)  # one archive of all gets smaller than each file alone
                archive.add(plain, f"data/{path.parent.relative_to(dataset_dir)}/{plain.name}")
                plain.unlink()
            elif path.is_file():
                text = path.read_text(encoding="utf-8").replace(".nii.gz", ".nii")
                (Path(made) / path.name).write_text(text, encoding="utf-8")
                archive.add(Path(made) / path.name, f"data/{path.relative_to(dataset_dir)}")
    if wheels:
        names = [f"{name}=={version(name)}" for name in WHEELS]
        options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
        options += [part for platform in PLATFORMS for part in ("--platform", platform)]
        words = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(target / "wheels"), *names]
        subprocess.run(words, check=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return f"{target}: {size / 2**20:.1f} MiB; send it with the working tree and run ./scripts/gpu.sh OUT there"


def save_integers(source: Path, target: Path) -> None:
    """Write a NIfTI file with its values as int16."""
    image = nib.load(source)
    values = np.asanyarray(image.dataobj)
    if not np.array_equal(values, values.astype(np.int16)):
        raise ValueError(f"{source}: values must be whole numbers of 16 bits to be packed")
    header = image.header.copy()
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine, header), target)


def main() -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    command({"run": run, "measure": measure, "pack": pack}, "scripts.gpu")


if __name__ == "__main__":
    main()
