"""Measure accuracy, cross-validated or on a data set that was left out, whole volumes, and speed; write tables.

Usage: python -m scripts.benchmark {accuracy,steps,completion,volumes,speed} --dataset_dir DIR --output_dir RUNS …
       python -m scripts.benchmark transfer --dataset_dirs "[DIR, DIR]" --output_dir RUNS [options]
       python -m scripts.benchmark {expected_dice,sensitivity} …
       python -m scripts.benchmark all --data DIR --output_dir RUNS [--quick]
       python -m scripts.benchmark tables
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bundle.atomic import replacing, write_text
from bundle.errors import explain
from bundle.ids import suggest

from .command import command
from .completion import completion
from .evidence import everything
from .expected_dice import expected_dice
from .on_demand import OnDemand
from .sensitivity import sensitivity
from .speed import speed
from .steps import Step, digest, make_steps
from .tables import tables
from .volumes import volumes

ROOT = Path(__file__).resolve().parent.parent
data = OnDemand("bundle.data")
options = OnDemand("bundle.options")
monai_bundle = OnDemand("monai.bundle")
EVALUATE = "configs/evaluate.json"


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Args:
        fold: fold of the data set.
        seed: seed of the training.
        group: labels that are evaluated; under setting 2 the training never shows them.
    """

    fold: int
    seed: int
    group: tuple[int | str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"fold{self.fold}_seed{self.seed}" + ("_labels" + "-".join(map(str, self.group)) if self.group else "")


def accuracy(
    dataset_dir: str,
    output_dir: str,
    protocol: str = "official",
    setting: int = 1,
    folds: Sequence[int] = (0, 1, 2, 3, 4),
    seeds: Sequence[int] = (0,),
    groups: Sequence[Sequence[int | str]] = (),
    num_folds: int = 5,
    weights: str | None = None,
    config: Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
    jobs: int = 1,
) -> str:
    """Train and evaluate every fold and seed, going on where an earlier call stopped; print and write the table.

    Each fold's network sees the images of the fold's training scans alone, and no label.

    Args:
        dataset_dir: folder of the data set, every image labelled.
        output_dir: folder of the runs; a run whose summary.json is there is not repeated.
        protocol: official, adnet_ep1, adnet_ep2 or volume.
        setting: 1, or 2: slices that show any label of the evaluated group are left out of the training.
        folds: folds to run.
        seeds: seeds of the trainings.
        groups: groups of labels, values or names, that are tested by one model each under setting 2, [[2,3],[1,4]] for
            CHAOS; by default those of an overlay that has them, such as configs/sabs.json.
        num_folds: folds of the data set.
        weights: evaluate these weights and train nothing. They must never have seen the queries' scans.
        config: overlays for training and inference, such as configs/abdomen_ct.json.
        overrides: further ids of the configs, {"max_epochs": 20}.
        jobs: runs side by side, each with its share of the processor's cores.
    """
    if setting == 2 and not groups:
        groups = _contents(["configs/inference.json", EVALUATE, *config]).get("groups", ())
    if setting not in (1, 2) or (setting == 2 and not groups):
        raise ValueError("setting must be 1, or 2 with groups of labels, --groups '[[2,3],[1,4]]'")
    todo = [
        Run(fold, seed, tuple(group) if setting == 2 else ())
        for seed in seeds
        for fold in folds
        for group in (groups if setting == 2 else [()])
    ]
    root = Path(output_dir) / f"setting{setting}"
    threads = max(1, (os.cpu_count() or 1) // jobs)
    common = {"dataset_dir": str(dataset_dir), **(overrides or {})}
    train_files = ["configs/train.json", "configs/fold.json", *config] if weights is None else []
    test_files = ["configs/inference.json", EVALUATE, *config]

    def train_settings(run: Run) -> dict[str, Any]:
        shared = {**common, "fold": run.fold, "folds": num_folds, "protocol": protocol, "seed": run.seed}
        return {**shared, "cache_dir": str(Path(output_dir) / "cache"), "exclude_labels": list(run.group)}

    def test_settings(run: Run) -> dict[str, Any]:
        shared = {**common, "fold": run.fold, "folds": num_folds, "protocol": protocol, "setting": setting}
        path = str(weights or root / run.name / "models" / "model_final.pt")
        labels = {"labels": list(run.group)} if run.group else {}
        return {**shared, "output_dir": str(root / run.name / protocol), "ckpt_path": path, **labels}

    _check_overrides([train_files, test_files], overrides)
    for run in todo:  # before the first training, so that no evaluation fails after hours
        if train_files:
            _check_run(train_files, train_settings(run))
        _check_run(test_files, test_settings(run), build=("evaluator",))

    def work(run: Run) -> None:
        folder = root / run.name
        if train_files:
            _train(train_files, train_settings(run), folder, threads)
        if not (folder / protocol / "summary.json").is_file():
            _bundle_run(test_files, test_settings(run), folder / f"{protocol}.log", threads)
        print(run.name, json.loads((folder / protocol / "summary.json").read_text())["per_label"], flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, todo))
    table = _table(root, todo, protocol, setting)
    write_text(root / f"{protocol}.md", table + "\n")
    return table


def transfer(
    dataset_dirs: Sequence[str],
    output_dir: str,
    tested: Sequence[str] | None = None,
    protocol: str = "volume",
    folds: Sequence[int] = (0, 1, 2, 3, 4),
    seed: int = 0,
    num_folds: int = 5,
    config: Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
    jobs: int = 1,
) -> str:
    """Leave each data set out: train on the images of all others, evaluate on it; print and write the table.

    Args:
        dataset_dirs: folders of the data sets.
        output_dir: folder of the runs; what is finished there is not repeated.
        tested: names of the folders that are left out, one after another; by default all.
        protocol: official, adnet_ep1, adnet_ep2 or volume.
        folds: folds to evaluate.
        seed: seed of the trainings.
        num_folds: folds of each data set.
        config: overlays for training and inference.
        overrides: further ids of the configs, {"max_epochs": 7}.
        jobs: evaluations side by side.
    """
    images = {Path(folder).name: data.list_images(Path(folder) / "imagesTr") for folder in dataset_dirs}
    unknown = sorted(set(tested or ()) - set(images))
    if len(images) < 2 or len(images) < len(dataset_dirs) or unknown:
        raise ValueError(f"dataset_dirs must be two folders of different names at least, tested among them: {unknown}")
    train_files = ["configs/train.json", *config]
    test_files = ["configs/inference.json", EVALUATE, *config]
    _check_overrides([train_files, test_files], overrides)
    for tested_dir in (folder for folder in dataset_dirs if tested is None or Path(folder).name in tested):
        split = {"dataset_dir": str(tested_dir), "protocol": protocol, "folds": num_folds, **(overrides or {})}
        for fold in folds:
            _check_run(test_files, {**split, "fold": fold}, build=("evaluator",))
    tables = []
    for folder in map(Path, dataset_dirs):
        if tested is not None and folder.name not in tested:
            continue
        run = Path(output_dir) / f"without_{folder.name}"
        others = [{"image": path} for name, paths in images.items() if name != folder.name for path in paths]
        training = {"seed": seed, **(overrides or {}), "images": others, "cache_dir": str(Path(output_dir) / "cache")}
        training["dataset_dir"] = os.path.commonpath([Path(folder).resolve() for folder in dataset_dirs])
        weights = _train(train_files, training, run, os.cpu_count() or 1)
        evaluation: dict[str, Any] = {"folds": folds, "seeds": [seed], "num_folds": num_folds, "weights": str(weights)}
        evaluation["overrides"] = _known_to(test_files, overrides or {})
        table = accuracy(str(folder), str(run), protocol, config=config, jobs=jobs, **evaluation)
        tables.append(f"Trained without {folder.name}. {table}")
    write_text(Path(output_dir) / f"transfer_{protocol}.md", "\n\n".join(tables) + "\n")
    return "\n\n".join(tables)


def steps(
    dataset_dir: str,
    output_dir: str,
    protocols: Sequence[str] = ("official", "volume"),
    folds: Sequence[int] = (2, 3),
    seeds: Sequence[int] = (0, 1),
    num_folds: int = 5,
    num_steps: int = 500,
    batch_size: int = 4,
    rows: Sequence[int] | None = None,
    jobs: int = 1,
) -> str:
    """Go from the published recipe to the default one, one ingredient at a time; print and write the table.

    The encoder, its first weights, the number of steps and the episodes a step are the same in every row. Rows that
    differ in the inference alone share a training. Goes on where an earlier call stopped; the table is written after
    each evaluation, so that an unfinished run leaves what it has.

    Args:
        dataset_dir: folder of the data set, every image labelled.
        output_dir: folder of the runs.
        protocols: protocols to evaluate under.
        folds: folds to run.
        seeds: seeds of the trainings.
        num_folds: folds of the data set.
        num_steps: steps of a training.
        batch_size: episodes a step.
        rows: numbers of the rows to measure, counted from 0, in this order; by default all. What earlier calls
            measured is in the table, too.
        jobs: folds and seeds side by side, each with its share of the processor's cores.
    """
    steps = make_steps(json.loads((ROOT / "configs/paper.json").read_text()))
    chosen = range(len(steps)) if rows is None else rows
    if not set(chosen) <= set(range(len(steps))):
        raise ValueError(f"rows must be among 0..{len(steps) - 1}, got {list(chosen)}")
    root, threads = Path(output_dir), max(1, (os.cpu_count() or 1) // jobs)
    train_files, test_files = ["configs/train.json", "configs/fold.json"], ["configs/inference.json", EVALUATE]
    schedule = {"max_epochs": 1, "epoch_length": num_steps * batch_size, "batch_size": batch_size, "val_interval": 2}
    known = _ids(train_files)
    trainings = [{**step.training(known), **schedule} if step.trained else None for step in steps]
    runs = [Run(fold, seed) for seed in seeds for fold in folds]

    def folder(run: Run, number: int) -> Path:
        training = trainings[number]
        return root / (f"untrained/fold{run.fold}" if training is None else f"{run.name}/training_{digest(training)}")

    def place(run: Run, number: int, protocol: str) -> Path:
        return folder(run, number) / f"{protocol}_{digest(steps[number].ids)}"

    def wanted(run: Run, number: int) -> bool:
        return steps[number].trained or run.seed == seeds[0]  # what is not trained has no seed

    def places() -> dict[tuple[int, str, Run], Path]:
        keys = product(range(len(steps)), protocols, runs)
        return {(n, name, run): place(run, n, name) for n, name, run in keys if wanted(run, n)}

    def work(run: Run) -> None:
        split = {"dataset_dir": str(dataset_dir), "fold": run.fold, "folds": num_folds}
        for number in (number for number in chosen if wanted(run, number)):
            weights, training = ROOT / "models/pretrained/efficientnet_lite0_imagenet.pt", trainings[number]
            if training is not None:
                settings = {**split, "seed": run.seed, "cache_dir": str(root / "cache"), "protocol": "official"}
                files = [*train_files, _overlay(folder(run, number) / "ids.json", training)]
                weights = _train(files, settings, folder(run, number), threads)
            for protocol in protocols:
                output = place(run, number, protocol)
                settings = {**split, "protocol": protocol, "output_dir": str(output), "ckpt_path": str(weights)}
                settings |= {"overlays": False, "save_confidence": False, "save_similarity": False}
                if not (output / "summary.json").is_file():
                    files = [*test_files, _overlay(output.with_suffix(".json"), steps[number].ids)]
                    _bundle_run(files, settings, output.with_suffix(".log"), threads)
                _steps_table(root, steps, places())
                print(run.name, protocol, steps[number].name, _dice(output), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, runs))
    return (root / "steps.md").read_text()


def _overlay(path: Path, ids: Mapping[str, Any]) -> str:
    """Write ids as a config that is laid over others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(ids, indent=4) + "\n")
    return str(path)


def _dice(folder: Path) -> dict[str, float]:
    """Dice of each label that an evaluation found, by its name."""
    return dict(json.loads((folder / "summary.json").read_text())["per_label"])


def _steps_table(root: Path, steps: Sequence[Step], places: Mapping[tuple[int, str, Run], Path]) -> None:
    """Write what was measured so far, a line an evaluation, and a table of the means over folds and seeds.

    Args:
        root: where to.
        steps: the rows.
        places: folder of the evaluation of each row, protocol and run.
    """
    found = {key: _dice(folder) for key, folder in places.items() if (folder / "summary.json").is_file()}
    protocols = list(dict.fromkeys(protocol for _, protocol, _ in places))
    with replacing(root / "steps.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "adds", "protocol", "fold", "seed", *next(iter(found.values())), "mean"])
        for (number, protocol, run), scores in found.items():
            values = [f"{value:.2f}" for value in (*scores.values(), statistics.fmean(scores.values()))]
            writer.writerow([number, steps[number].name, protocol, run.fold, run.seed, *values])
    lines = ["| | each row adds | " + " | ".join(f"`{protocol}` | runs" for protocol in protocols) + " |"]
    lines.append("|---" * (2 + 2 * len(protocols)) + "|")
    for number, step in enumerate(steps):
        cells = []
        for protocol in protocols:
            means = [statistics.fmean(dice.values()) for key, dice in found.items() if key[:2] == (number, protocol)]
            sd = f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else ""
            cells += [f"{statistics.fmean(means):.2f}{sd}" if means else "not measured", str(len(means))]
        lines.append(f"| {number} | {step.name} | {' | '.join(cells)} |")
    write_text(root / "steps.md", "\n".join(lines) + "\n")


def _train(configs: Sequence[str], overrides: dict[str, Any], folder: Path, threads: int) -> Path:
    """Train in a folder, or take the weights that an earlier call finished there."""
    trained = folder / "models" / "model_final.pt"
    # the state goes as the very last step of a training, after its final weights were written
    if not trained.is_file() or (folder / "training_state.pt").is_file():
        places = {"output_dir": str(folder), "ckpt_dir": str(trained.parent)}
        _bundle_run(configs, {**overrides, **places}, folder / "train.log", threads)
    return trained


def _check_overrides(families: Sequence[Sequence[str]], overrides: Mapping[str, Any] | None) -> None:
    """Raise for an id that neither training nor evaluation has; each takes those that it knows."""
    known = [_ids(files) for files in families if files]
    for key in overrides or {}:
        if not any(key.split("#")[0] in ids for ids in known):
            both = sorted(set().union(*known))
            raise ValueError(f"overrides: {key}: no config has this id{suggest(key, both)}")


def _check_run(files: Sequence[str], settings: Mapping[str, Any], build: Sequence[str] = ()) -> None:
    """Raise unless configs take these settings and the parts of these names can be built."""
    known = {"bundle_root": str(ROOT), **_known_to(files, settings)}
    parser = options.read_config(_paths(files), known)
    for name in build:
        try:
            parser.get_parsed_content(name)
        except Exception as error:  # MONAI wraps what a part raises
            raise ValueError(f"{', '.join(map(str, files))}: {explain(error)}") from None


def _paths(files: Sequence[str]) -> list[Path]:
    """Configs as named, or those of the bundle."""
    return [Path(file).resolve() if Path(file).is_file() else ROOT / file for file in files]


def _contents(files: Sequence[str]) -> dict[str, Any]:
    """Configs laid over each other."""
    options.check_options(_paths(files))
    return dict(monai_bundle.ConfigParser.load_config_files([str(path) for path in _paths(files)]))


def _ids(files: Sequence[str]) -> set[str]:
    """Top-level ids of configs laid over each other."""
    return set(_contents(files))


def _known_to(files: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings whose ids the configs have."""
    known = _ids(files)
    return {key: value for key, value in settings.items() if key.split("#")[0] in known}


def _bundle_run(files: Sequence[str], settings: Mapping[str, Any], log: Path, threads: int) -> None:
    """Run a bundle config in a process of its own; its last line is the error, if there is one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += [
        "--config_file",
        str([str(path) for path in _paths(files)]),
        *options.as_arguments(_known_to(files, settings)),
    ]
    environment = {"THP_MEM_ALLOC_ENABLE": "1", **os.environ, "OMP_NUM_THREADS": str(threads)}  # large pages
    with open(log, "w") as file:
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        raise RuntimeError(f"{log}: {log.read_text().strip().splitlines()[-1]}")


def _table(root: Path, runs: Sequence[Run], protocol: str, setting: int) -> str:
    """Markdown table: a row a fold and seed, then mean and standard deviation over them."""
    rows: dict[tuple[int, int], dict[str, float | None]] = {}  # none where no query shows a label
    for run in runs:
        summary = json.loads((root / run.name / protocol / "summary.json").read_text())
        rows.setdefault((run.fold, run.seed), {}).update(summary["per_label"])
    names = [*next(iter(rows.values())), "mean"]
    for scores in rows.values():
        scores["mean"] = statistics.fmean(known) if (known := _known(scores.values())) else None
    shown = {key: ["" if scores[n] is None else f"{scores[n]:.2f}" for n in names] for key, scores in rows.items()}
    with replacing(root / f"{protocol}.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "seed", *names])
        writer.writerows([*key, *cells] for key, cells in shown.items())
    lines = [
        f"Protocol `{protocol}`, setting {setting}, Dice in percent.",
        "",
        f"| fold | seed | {' | '.join(names)} |",
    ]
    lines.append("|---" * (len(names) + 2) + "|")
    lines += [f"| {fold} | {seed} | {' | '.join(cells)} |" for (fold, seed), cells in sorted(shown.items())]
    spread = []
    for name in names:
        values = _known(scores[name] for scores in rows.values())
        sd = statistics.stdev(values) if len(values) > 1 else 0
        spread.append(f"{statistics.fmean(values):.2f} ± {sd:.2f}" if values else "")
    lines.append(f"| **mean ± sd** | | {' | '.join(f'**{cell}**' for cell in spread)} |")
    return "\n".join(lines)


def _known(scores: Iterable[float | None]) -> list[float]:
    """Those that are known."""
    return [score for score in scores if score is not None]


def main() -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    commands = {"accuracy": accuracy, "transfer": transfer, "steps": steps, "volumes": volumes, "speed": speed}
    commands |= {"completion": completion, "expected_dice": expected_dice, "sensitivity": sensitivity}
    commands |= {"all": everything, "tables": tables}
    command(commands, "scripts.benchmark")


if __name__ == "__main__":
    main()
