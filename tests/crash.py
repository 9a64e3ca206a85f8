"""Kill runs at random moments and compare what comes out with a run that nobody killed.

Usage: python -m tests.crash [--kills 20] [--seed 0] [--jobs training,inference,evaluation,preparation,benchmark]

Each job runs in a process of its own on generated scans with a tiny network. It is killed with SIGKILL after a random
time and started again with the same arguments, until it gets to its end; then its files must have the checksums of
the undisturbed run, and what was finished before a kill must not have been made again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from monai.bundle import run

from bundle.atomic import PARTIAL
from bundle.data import make_datalist
from bundle.data.phantom import write_phantom
from bundle.data.prepare import make_recipe, prepare_dataset
from scripts.benchmark import accuracy

from .conftest import ROOT, TINY_NETWORK, make_tiny

OVERRIDES = {"bundle_root": str(ROOT), "device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}
TRAINING = {
    "pretrained": False,
    "epoch_length": 6,
    "batch_size": 2,
    "val_length": 2,
    "superpixel#parameters": [{"scale": 1, "sigma": 1, "min_size": 40}],
    "superpixel#min_area_px": 16,
}
# what tells the time or the machine, and what a resumed run writes on top of what it had written
VARYING = ("run.json", "prepare_summary.json", "events.out.", ".log")


def training(folder: Path, data: Path) -> None:
    """Train six epochs."""
    folders = {"output_dir": str(folder / "out"), "ckpt_dir": str(folder / "models"), "dataset_dir": str(data)}
    config = str(ROOT / "configs/train.json")
    run(config_file=config, logging_file=False, **OVERRIDES, **TRAINING, **folders, max_epochs=6, learning_rate=0.05)


def inference(folder: Path, data: Path) -> None:
    """Segment seven scans by an eighth."""
    _segment(["inference"], folder, data, support=make_datalist(data)[:1])


def evaluation(folder: Path, data: Path) -> None:
    """Evaluate one fold of four scans."""
    _segment(["inference", "evaluate"], folder, data, protocol="volume", folds=2, fold=0)


def _segment(names: Sequence[str], folder: Path, data: Path, **overrides) -> None:
    files = [str(ROOT / "configs" / f"{name}.json") for name in names]
    settings = {"output_dir": str(folder), "dataset_dir": str(data), "ckpt_path": str(data / "weights.pt")}
    run(config_file=files, logging_file=False, **OVERRIDES, **settings, **overrides)


def preparation(folder: Path, data: Path) -> None:
    """Resample eight scans and their labels."""
    recipe = make_recipe("folder", spacing_mm=(3.0, 3.0, 4.0))
    prepare_dataset("folder", data, folder, recipe, num_workers=2, progress=False)


def benchmark(folder: Path, data: Path) -> None:
    """Train and evaluate a fold, each in a process of its own."""
    small = {key: value for key, value in OVERRIDES.items() if key != "bundle_root"}
    accuracy(str(data), str(folder), folds=(0,), num_folds=2, overrides={**small, **TRAINING, "max_epochs": 2})


JOBS: dict[str, Callable[[Path, Path], None]] = {
    job.__name__: job for job in (training, inference, evaluation, preparation, benchmark)
}


def start(job: str, folder: Path, data: Path) -> BaseProcess:
    """Run a job in a process group of its own, forked from a process that has done nothing but import this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__ if __name__ != "__main__" else "tests.crash"])
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_work, args=(job, folder, data))
    process.start()
    return process


def _work(job: str, folder: Path, data: Path) -> None:
    os.setsid()
    log = os.open(folder.parent / "job.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    JOBS[job](folder, data)


def wait(process: BaseProcess, seconds: float = 600.0) -> bool:
    """Whether a process ends by itself, well, within a time; it is killed otherwise."""
    process.join(seconds)
    if process.exitcode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()  # it has not made its group yet
        process.join()
        return False
    if process.exitcode:
        raise RuntimeError(f"the job failed with status {process.exitcode}; see job.log")
    return True


def results(folder: Path) -> dict[str, str]:
    """Checksum of each result, whatever the folder is called."""
    files = [path for path in folder.rglob("*") if path.is_file() and PARTIAL not in path.name]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes().replace(bytes(folder), b"")).hexdigest()
        for path in sorted(files)
        if not any(word in path.name for word in VARYING) and not path.name.startswith(".")
    }


def progress(folder: Path) -> dict[str, int]:
    """What is finished: epochs of each training, and the times of change of finished cases' results."""
    done = {}
    for path in folder.rglob("training_state.pt"):
        done[f"epochs of {path.parent.relative_to(folder)}"] = torch.load(path, weights_only=True)["epoch"]
    for record in folder.rglob(".finished.json"):
        for name in json.loads(record.read_text())["files"]:
            done[str((record.parent / name).relative_to(folder))] = (record.parent / name).stat().st_mtime_ns
    for record in folder.glob(".prepare/*.json"):
        for path in folder.glob(f"*Tr/{record.stem}.nii.gz"):
            done[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return done


def check_whole(folder: Path) -> None:
    """Raise unless every file that stands under its name can be read to its end."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith(PARTIAL):
            continue
        if path.name.endswith(".nii.gz"):
            np.asarray(nib.load(path).dataobj)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                for name in arrays.files:
                    arrays[name].copy()


def lost(before: dict[str, int], after: dict[str, int], final: bool) -> list[str]:
    """What was finished and is not any more, or was made again."""
    missing = []
    for name, value in before.items():
        if name.startswith("epochs"):  # a complete training removes its state
            missing += [name] if not final and name in after and after[name] < value else []
        elif after.get(name) != value:
            missing.append(name)
    return missing


def kill_job(name: str, kills: int, seed: int, root: Path, data: Path) -> dict[str, float]:
    """Kill one job again and again; raise ``AssertionError`` at the first difference."""
    draw = random.Random(f"{name} {seed}")
    whole = root / name / "whole" / "out"
    began = time.monotonic()
    wait(start(name, whole, data))
    seconds = time.monotonic() - began
    expected = results(whole)
    print(f"{name}: undisturbed in {seconds:.1f} s, {len(expected)} files", flush=True)
    count, completed, attempt, done = 0, 0, 0, {}
    folder = root / name / "run0" / "out"
    while count < kills or attempt:
        moment = draw.uniform(0, 1.1 * seconds) if count < kills else 600
        ended = wait(start(name, folder, data), moment)
        check_whole(folder)
        after = progress(folder)
        again = lost(done, after, ended)
        assert not again, f"{name}: {again} lost or made again after kill {count}"
        if ended:
            found = results(folder)
            differ = sorted(set(expected.items()) ^ set(found.items()))
            assert not differ, f"{name}: other results after {attempt} kills: {differ}"
            print(f"{name}: complete after {attempt} kills, all {len(found)} files have equal checksums", flush=True)
            completed, attempt, done = completed + 1, 0, {}
            shutil.rmtree(folder.parent)
            folder = root / name / f"run{completed}" / "out"
        else:
            count, attempt, done = count + 1, attempt + 1, after
            epochs = [value for key, value in after.items() if key.startswith("epochs")]
            state = f"epoch {max(epochs)}" if epochs else f"{len(after)} results"
            print(f"{name}: kill {count} after {moment:.2f} s, {state} finished", flush=True)
    return {"kills": count, "completed": completed, "files": len(expected), "seconds": seconds}


def crash(kills: int = 20, seed: int = 0, jobs: Sequence[str] | str = tuple(JOBS)) -> None:
    """Kill each job and print what happened.

    Args:
        kills: kills of each job.
        seed: seed of their moments.
        jobs: which jobs.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = write_phantom(root / "data", 8, shape=(48, 48, 12), spacing_mm=(7.0, 7.0, 14.0))
        torch.save(make_tiny().state_dict(), data / "weights.pt")
        table = {}
        for name in [jobs] if isinstance(jobs, str) else jobs:
            try:
                table[name] = kill_job(name, kills, seed, root, data)
            except BaseException:
                log = max((root / name).rglob("job.log"), key=lambda path: path.stat().st_mtime)
                print(log.read_text()[-3000:], file=sys.stderr)
                raise
    print("| job | kills | completed runs | files compared in each |\n|---|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['kills']} | {row['completed']} | {row['files']} |")


if __name__ == "__main__":
    fire.Fire(crash, name="tests.crash")
