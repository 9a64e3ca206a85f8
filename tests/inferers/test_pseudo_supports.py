from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bundle.data import choose_pseudo_supports, evaluation_split, query_chunks, training_pseudo_supports
from bundle.data.support import SupportScan
from bundle.inferers import CellRegistration, PseudoSupports, SliceCompletion

from ..conftest import save_nifti
from .build import make_inferer
from .test_few_shot import DEPTH, CountingNetwork, entry, from_files, noise, query_of, segment, squares

STILL = CellRegistration([], [])


def known_extents(**meta):
    rows = [query_chunks((squares() == value).flatten(0, 1).any(dim=0).numpy(), 3) for value in (1, 3)]
    return {"chunks": torch.as_tensor(np.stack(rows)), "num_chunks": 3, **meta}


def bridged(images, **arguments):
    inferer = make_inferer(
        registration=STILL, pseudo_supports=PseudoSupports(min_reverse_dice=0.0, margin=0.1), **arguments
    )
    inferer.set_support([SupportScan(noise(0), squares(), 7.0, "a")])
    inferer.set_pseudo_supports(images)
    return inferer


@pytest.mark.parametrize("extent", [False, True])
def test_a_pseudo_support_leads_to_a_query_that_is_unlike_the_support(extent):
    query = query_of(noise(5), **(known_extents() if extent else {}))
    middle = query_of(noise(0) + noise(5))[0]  # like both
    shares = []
    for images in ([], [middle]):
        inferer = bridged(images, labels=[1, 3], completion=SliceCompletion())
        scores = inferer(query, CountingNetwork())[0].as_subclass(torch.Tensor)
        found = scores > 0 if extent else scores.argmax(dim=0) == torch.tensor([1, 2]).view(2, 1, 1, 1)
        truth = torch.stack([squares() == value for value in (1, 3)])
        sizes = found.flatten(1).sum(1) + truth.flatten(1).sum(1)
        shares.append(2 * (found & truth).flatten(1).sum(1) / sizes)
    assert shares[0].max() < 0.3
    assert shares[1].min() > 0.5  # the support itself has an equal say


def test_pseudo_supports_are_encoded_once_and_anew_for_another_support():
    network, inferer = CountingNetwork(), bridged([query_of(noise(0) + noise(1))[0], query_of(noise(2))[0]])
    counts = []
    for _ in range(2):
        before = network.encoded
        segment(inferer, network, query_of(noise(0)))
        counts.append(network.encoded - before)
    assert counts == [4 * DEPTH, DEPTH]  # the support, two pseudo_supports and the query; the query
    inferer.set_support([SupportScan(noise(1), squares(), 7.0, "b")])
    before = network.encoded
    segment(inferer, network, query_of(noise(0)))
    assert network.encoded - before == 4 * DEPTH


def test_files_as_pseudo_supports_and_a_query_is_no_pseudo_support_to_itself(tmp_path):
    affine = np.diag([2.0, 2.0, 7.0, 1.0])
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        save_nifti(tmp_path / f"{name}.nii.gz", noise(seed)[0].numpy(), affine)
        save_nifti(tmp_path / f"{name}_label.nii.gz", squares().numpy().astype(np.uint8), affine)
    images = [{"image": str(tmp_path / f"{name}.nii.gz")} for name in "bc"]
    for count, query, others in ((2, "q", 2), (2, "b", 1), (1, "b", 1), (1, "q", 1), (0, "q", 0)):
        network = CountingNetwork()
        inferer = from_files(tmp_path, "a", registration=STILL, pseudo_supports=PseudoSupports(images, count))
        file = str(tmp_path / f"{query}.nii.gz")
        segment(inferer, network, query_of(noise(4), filename_or_obj=file))
        assert network.encoded == (2 + others) * DEPTH
        assert len(inferer.pseudo_supports.choose(file)) == others


def test_only_what_is_sure_and_agrees_is_passed_on():
    scores = torch.zeros(2, 4, 3, 3)
    scores[:, 1, 0], scores[:, 2, 1], scores[0, 3, 2], scores[:, 0, 2, 2] = 3.0, 3.0, 0.5, 3.0
    features, reverse_dice = torch.rand(2, 5, 3, 3), torch.tensor([0.9, 0.1, 0.9])
    found = PseudoSupports(margin=1.0, min_reverse_dice=0.3).encode(
        features, 7.0, [4, 5, 6], scores, reverse_dice, torch.rand(2, 4)
    )
    assert found.values == [4]  # 5 does not agree, 6 is not sure
    assert [found.annotates(value) for value in (4, 5, 6)] == [True, False, False]
    assert torch.equal(found.foreground[:, 0], (scores[:, 1] > 1).float())
    assert torch.equal(found.background, (scores[:, 0] > 1).float())
    assert found.shows.all()
    nothing = PseudoSupports(min_reverse_dice=0.95).encode(
        features, 7.0, [4, 5, 6], scores, reverse_dice, torch.rand(2, 4)
    )
    assert nothing is None


def test_within_an_extent_too_what_is_not_sure_on_a_pseudo_support_is_unknown():
    scores = torch.zeros(2, 3, 4, 4)
    scores[:, 1, 0], scores[:, 2, 1], scores[:, 0, 2] = 3.0, 3.0, 3.0  # the last row is unsure
    pseudo_support = PseudoSupports().encode(
        torch.rand(2, 5, 4, 4), 7.0, [4, 5], scores, torch.ones(2), torch.rand(2, 4)
    )
    view = pseudo_support.as_published(4, 3, lambda scan: pytest.fail("nothing is completed"))
    rows = view.foreground[0, 0, :, 0], view.background[0, :, 0]
    assert [row.tolist() for row in rows] == [[1, 0, 0, 0], [0, 1, 1, 0]]
    assert view.answering.tolist() == [0, 1]


def test_a_pseudo_support_that_passes_nothing_on_changes_nothing():
    plain, other = bridged([]), bridged([query_of(noise(9))[0]])
    other.pseudo_supports = PseudoSupports(min_reverse_dice=1.1)
    expected, _ = segment(plain, CountingNetwork(), query_of(noise(0)))
    assert torch.equal(segment(other, CountingNetwork(), query_of(noise(0)))[0], expected)


def test_pseudo_supports_need_to_be_wanted():
    with pytest.raises(RuntimeError, match="num_pseudo_supports"):
        make_inferer(registration=STILL).set_pseudo_supports([noise(0)])
    with pytest.raises(RuntimeError, match="registration"):
        make_inferer(pseudo_supports=PseudoSupports()).set_pseudo_supports([noise(0)])
    for name in ("count", "min_reverse_dice", "margin"):
        with pytest.raises(ValueError, match="at least 0"):
            PseudoSupports(**{name: -1})


def test_pseudo_supports_are_spread_and_without_labels():
    entries = [entry(str(number)) for number in range(10)]
    assert choose_pseudo_supports(entries, 2) == [{"image": "2.nii.gz"}, {"image": "7.nii.gz"}]
    assert [e["image"] for e in choose_pseudo_supports(entries, 2, spare=1)] == ["1.nii.gz", "5.nii.gz", "8.nii.gz"]
    assert choose_pseudo_supports(entries, 0, spare=1) == []
    assert len(choose_pseudo_supports(entries[:1], 3)) == 1
    assert choose_pseudo_supports([], 3) == []


def test_an_evaluation_takes_pseudo_supports_from_the_training_scans_alone(run_config, phantom_dir):
    split = evaluation_split(phantom_dir, "volume", 0, 2)
    [pseudo_support] = training_pseudo_supports(phantom_dir, "volume", 0, 2, 3)
    assert pseudo_support == {"image": split["train"][0]["image"]}
    assert training_pseudo_supports("nowhere", "volume", 0, 2, 0) == []
    means = []
    for count in (0, 3):
        options = {
            "dataset_dir": str(phantom_dir),
            "folds": 2,
            "fold": 0,
            "protocol": "volume",
            "num_pseudo_supports": count,
        }
        out = run_config("inference", "evaluate", **options, resume=False)
        means.append(json.loads((out / "summary.json").read_text())["mean"])
    assert means[0] != means[1]


def test_an_evaluation_of_given_scans_needs_no_folds(run_config, phantom_dir):
    image, label = (str(phantom_dir / folder / "phantom_02.nii.gz") for folder in ("imagesTr", "labelsTr"))
    support = [{"image": "imagesTr/phantom_01.nii.gz", "label": "labelsTr/phantom_01.nii.gz"}]
    given = {"datalist": [{"image": image, "label": label}], "support": support, "protocol": "volume"}
    out = run_config("inference", "evaluate", **given)  # four scans are too few for five folds
    assert json.loads((out / "summary.json").read_text())["cases"] == 1
