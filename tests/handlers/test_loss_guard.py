from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer

from bundle.handlers import LossGuard


def train(path, images):
    network = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(network.weight, 0.5)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": image, "label": torch.zeros(1, 1), "index": 3} for image in images],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=torch.nn.functional.mse_loss,
        decollate=False,
        train_handlers=[LossGuard(path)],
    )
    return network, trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_loss_that_is_no_number_stops_before_it_reaches_a_weight(tmp_path, value):
    bad = torch.tensor([[1.0, value]])
    network, trainer = train(tmp_path / "out" / "bad.pt", [torch.zeros(1, 2), bad, torch.zeros(1, 2)])
    line = r"the loss is (nan|inf) in step 2 of epoch 1; its episodes are in .*bad.pt, lower learning_rate or"
    with pytest.raises(FloatingPointError, match=line):
        trainer.run()
    assert torch.isfinite(network.weight).all()
    saved = torch.load(tmp_path / "out" / "bad.pt", weights_only=True)
    assert torch.equal(saved["batch"]["image"], bad) or torch.isnan(saved["batch"]["image"]).any()
    assert saved["batch"]["index"] == 3
    assert (saved["epoch"], saved["iteration"]) == (1, 2)
    again = torch.nn.functional.linear(saved["batch"]["image"], saved["network"]["weight"])
    assert torch.equal(again.nan_to_num(7, 8), saved["prediction"].nan_to_num(7, 8))
    assert not torch.isfinite(saved["loss"])
    assert torch.equal(saved["episodes"][0].nan_to_num(7, 8), bad.nan_to_num(7, 8))


def test_a_finite_loss_goes_on(tmp_path):
    network, trainer = train(tmp_path / "bad.pt", [torch.ones(1, 2)] * 3)
    trainer.run()
    assert network.weight.abs().max() < 0.5
    assert not list(tmp_path.iterdir())


class Late:
    """An answer that the device gives only when it is waited for."""

    def __init__(self):
        self.waited = False

    def query(self):
        return self.waited

    def synchronize(self):
        self.waited = True


def test_late_answers_are_waited_for_at_the_end_of_an_epoch_and_name_their_own_step(tmp_path):
    network, trainer = train(tmp_path / "bad.pt", [torch.ones(1, 2)] * 3)
    guard = LossGuard(tmp_path / "late.pt")
    for iteration, loss in ((7, 1.0), (8, float("nan")), (9, 1.0)):
        step = {"batch": {"image": torch.ones(1, 2), "label": torch.zeros(1, 1)}, "epoch": 2, "iteration": iteration}
        guard._pending.append((torch.tensor(loss).isfinite(), Late(), {**step, "loss": torch.tensor(loss)}))
    trainer.state.iteration = 9
    with pytest.raises(FloatingPointError, match="the loss is nan in step 8 of epoch 2"):
        guard.finish(trainer)
    saved = torch.load(tmp_path / "late.pt", weights_only=True)
    assert (saved["iteration"], saved["prediction"]) == (8, None)
