"""What a run leaves in TensorBoard and in MLflow: losses, Dice and pictures."""

from __future__ import annotations

import os
import sqlite3

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..conftest import TINY_NETWORK
from .test_processes import run

SMALL = {
    "max_epochs": 2,
    "epoch_length": 4,
    "batch_size": 2,
    "val_length": 2,
    "log_interval": 1,
    "pretrained": False,
    "superpixel#parameters": [{"scale": 1, "sigma": 1, "min_size": 40}],
    "superpixel#min_area_px": 16,
}


def logged(output_dir) -> tuple[dict[str, int], list[str]]:
    """Number of values of each metric in an MLflow store, and the names of the pictures."""
    store = sqlite3.connect(output_dir / "mlruns.db")
    counts = dict(store.execute("select key, count(*) from metrics group by key"))
    (experiment,) = store.execute("select name from experiments where name != 'Default'").fetchall()
    assert experiment == ("fewshot_alpnet_segmentation",)
    return counts, sorted(path.name for path in output_dir.glob("mlruns/**/pictures/*"))


def test_training_leaves_losses_dice_and_pictures_in_tensorboard(run_config):
    out = run_config("train", **SMALL)
    events = EventAccumulator(str(out)).Reload()
    assert len(events.Scalars("train_loss")) == 4
    assert len(events.Scalars("val_mean_dice")) == 2
    assert [image.step for image in events.Images("train_episodes")] == [1, 2]
    assert sorted(p.name for p in out.glob("episodes/*")) == ["train_episodes_0001.png", "train_episodes_0002.png"]


@pytest.mark.slow
def test_runs_leave_losses_dice_and_pictures_in_mlflow(python, tmp_path, phantom_dir, tiny_weights):
    common = {"dataset_dir": phantom_dir, "network_def": TINY_NETWORK, "python": python}
    common |= {"tracking": "configs/mlflow.json"}
    old = tmp_path / "train" / "episodes" / "train_episodes_0009.png"  # of an earlier run
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    run(1, "train", output_dir=tmp_path / "train", ckpt_dir=tmp_path, **common, **SMALL)
    counts, pictures = logged(tmp_path / "train")
    assert counts["train_loss"] == 4
    assert counts["val_mean_dice"] == 2
    assert pictures == ["train_episodes_0001.png", "train_episodes_0002.png"]
    common |= {"ckpt_path": tiny_weights, "folds": 2}
    run(1, "inference", "evaluate", output_dir=tmp_path / "evaluate", **common)
    counts, pictures = logged(tmp_path / "evaluate")
    assert counts["scan_dice"] == 1
    assert pictures == ["phantom_01_overlay.png", "phantom_02_overlay.png"]
