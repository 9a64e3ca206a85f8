from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from bundle.handlers import WeightsSaver


def epochs_saved(tmp_path, scores, fail_at=None, **options):
    """What the file holds after each epoch of an engine whose step sets the weight to the epoch's number."""
    path, network, held = tmp_path / "models" / "model.pt", torch.nn.Linear(1, 1, bias=False), []

    def step(engine, _):
        epoch = engine.state.epoch
        if epoch == fail_at:
            raise ValueError("bad scan")
        with torch.no_grad():
            network.weight.fill_(epoch)
        if scores[epoch - 1] > max(scores[: epoch - 1], default=-1):
            engine.state.best_metric_epoch = epoch

    engine = Engine(step)
    engine.state.best_metric_epoch = -1
    WeightsSaver(network, path, **options).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def look(_):
        held.append(int(torch.load(path, weights_only=True)["weight"]) if path.exists() else None)

    try:
        engine.run([0], max_epochs=len(scores))
    finally:
        held.append(int(torch.load(path, weights_only=True)["weight"]) if path.exists() else None)
    return held


def test_the_best_epoch_is_kept(tmp_path):
    assert epochs_saved(tmp_path, [0.5, 0.4, 0.9, 0.1], best=True) == [1, 1, 3, 3, 3]


def test_the_last_epoch_is_saved_when_the_training_completes(tmp_path):
    assert epochs_saved(tmp_path, [0.5, 0.4, 0.9]) == [None, None, None, 3]


def test_a_training_that_fails_leaves_no_final_weights(tmp_path):
    with pytest.raises(ValueError, match="bad scan"):
        epochs_saved(tmp_path, [0.5, 0.4, 0.9], fail_at=2)
    assert not list(tmp_path.rglob("*.pt"))
