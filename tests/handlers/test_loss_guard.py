from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from monai.engines import IterationEvents, SupervisedTrainer
from torch.nn.parallel import DistributedDataParallel

from bundle.handlers import LossGuard


def train(path, images, device="cpu"):
    network = torch.nn.Linear(2, 1, bias=False).to(device)
    torch.nn.init.constant_(network.weight, 0.5)
    trainer = SupervisedTrainer(
        device=torch.device(device),
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


def test_the_answer_is_waited_for_after_the_backward_pass_and_before_the_step(tmp_path):
    seen = []
    network, trainer = train(tmp_path / "bad.pt", [torch.ones(1, 2)])
    guard = next(h[0] for h in trainer._event_handlers[IterationEvents.BACKWARD_COMPLETED]).__self__
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.append("step"))
    network.weight.register_post_accumulate_grad_hook(lambda *_: seen.append("backward"))

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def pretend_cuda(_):
        guard._answered = SimpleNamespace(synchronize=lambda: seen.append("answer"))

    trainer.run()
    assert seen == ["backward", "answer", "step"]


@pytest.mark.parametrize(
    "wrap",
    [
        partial(torch.compile, backend="eager"),
        DistributedDataParallel,
        lambda network: torch.compile(DistributedDataParallel(network), backend="eager"),
    ],
    ids=["compiled", "of several processes", "both"],
)
def test_what_is_saved_has_plain_keys(tmp_path, wrap, one_process):
    network, trainer = train(tmp_path / "bad.pt", [torch.tensor([[1.0, float("nan")]])])
    trainer.network = wrap(network)
    with pytest.raises(FloatingPointError):
        trainer.run()
    assert list(torch.load(tmp_path / "bad.pt", weights_only=True)["network"]) == ["weight"]


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
