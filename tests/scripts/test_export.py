"""What an export tells MONAI Label about the labels."""

from __future__ import annotations

import json

import pytest

from scripts.export import NAME, monailabel

from ..integration.studies import make_studies


def exported(tmp_path, tiny_weights, **options):
    """Labels by which the app's copy is called, and those that its answers keep to."""
    monailabel(str(tmp_path / "app"), weights=str(tiny_weights), **options)
    configs = tmp_path / "app" / "model" / NAME / "configs"
    metadata, inference = (json.loads((configs / name).read_text()) for name in ("metadata.json", "inference.json"))
    offered = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return {name: int(value) for value, name in offered.items() if name != "background"}, inference["app_labels"]


def test_answers_keep_to_the_values_that_clients_are_offered(tmp_path, tiny_weights):
    offered, kept = exported(tmp_path, tiny_weights, labels="liver, spleen")
    assert offered == kept == {"liver": 1, "spleen": 2}


def test_without_names_nothing_is_promised(tmp_path, tiny_weights):
    assert exported(tmp_path, tiny_weights) == ({"structure": 1}, {})


def test_finished_labels_give_the_names(tmp_path, tiny_weights, phantom_dir):
    info = [{"name": name, "idx": value} for value, name in enumerate(["rk", "liver", "lk", "spleen"], start=1)]
    studies = make_studies(tmp_path / "studies", phantom_dir, {"phantom_01": info})
    offered, kept = exported(tmp_path, tiny_weights, studies=str(studies))
    assert offered == kept == {"rk": 1, "liver": 2, "lk": 3, "spleen": 4}


@pytest.mark.parametrize("labels", ["liver,,spleen", "liver,Liver", ""])
def test_names_must_differ(tmp_path, tiny_weights, labels):
    with pytest.raises(ValueError, match="labels must be different names, such as liver,spleen, got"):
        exported(tmp_path, tiny_weights, labels=labels)
