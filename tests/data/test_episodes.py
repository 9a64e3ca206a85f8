from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader

from bundle.data import EpisodeDataset, EpisodeSampler, PrepareEpisodes, SliceBank, episodes, share_of_batch
from bundle.data.episodes import own_first
from bundle.networks import ALPNet, TinyEncoder
from bundle.transforms import RandEpisoded, RandPseudoLabeld, RandView

KEYS = ("image", "label", "support_image", "support_label")


def scan(entry):
    """Stands for the preprocessing: three slices that tell which scan and slice they are, and their labels.

    Slice 0 has no superpixel and slice 2 shows label 4; scan 1 shows label 2 in slice 1.
    """
    number = int(entry["image"].split("_")[-1])
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(number))
    image[0, 0, 0] = torch.tensor([100.0 * number, 100.0 * number + 1, 100.0 * number + 2])
    superpixels = torch.zeros(1, 16, 16, 3, dtype=torch.int16)
    superpixels[0, 2:8, 2:8, 1:] = 1
    superpixels[0, 9:15, 4:12, 1:] = 2
    superpixels[0, 0, 0, 0] = 1  # too small
    label = torch.zeros(1, 16, 16, 3)
    label[0, 5, 5, 2] = 4
    if number == 1:
        label[0, 5, 5, 1] = 2
    out = {"image": image, "superpixels": superpixels}
    return {**out, "label": label} if "label" in entry else out


def chain(lazy=False, ways=1):
    draw = RandPseudoLabeld(num_draws=ways, min_area_px=20, lazy=lazy)
    return Compose([draw, RandEpisoded(RandView(), RandView(), lazy=lazy)])


def dataset(scans=3, labels=True, **arguments):
    data = [{"image": f"scan_{i}", **({"label": f"label_{i}"} if labels else {})} for i in range(scans)]
    settings = {"transform": scan, "episode": chain(), "epoch_length": 12, "min_area_px": 20, **arguments}
    return EpisodeDataset(data, **settings)


def kept(made):
    """Which slices of which scans are usable."""
    return sorted(int(v) for v in made.slices()[0][:, 0, 0, 0])


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in KEYS)


def test_slices_without_a_large_superpixel_are_left_out():
    assert kept(dataset()) == [1, 2, 101, 102, 201, 202]
    assert kept(dataset(min_area_px=1)) == [0, 1, 2, 100, 101, 102, 200, 201, 202]
    assert kept(dataset(min_area_px=40)) == [1, 2, 101, 102, 201, 202]  # the larger has 48
    assert dataset().slices()[0].shape == (6, 1, 16, 16)
    assert dataset().slices()[1].dtype == torch.int16


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [([4], [1, 101, 201]), ([2], [1, 2, 102, 201, 202]), ([2, 4], [1, 201]), ([4, 9], [1, 101, 201]), ([9], None)],
)
def test_slices_that_show_any_excluded_label_are_left_out(exclude, expected):
    assert kept(dataset(exclude_labels=exclude)) == (expected or [1, 2, 101, 102, 201, 202])


def test_labels_are_not_read_unless_they_exclude():
    seen = []

    def spy(entry):
        seen.append(set(entry))
        return scan(entry)

    dataset(transform=spy).slices()
    dataset(transform=spy, exclude_labels=[4]).slices()
    assert seen == [{"image"}] * 3 + [{"image", "label"}] * 3


def test_nothing_is_read_before_the_first_episode():
    def fails(entry):
        raise AssertionError("read too early")

    made = dataset(transform=fails)
    assert len(made) == 12
    EpisodeSampler(made)
    DataLoader(made, batch_size=2)
    with pytest.raises(AssertionError, match="read too early"):
        made[0]


def test_scans_are_read_once():
    reads = []

    def counted(entry):
        reads.append(entry["image"])
        return scan(entry)

    made = dataset(transform=counted, num_workers=2)
    for index in range(10):
        made[index]
    assert sorted(reads) == ["scan_0", "scan_1", "scan_2"]


@pytest.mark.parametrize("exclude", [[], [4]], ids=["images", "images and labels"])
def test_second_start_reads_no_scan_and_draws_the_same(tmp_path, exclude):
    paths = {}
    for kind in ("scan", "label"):
        paths[kind] = [tmp_path / f"{kind}_{number}" for number in range(3)]
        for path in paths[kind]:
            path.write_text(path.name)
    data = [{"image": str(image), "label": str(label)} for image, label in zip(paths["scan"], paths["label"])]
    reads = []

    def counted(entry):
        reads.append(entry["image"])
        return scan(entry)

    def start(folder, **changes):
        settings = {"epoch_length": 12, "min_area_px": 20, "exclude_labels": exclude, **changes}
        made = EpisodeDataset(data, counted, chain(), **settings, cache_dir=folder)
        return [made[index] for index in range(6)]

    runs = [start(folder) for folder in (None, tmp_path / "cache", tmp_path / "cache")]
    assert len(reads) == 6
    for first, *others in zip(*runs):
        assert all(same(first, other) for other in others)
    start(tmp_path / "cache", min_area_px=40)
    assert len(reads) == 6  # what is usable is decided later


def test_episode_depends_on_seed_and_index_alone():
    forward, backward = dataset(seed=3), dataset(seed=3)
    first = [forward[index] for index in range(8)]
    second = [backward[index] for index in reversed(range(8))][::-1]
    assert all(same(a, b) for a, b in zip(first, second))
    other = dataset(seed=4)
    assert not any(same(a, other[index]) for index, a in enumerate(first))
    assert not any(same(first[i], first[j]) for i in range(8) for j in range(i))


def test_all_usable_slices_and_superpixels_are_drawn():
    made = dataset(episode=Compose([RandPseudoLabeld(min_area_px=20), RandEpisoded(None, None)]))
    drawn = {(int(e["image"][0, 0, 0]), int(e["label"].sum())) for e in (made[i] for i in range(200))}
    assert drawn == {(s, area) for s in (1, 2, 101, 102, 201, 202) for area in (36, 48)}


@pytest.mark.parametrize("lazy", [False, True])
def test_workers_do_not_change_the_episodes(lazy):
    made = dataset(episode=chain(lazy=lazy))
    batches = {}
    for workers in (0, 2):
        sampler = EpisodeSampler(made)
        sampler.set_epoch(2)
        loader = DataLoader(made, batch_size=4, sampler=sampler, num_workers=workers)
        batches[workers] = [PrepareEpisodes(bank=SliceBank(made))(batch) for batch in loader]
    assert len(batches[0]) == len(batches[2]) == 3
    for a, b in zip(batches[0], batches[2]):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def indices(epoch, replicas=1, rank=0, length=12):
    sampler = EpisodeSampler(dataset(epoch_length=length), replicas, rank)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_epochs_follow_each_other():
    assert indices(1) == list(range(12))
    assert indices(2) == list(range(12, 24))
    assert list(EpisodeSampler(dataset())) == list(range(12))


@pytest.mark.parametrize(("replicas", "length"), [(2, 12), (3, 12), (4, 12), (5, 12)])
def test_ranks_share_the_list_of_an_epoch(replicas, length):
    shares = [indices(3, replicas, rank, length) for rank in range(replicas)]
    assert len({len(share) for share in shares}) == 1
    together = sorted(index for share in shares for index in share)
    start = 2 * length
    assert together == list(range(start, start + length - length % replicas))


def test_further_images_of_a_folder_are_used_once(tmp_path):
    for name in ("scan_0", "scan_7", "scan_8"):
        (tmp_path / f"{name}.nii.gz").touch()
    data = [{"image": str(tmp_path / "scan_0.nii.gz")}]
    made = EpisodeDataset(data, scan, chain(), 4, image_dir=tmp_path)
    names = [str(entry["image"])[-13:] for entry in made.entries()]
    assert names == ["scan_0.nii.gz", "scan_7.nii.gz", "scan_8.nii.gz"]
    assert EpisodeDataset(data, scan, chain(), 4, image_dir="http://server/studies").entries() == data


def test_unusable_data_are_named():
    with pytest.raises(ValueError, match="no training images; point dataset_dir to a folder with imagesTr"):
        dataset(0)[0]
    with pytest.raises(ValueError, match="no usable slice in 3 scans: none has a superpixel of 99 pixels; look"):
        dataset(min_area_px=99)[0]
    with pytest.raises(ValueError, match=r"outside the labels \[0, 4\]"):
        dataset(exclude_labels=[0, 4])[0]
    with pytest.raises(ValueError, match="scan_0: exclude_labels needs a label of every training image"):
        dataset(labels=False, exclude_labels=[4])[0]
    with pytest.raises(ValueError, match=r"slices must be of one size after preprocessing, got .*\(1, 8, 16\)"):
        dataset(
            transform=lambda entry: {
                k: v[:, : 8 if entry["image"] == "scan_1" else 16] for k, v in scan({"image": entry["image"]}).items()
            }
        )[0]
    with pytest.raises(ValueError, match="scan_0: contains NaN"):
        dataset(transform=lambda entry: {**scan(entry), "image": torch.full((1, 16, 16, 3), torch.nan)})[0]


@pytest.mark.parametrize("ways", [1, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_batch_fits_the_network_and_says_what_it_has_to_find(ways, lazy):
    made = dataset(episode=chain(lazy, ways))
    batch = next(iter(DataLoader(made, batch_size=4)))
    image, target, args, support = PrepareEpisodes(ways, SliceBank(made))(batch, device="cpu")
    assert image.shape == (4, 1, 16, 16)
    assert args == ()
    assert support["support_image"].shape == (4, 1, 1, 1, 16, 16)
    assert support["support_label"].shape == (4, ways, 1, 16, 16)
    assert target.shape == (4, 2 if ways == 1 else 1, 16, 16)
    assert set(support["support_label"].unique().tolist()) == {0.0, 1.0}
    assert (support["support_label"].sum(dim=1) <= 1).all()
    if ways == 1:
        assert torch.equal(target[:, 1] > 0, support["support_label"][:, 0, 0])
    else:
        present = support["support_label"].flatten(2).any(dim=2)
        np.testing.assert_array_equal(present, [[True, True, False]] * 4)  # a slice has two superpixels
        assert target.max() == 2
    network = ALPNet(TinyEncoder(4, stride=4), align=ways == 1)
    assert network(image, **support).shape == (4, 1 + ways + (2 if ways == 1 else 0), 16, 16)


def test_processes_share_a_batch_equally(caplog):
    assert [share_of_batch(12, number) for number in (1, 2, 3, 12)] == [12, 6, 4, 1]
    assert caplog.messages == []
    assert [share_of_batch(4, number) for number in (3, 8)] == [2, 1]
    assert caplog.messages == [
        "batch_size is 6 instead of 4: each of 3 processes takes 2",
        "batch_size is 8 instead of 4: each of 8 processes takes 1",
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_each_process_does_its_part_first_and_all_in_the_end(processes):
    orders = [own_first(5, rank, processes) for rank in range(processes)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    parts = [order[: len(range(rank, 5, processes))] for rank, order in enumerate(orders)]
    assert sorted(sum(parts, [])) == list(range(5))


def test_a_process_reads_its_part_first_and_has_the_same_slices(monkeypatch):
    read = []

    def spy(entry):
        read.append(entry["image"])
        return scan(entry)

    alone = dataset(transform=spy)
    expected = alone.slices()
    monkeypatch.setattr(episodes, "_process", lambda: (1, 2))
    second = dataset(transform=spy)
    assert all(torch.equal(a, b) for a, b in zip(second.slices(), expected))
    assert read == ["scan_0", "scan_1", "scan_2", "scan_1", "scan_0", "scan_2"]
    assert same(second[3], alone[3])
