from __future__ import annotations

import logging

import pytest
import torch
from torch.utils.data import DataLoader

from bundle.data import PrepareEpisodes, SliceBank
from bundle.transforms.pseudo_label import drawn_label_maps

from .test_episodes import chain, dataset


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_episodes_of_the_bank_are_those_of_the_dictionary_transforms(ways):
    batches = {}
    for lazy in (False, True):
        made = dataset(episode=chain(lazy, ways), seed=5)
        loader = DataLoader(made, batch_size=6)
        batches[lazy] = [PrepareEpisodes(ways, SliceBank(made))(batch, "cpu") for batch in loader]
    assert len(batches[True]) == 2
    for slow, fast in zip(batches[False], batches[True]):
        torch.testing.assert_close(fast[0], slow[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(fast[3]["support_image"], slow[3]["support_image"], atol=1e-4, rtol=0)
        assert torch.equal(fast[1], slow[1])
        assert torch.equal(fast[3]["support_label"], slow[3]["support_label"])


def test_lazy_samples_hold_no_image():
    made = dataset(episode=chain(lazy=True))
    sample = made[0]
    assert set(sample) == {"slice", "drawn", "query_view", "support_view"}
    assert set(dataset(episode=chain())[0]) == {"image", "label", "support_image", "support_label"}
    with pytest.raises(ValueError, match="lazily drawn episodes need the bank of their slices"):
        PrepareEpisodes()(next(iter(DataLoader(made, batch_size=2))))


def test_absent_classes_and_no_superpixel_are_background():
    maps = torch.tensor([[[[0, 1, 2], [3, 2, 0]]], [[[1, 1, 0], [2, 3, 0]]]], dtype=torch.int16)
    labels = drawn_label_maps(maps, torch.tensor([[3, 1, 0], [2, 0, 0]]), 5)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[[[0, 2, 0], [1, 0, 0]]], [[[0, 0, 0], [1, 0, 0]]]]


LIMITS = {"as they are": (1e-3, torch.float32), "in half precision": (7e-6, torch.float16), "streamed": (0, None)}


@pytest.mark.parametrize(("limit_gb", "kept"), LIMITS.values(), ids=LIMITS)
def test_slices_are_kept_on_the_device_as_far_as_they_fit(limit_gb, kept, caplog):
    """The meta device has no memory, but the same rules."""
    bank = SliceBank(dataset(), limit_gb)
    caplog.set_level(logging.INFO)
    bank.place("meta")
    bank.place("meta")
    full = 6 * 16 * 16 * (4 + 2)  # six slices of 16 x 16, images and maps
    assert bank.num_bytes == {torch.float32: full, torch.float16: full * 4 // 6, None: 0}[kept]
    assert bank.resident == (kept is not None)
    assert len(caplog.records) == 1
    assert ("streamed" if kept is None else f"kept there, {kept}") in caplog.text
    images, maps = bank.take(torch.tensor([0, 3]), torch.tensor([0, 0]), "meta")
    assert (images.shape, maps.shape) == ((2, 1, 16, 16), (2, 1, 16, 16))
    assert (images.dtype, images.device.type) == (torch.float32, "meta")


@pytest.mark.gpu
@pytest.mark.parametrize("limit_gb", [None, 7e-6, 0], ids=["kept", "half", "streamed"])
def test_device_makes_the_same_episodes_without_being_waited_for(limit_gb):
    made = dataset(episode=chain(lazy=True, ways=3))
    batch = next(iter(DataLoader(made, batch_size=6, pin_memory=True)))
    prepare = PrepareEpisodes(3, SliceBank(made, limit_gb))
    prepare(batch, "cuda")  # places the slices
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast = prepare(batch, "cuda", non_blocking=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    slow = PrepareEpisodes(3, SliceBank(made))(batch, "cpu")
    tolerance = 1e-4 if limit_gb != 7e-6 else 0.2  # half precision of values up to 202
    torch.testing.assert_close(fast[0].cpu(), slow[0], atol=tolerance, rtol=0)
    assert (fast[1].cpu() != slow[1]).float().mean() < 0.02  # ties of the nearest pixel
