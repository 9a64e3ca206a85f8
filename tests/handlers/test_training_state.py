from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from bundle.errors import root_cause
from bundle.handlers import TrainingState


class Interrupted(RuntimeError):
    """Stands for a kill."""


def train(run_config, tmp_path, name, epochs, stop_after=None, monkeypatch=None):
    """Weights after training, interrupted in the epoch that follows ``stop_after``."""
    settings = {
        "max_epochs": epochs,
        "epoch_length": 6,
        "ckpt_dir": str(tmp_path / name / "models"),
        "output_dir": str(tmp_path / name / "out"),
        "cache_dir": str(tmp_path / "cache"),
        "learning_rate": 0.05,
    }
    if stop_after is None:
        run_config("train", **settings)
        return torch.load(tmp_path / name / "models" / "model_final.pt", weights_only=True)
    restore = TrainingState.attach

    def attach(self, engine):
        restore(self, engine)

        @engine.on(Events.ITERATION_COMPLETED)
        def stop(engine):
            if engine.state.iteration == stop_after * 3 + 2:  # in the middle of an epoch of three steps
                raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "attach", attach)
        with pytest.raises(RuntimeError) as caught:
            run_config("train", **settings)
        assert isinstance(root_cause(caught.value), Interrupted)
    assert (tmp_path / name / "out" / "training_state.pt").is_file()
    return None


@pytest.mark.filterwarnings("ignore")
def test_interrupted_and_resumed_training_equals_an_uninterrupted_one(run_config, tmp_path, monkeypatch):
    whole = train(run_config, tmp_path, "whole", 4)
    train(run_config, tmp_path, "parts", 4, stop_after=1, monkeypatch=monkeypatch)
    train(run_config, tmp_path, "parts", 4, stop_after=3, monkeypatch=monkeypatch)
    resumed = train(run_config, tmp_path, "parts", 4)
    assert set(whole) == set(resumed)
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    best = [torch.load(tmp_path / n / "models" / "model.pt", weights_only=True) for n in ("whole", "parts")]
    assert all(torch.equal(value, best[1][key]) for key, value in best[0].items())
    assert not (tmp_path / "parts" / "out" / "training_state.pt").exists()


def engine_with(path, objects, evaluator=None, epochs=3, resume=True, fail_at=None, add=lambda: 1, rank=0):
    """An engine whose steps add to a parameter."""

    def step(engine, _):
        if engine.state.iteration == fail_at:
            raise Interrupted
        with torch.no_grad():
            objects["network"].weight += add()

    engine = Engine(step)
    engine.state.device, engine.state.rank = torch.device("cpu"), rank
    state = engine.state
    TrainingState(path, objects, evaluator, resume).attach(engine)

    @engine.on(Events.STARTED)
    def keep(engine):
        engine.state.device, engine.state.rank = state.device, rank

    return engine, epochs


def start(made):
    engine, epochs = made
    engine.run([0, 1], max_epochs=epochs)
    return engine


def objects():
    network = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(network.weight)
    return {"network": network}


def test_resume_false_starts_anew(tmp_path):
    path = tmp_path / "out" / "state.pt"
    with pytest.raises(Interrupted):
        start(engine_with(path, objects(), fail_at=4))
    assert path.is_file()
    fresh = objects()
    with pytest.raises(Interrupted):
        start(engine_with(path, fresh, resume=False, fail_at=6))
    assert fresh["network"].weight.item() == 5
    again = objects()
    start(engine_with(path, again))
    assert again["network"].weight.item() == 6
    assert not path.exists()


def test_best_metric_of_the_evaluator_comes_back(tmp_path):
    evaluator = Engine(lambda *_: None)
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = 0.75, 2
    with pytest.raises(Interrupted):
        start(engine_with(tmp_path / "s.pt", objects(), evaluator, fail_at=4))
    later = Engine(lambda *_: None)
    later.state.best_metric, later.state.best_metric_epoch = -1, -1
    start(engine_with(tmp_path / "s.pt", objects(), later))
    assert (later.state.best_metric, later.state.best_metric_epoch) == (0.75, 2)


def test_kill_while_saving_leaves_the_last_complete_epoch(tmp_path, monkeypatch):
    save, calls = torch.save, []

    def dies(state, file):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise Interrupted
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dies)
        with pytest.raises(OSError, match="s.pt: cannot be written"):
            start(engine_with(tmp_path / "s.pt", objects()))
    assert torch.load(tmp_path / "s.pt", weights_only=True)["epoch"] == 1
    again = objects()
    start(engine_with(tmp_path / "s.pt", again))
    assert again["network"].weight.item() == 6


def one_of_two_processes(rank, folder):
    """Each process draws numbers of its own, and both add their mean; a second one does not see the file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    def add():
        drawn = torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
        dist.all_reduce(drawn)
        return drawn.double() / 2

    def train(name, fail_at=None):
        torch.manual_seed(rank)
        random.seed(rank)
        np.random.seed(rank)  # noqa: NPY002
        path, made = Path(folder) / name / ("state.pt" if rank == 0 else "elsewhere.pt"), objects()
        made["network"].double()
        try:
            start(engine_with(path, made, fail_at=fail_at, add=add, rank=rank))
        except Interrupted:
            return None
        return made["network"].weight.item()

    whole = train("whole")
    train("parts", fail_at=4)
    assert train("parts", fail_at=6) is None
    torch.save([whole, train("parts")], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_go_on_with_the_numbers_that_each_would_have_drawn(tmp_path):
    torch.multiprocessing.spawn(one_of_two_processes, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert results[0][0] == results[0][1]
    assert results[0] == results[1]


def test_a_single_process_takes_up_what_several_left(tmp_path):
    with pytest.raises(Interrupted):
        start(engine_with(tmp_path / "s.pt", objects(), fail_at=4))
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    state["random"] *= 4
    torch.save(state, tmp_path / "s.pt")
    again = objects()
    start(engine_with(tmp_path / "s.pt", again))
    assert again["network"].weight.item() == 6
