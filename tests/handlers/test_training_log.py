"""What a training tells."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from bundle.handlers import TrainingLog


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def train(told, dice, validated=True, epochs=3, before=0):
    evaluator = SupervisedEvaluator(torch.device("cpu"), [], torch.nn.Identity())
    trainer = Engine(lambda *_: [{"loss": torch.tensor(0.25)}])

    def validate(engine):
        state = evaluator.state
        state.epoch, state.key_metric_name = engine.state.epoch, "dice"
        state.metrics = {"dice": dice[engine.state.epoch - 1]}
        if dice[engine.state.epoch - 1] > state.best_metric:
            state.best_metric, state.best_metric_epoch = dice[engine.state.epoch - 1], engine.state.epoch

    if validated:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    TrainingLog(evaluator, "m/model.pt", "m/model_final.pt", interval=4, dataset_dir="my data").attach(trainer)
    if before:
        trainer.load_state_dict({"epoch": before, "epoch_length": 4, "max_epochs": epochs})
    trainer.run(range(4), max_epochs=epochs)
    return [record.getMessage() for record in told.records if record.name.startswith("bundle")]


def test_loss_validation_and_what_comes_next(told):
    lines = train(told, [0.5, 0.75, 0.7])
    assert lines[0] == "epoch 1/3, step 4/4: loss 0.2500"
    assert re.fullmatch(r"epoch 1/3: \d+ s, validation Dice 50.0 %, the best so far", lines[1])
    assert re.fullmatch(r"epoch 3/3: \d+ s, validation Dice 70.0 %", lines[5])
    end = lines[-1].strip().splitlines()
    assert re.fullmatch(r"trained 3 epochs in \d+ s; best validation Dice 75.0 % \(epoch 2\)", end[0])
    assert end[1:3] == ["weights  m/model.pt (best epoch)", "weights  m/model_final.pt (last epoch)"]
    assert end[3].startswith("next     python -m monai.bundle run --config_file configs/inference.json")
    assert "--dataset_dir 'my data' --ckpt_path m/model.pt" in end[3]


def test_without_validation_the_last_epoch_is_what_there_is(told):
    end = train(told, [], validated=False)[-1].strip().splitlines()
    assert re.fullmatch(r"trained 3 epochs in \d+ s", end[0])
    assert end[1] == "weights  m/model_final.pt (last epoch)"
    assert "--ckpt_path m/model_final.pt" in end[2]


def test_a_resumed_training_counts_its_own_epochs(told):
    end = train(told, [0, 0, 0.5], before=2)[-1].strip().splitlines()
    assert re.fullmatch(r"trained 1 epochs in \d+ s, after 2 of an earlier run; best .* 50.0 % \(epoch 3\)", end[0])
