"""How fast the bundle is on the device at hand, beside the same method programmed literally.

Both sides of a ratio run in turns in one process, so that what else the machine does falls on both.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle import __version__
from bundle.atomic import write_text

from .on_demand import OnDemand

if TYPE_CHECKING:
    import torch
else:
    torch = OnDemand("torch")
ROOT = Path(__file__).resolve().parent.parent
data = OnDemand("bundle.data")
support_scans = OnDemand("bundle.data.support")
networks = OnDemand("bundle.networks")
options = OnDemand("bundle.options")
own = OnDemand("bundle.transforms")
transforms = OnDemand("monai.transforms")
torch_data = OnDemand("torch.utils.data")
flop_counter = OnDemand("torch.utils.flop_counter")
loops = OnDemand("scripts.literal")
RESNET = {"_target_": "bundle.networks.ResNetEncoder", "depth": 101, "output_stride": 8, "embedding_channels": 256}
MATCHING: dict[str, Any] = {  # leaves what the published method has as well
    "num_slices": 1,
    "registration": None,
    "smoothing_mm": 0.0,
    "refinement": None,
    "upsampling": None,
    "region_of_interest": None,
    "min_reverse_dice": 0.0,
}


@dataclass(frozen=True)
class Row:
    """One line of the table; ``literal`` is None where the literal method has no counterpart."""

    what: str
    fast: float
    literal: float | None
    unit: str
    note: str = ""

    def __str__(self) -> str:
        ratio = ""
        if self.literal:
            faster = self.literal / self.fast if self.unit == "s" else self.fast / self.literal
            ratio = f"**{faster:.1f}**"
        literal = f"{self.literal:.3g} {self.unit}" if self.literal else ""
        return f"| {self.what} | {self.fast:.3g} {self.unit} | {literal} | {ratio} | {self.note} |"


def speed(
    dataset_dir: str,
    output_dir: str = "speed",
    device: str | None = None,
    parts: Sequence[str] = ("start", "training", "inference", "superpixels"),
    resnet: bool = False,
    batch_size: int = 4,
    steps: int = 3,
    rounds: int = 4,
    weights: str = "models/model.pt",
    processes: Sequence[int] = (1, 2),
    overrides: dict[str, Any] | None = None,
) -> str:
    """Measure training, inference, superpixels and the start of a run; print and write the table.

    Args:
        dataset_dir: folder of the data set, every image labelled; the slices should be about 256 x 256.
        output_dir: folder of table and caches.
        device: cuda:0, cpu, …; the GPU if there is one.
        parts: what to measure: start, training, inference, superpixels, and scaling, one process against several.
        resnet: train with ResNet-101 too, from random weights, which take the same time as others.
        batch_size: episodes a step of the bundle; the literal loop takes one.
        steps: steps a round; the literal loop takes as many.
        rounds: how often both sides take turns.
        weights: weights for the inference.
        processes: numbers of processes of the part scaling.
        overrides: further ids of the training config, {"compile": True}.
    """
    known = {"start", "training", "inference", "superpixels", "scaling"}
    if not set(parts) <= known:
        raise ValueError(f"parts must be among {sorted(known)}, got {list(parts)}")
    place = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    common = {"dataset_dir": str(dataset_dir), "cache_dir": str(Path(output_dir) / "cache"), "device": str(place)}
    common |= overrides or {}
    torch.backends.cudnn.benchmark = True  # the fastest kernels, for both sides
    rows: list[Row] = []

    def take(some: Iterable[Row]) -> None:
        for row in some:
            print(row, flush=True)
            rows.append(row)

    if "start" in parts:
        take(start_rows(common, output_dir))
    if "training" in parts:
        peak = matmul_peak(place)
        print(f"matmul: {peak / 1e12:.2f} TFLOP/s in {networks.fast_precision(place)}", flush=True)
        for name, encoder in (("EfficientNet-Lite0", None), ("ResNet-101", RESNET))[: 1 + resnet]:
            take(training_rows(name, encoder, common, place, batch_size, steps, rounds, peak))
    if "inference" in parts:
        take(inference_rows(dataset_dir, weights, place, rounds))
    if "superpixels" in parts:
        take(superpixel_rows(common))
    if "scaling" in parts:
        take(scaling_rows(common, output_dir, processes, batch_size))
    lines = [
        f"{device_name(place)}, bundle {__version__}, torch {torch.__version__}.",
        "",
        "| what | bundle | literal | times faster | |",
        "|---|---|---|---|---|",
        *map(str, rows),
    ]
    table = "\n".join(lines)
    write_text(Path(output_dir) / "speed.md", table + "\n")
    return table


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = next((x for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "").partition(": ")[2]
    return f"CPU {model or 'of unknown make'}, {torch.get_num_threads()} thread(s)"


def read(files: Sequence[str], settings: dict[str, Any]) -> Any:
    """A parser of configs with ids overridden."""
    paths = [ROOT / "configs" / f"{name}.json" for name in files]
    return options.read_config(paths, {"bundle_root": str(ROOT), **settings})


def clock(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a piece of work takes, on the device too."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def in_turns(sides: Sequence[Callable[[], Any]], device: torch.device, rounds: int) -> list[float]:
    """Mean seconds of each side, after one turn that does not count."""
    times = [[clock(side, device) for side in sides] for _ in range(rounds + 1)][1:]
    return [sum(side) / rounds for side in zip(*times)]


def peak_memory(work: Callable[[], Any], device: torch.device) -> float:
    """Most memory in MB that was in use while some work ran: the device's, or this process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        work()
        return int(next(x for x in _lines("/proc/self/status") if x.startswith("VmHWM")).split()[1]) / 1e3
    except OSError:  # not Linux: the peak since the start
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of a large matrix product in the number format of the encoder: the roof."""
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, networks.fast_precision(device)))
    return 2 * size**3 / min(clock(lambda: matrix @ matrix, device) for _ in range(6))


def training_rows(
    name: str,
    encoder: dict[str, Any] | None,
    common: dict[str, Any],
    device: torch.device,
    batch_size: int,
    steps: int,
    rounds: int,
    peak: float,
) -> Iterator[Row]:
    """Published one-way episodes, the bundle beside the literal loop, then the default recipe with 40 ways.

    The published ones are measured in single precision, as published, and in the device's fastest format; the default
    recipe with its own encoder alone.
    """
    default = read(["train"], {})
    settings = {
        "network_def#encoder": encoder or default["network_def#encoder"],
        "pretrained": False if encoder else default["pretrained"],
        **common,
        "val_images": [],
        "batch_size": batch_size,
        "epoch_length": batch_size * steps,
        "train#handlers": [],
        "train#dataset#num_workers": os.cpu_count(),
    }
    shared = {key: default[key] for key in ("crop_to_body", "superpixel")}  # both start from the same maps
    paper = {**shared, **settings}
    recipes = [("published", ["train", "paper"], paper)]
    if networks.fast_precision(device) != "float32" and "precision" not in common:
        recipes.append(("published", ["train", "paper"], {**paper, "precision": networks.fast_precision(device)}))
    if encoder is None:
        recipes.append(("default", ["train"], settings))
    for recipe, files, chosen in recipes:
        parser = read(files, chosen)
        if parser.get_parsed_content("pretrained"):
            parser.get_parsed_content("load_pretrained")
        trainer = parser.get_parsed_content("train#trainer")
        dataset = parser.get_parsed_content("train#dataset")
        trainer.state.max_epochs = 0

        def fast(trainer: Any = trainer) -> None:
            trainer.state.max_epochs += 1
            trainer.run()

        beside = recipe == "published" and trainer.network.precision == "float32"
        literal, difference = literal_side(parser, dataset, device, steps) if beside else (None, 0.0)
        flops = step_flops(trainer, dataset, batch_size) / batch_size
        seconds = in_turns([fast, literal] if literal else [fast], device, rounds)
        rate = batch_size * steps / seconds[0]
        note = f"batch {batch_size}; {flops / 1e9:.1f} GFLOP an episode, "
        note += f"{100 * rate * flops / peak:.0f}% of the matmul roof ({peak / 1e12:.2f} TFLOP/s)"
        if literal:
            note += f"; loss of the first episode differs by {difference:.1e} in float32"
        what = "one-way episodes" if recipe == "published" else f"pairs of {parser.get_parsed_content('num_ways')} ways"
        what += f", {trainer.network.precision}"
        yield Row(f"training, {name}, {what}", rate, steps / seconds[1] if literal else None, "/s", note)
        memory = [peak_memory(side, device) for side in ([fast, literal] if literal else [fast])]
        yield Row(f"peak memory, {name}, {what}", memory[0], memory[1] if literal else None, "MB", "slices included")


def step_flops(trainer: Any, dataset: Any, batch_size: int) -> int:
    """Counted floating point operations of one step, forward and backward."""
    batch = torch_data.default_collate([dataset[index] for index in range(batch_size)])
    image, target, _, support = trainer.prepare_batch(batch, trainer.state.device)
    trainer.network.train()
    with flop_counter.FlopCounterMode(display=False) as counter:
        trainer.loss_function(trainer.network(image, **support), target).backward()
    trainer.optimizer.zero_grad()
    return counter.get_total_flops()


def literal_side(parser: Any, dataset: Any, device: torch.device, steps: int) -> tuple[Callable[[], Any], float]:
    """The literal loop on the same slices from the same weights, and by how much its first loss differs."""
    network = copy.deepcopy(parser.get_parsed_content("network")).to(memory_format=torch.contiguous_format)
    batch = torch_data.default_collate([dataset[0]])  # loads the slices, which the copy of the data set shares
    views = [copy.deepcopy(parser.get_parsed_content(name)) for name in ("query_view", "support_view")]
    plain = copy.copy(dataset)
    plain.episode = transforms.Compose(
        [own.RandPseudoLabeld(min_area_px=dataset.min_area_px), own.RandEpisoded(*views)]
    )
    weight = parser.get_parsed_content("loss").background_weight
    fast = copy.deepcopy(network)
    fast.precision = "float32"
    image, target, _, support = parser.get_parsed_content("train#trainer#prepare_batch")(batch, device)
    with torch.no_grad():
        expected = parser.get_parsed_content("loss")(fast.train()(image, **support), target)
        episode = {key: value.to(device) for key, value in plain[0].items()}
        found = loops.episode_loss(copy.deepcopy(network).train(), episode, weight)
    settings = {key: value for key, value in parser["optimizer"].items() if key not in ("_target_", "params")}
    rate = parser.get_parsed_content("learning_rate")
    optimizer = torch.optim.SGD(network.parameters(), **{**settings, "lr": rate})
    episodes = (plain[index] for index in count())
    work = lambda: loops.train_steps(network, episodes, optimizer, device, weight, steps)  # noqa: E731
    return work, abs(float(expected) - float(found))


def support_and_query(parser: Any, dataset_dir: str, device: torch.device | str) -> tuple[Any, Any]:
    """The first two labelled scans of a data set: one is the support, the other ``(C, H, W, D)`` gets segmented.

    Raises:
        ValueError: for fewer than two.
    """
    entries = data.resolve_support(parser.get_parsed_content("support"), dataset_dir)
    if len(entries) < 2:
        raise ValueError(f"{dataset_dir}: two labelled scans are needed, one as the support and one to segment")
    preprocessing = parser.get_parsed_content("support_preprocessing")
    query = preprocessing({"image": entries[1]["image"]})["image"].to(device)
    return data.load_support(entries[0], preprocessing, None), query


def inference_rows(
    dataset_dir: str, weights: str, device: torch.device, rounds: int, overrides: dict[str, Any] | None = None
) -> Iterator[Row]:
    """One scan by one support scan: all labels at once, beside slice by slice and class by class."""
    settings = {"dataset_dir": str(dataset_dir), "device": str(device), **(overrides or {}), **MATCHING}
    parser = read(["inference"], settings)
    network = networks.load_weights(parser.get_parsed_content("network"), str(ROOT / weights)).eval()
    support, query = support_and_query(parser, dataset_dir, device)
    values, depth = support.values, query.shape[-1]
    inferer = parser.get_parsed_content("inferer")
    inferer.quality.reverse_dice = lambda *_: torch.ones(len(values), device=device)  # the literal side does not ask
    full = read(["inference"], {**settings, **{key: read(["inference"], {})[key] for key in MATCHING}})
    full_inferer = full.get_parsed_content("inferer")
    reference = copy.deepcopy(network).to(memory_format=torch.contiguous_format)

    def run(some: Any, image: torch.Tensor = query) -> torch.Tensor:
        some.set_support([support])  # forgets its features
        scores = some(image[None], network)[0].as_subclass(torch.Tensor)
        return torch.tensor([0, *values], dtype=torch.uint8)[scores.argmax(dim=0).cpu()]

    def literal() -> torch.Tensor:
        return loops.segment_volume(
            reference, query.as_subclass(torch.Tensor), support, values, support_scans.slice_spacing(query)
        )

    same = 100 * float((literal() == run(inferer)).float().mean())
    sides = [lambda: run(inferer), literal, lambda: run(full_inferer)]
    seconds = in_turns(sides, device, max(1, rounds // 2))
    note = f"{depth} slices, {len(values)} labels; same label in {same:.3f}% of the voxels"
    yield Row("inference, one scan, what both sides do", seconds[0], seconds[1], "s", note)
    note = f"{', '.join(MATCHING)}, and how far to trust it"
    yield Row("inference, one scan, the whole default", seconds[2], None, "s", note)
    full_inferer.set_support([support])
    known = in_turns([lambda: full_inferer(query[None], network)], device, max(1, rounds // 2))[0]
    yield Row("inference, one scan, the whole default, the support encoded before", known, None, "s")
    long = torch.cat([query.as_subclass(torch.Tensor)] * 4, dim=-1)
    memory = [peak_memory(partial(run, inferer, image), device) for image in (query, long)]
    yield Row("peak memory, inference", memory[0], None, "MB", f"{memory[1]:.0f} MB for four times as many slices")


def superpixel_rows(common: dict[str, Any]) -> Iterator[Row]:
    """Superpixel maps of one scan, on all cores beside one."""
    parser = read(["train"], common)
    steps = parser.get_parsed_content("train#preprocessing").transforms[:-1]
    entry = parser.get_parsed_content("images")[0]
    scan = transforms.Compose(steps)({"image": entry["image"]})
    method, parameters = (parser.get_parsed_content(f"superpixel#{key}") for key in ("method", "parameters"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: list[Any] = []

    def work(workers: int) -> Callable[[], None]:
        made = own.Superpixels(method, parameters, num_workers=workers)
        return lambda: found.append(made(scan["image"], scan["body"]))

    seconds = in_turns([work(cores), work(1)], torch.device("cpu"), 1)
    total = int(torch.as_tensor(found[0]).flatten(1, 2).amax(dim=1).long().sum())
    note = f"{total} superpixels of {found[0].shape[0]} levels in {found[0].shape[-1]} slices, {cores} core(s)"
    yield Row("superpixels", total / seconds[0], total / seconds[1], "/s", note)


def start_rows(common: dict[str, Any], output_dir: str) -> Iterator[Row]:
    """From the command to the end of the first step, with and without the superpixels of an earlier run."""
    first = not Path(common["cache_dir"]).is_dir()
    for what in ("first start", "second start") if first else ("second start",):
        used = _processor_seconds()
        seconds = clock(lambda: train_command(common, Path(output_dir) / "start", 1), torch.device("cpu"))
        note = f"from the command on; {_processor_seconds() - used:.1f} s of processor time"
        yield Row(f"{what}, to the end of the first step", seconds, None, "s", note)


def scaling_rows(
    common: dict[str, Any], output_dir: str, processes: Sequence[int], batch_size: int, launched: bool = False
) -> Iterator[Row]:
    """Episodes a second of the default recipe under torchrun, with the same batches in all.

    One process is trained without torchrun, unless it is to be ``launched`` by it, too.
    """
    for number in processes:
        folder = Path(output_dir) / f"processes{number}"
        batch = batch_size * max(processes)
        seconds, used = [], [_processor_seconds()]
        for steps in (2, 10):  # what both have in common cancels
            seconds.append(train_command({**common, "batch_size": batch}, folder, steps, number, launched))
            used.append(_processor_seconds())
        rate, cost = 8 * batch / (seconds[1] - seconds[0]), (used[2] - 2 * used[1] + used[0]) / (8 * batch)
        note = f"batch {batch} in all; {1000 * cost:.0f} ms of processor time an episode"
        yield Row(f"training, {number} process(es)", rate, None, "/s", note)


def train_command(
    common: dict[str, Any], folder: Path, steps: int, processes: int = 1, launched: bool = False
) -> float:
    """Train some steps by the command that users type, without validation; seconds of its run."""
    batch = common.get("batch_size", 4)
    settings = {**common, "output_dir": str(folder), "ckpt_dir": str(folder), "max_epochs": 1, "val_interval": 2}
    settings |= {"epoch_length": steps * batch, "picture_interval": 0, "resume": False}
    launched = launched or processes > 1
    files = ["configs/train.json", "configs/multi_gpu_train.json"][: 1 + launched]
    if launched:
        settings.pop("device")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, "-W", "ignore", *(launcher if launched else []), "-m", "monai.bundle", "run"]
    command += ["--config_file", str(files), *options.as_arguments(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RuntimeError(
            next((line for line in lines if line.startswith("error: ")), lines[-1])
        )  # torchrun says more
    return float(json.loads((folder / "run.json").read_text())["seconds"])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor_seconds() -> float:
    """Processor time of all child processes so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
