from __future__ import annotations

import json
import re
from importlib.util import find_spec

import jsonschema
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from packaging.requirements import Requirement
from packaging.version import Version

import bundle

from ..conftest import ROOT, TINY_NETWORK

CONFIGS = sorted((ROOT / "configs").glob("*.json"))
WORKFLOWS = [path for path in CONFIGS if path.name != "metadata.json"]
METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text())

# the rules of MONAI's metadata schema of July 2024, without its descriptions
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        **{name: {"type": "string"} for name in ("type", "format", "modality", "dtype")},
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["schema", "version", "monai_version", "pytorch_version", "numpy_version",
                 "required_packages_version", "task", "description", "authors", "copyright", "network_data_format"],
    "properties": {
        **{name: {"type": "string"} for name in
           ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
            "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use")},
        **{name: {"type": "object"} for name in
           ("changelog", "required_packages_version", "supported_apps", "eval_metrics")},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                part: {"type": "object", "minProperties": 1, "additionalProperties": TENSOR}
                for part in ("inputs", "outputs")
            },
        },
    },
}  # fmt: skip


def targets(item):
    """Every ``_target_`` and dotted path of the package in a config."""
    if isinstance(item, dict):
        for value in item.values():
            yield from targets(value)
    elif isinstance(item, list):
        for value in item:
            yield from targets(value)
    elif isinstance(item, str):
        yield from re.findall(r"\bbundle(?:\.\w+)+", item)


def reads(name):
    return json.loads((ROOT / "configs" / f"{name}.json").read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_is_valid_json_and_every_class_of_ours_is_found(path):
    content = json.loads(path.read_text())
    for target in set(targets(content)):
        module, _, name = target.rpartition(".")
        found = __import__(module, fromlist=[name])
        assert hasattr(found, name), target
        assert name in getattr(found, "__all__", [name]), target
        taken = hasattr(found, "__path__") and find_spec(target) is not None
        assert not taken, f"from Python 3.12 on, {target} would be the module of this name"


def test_every_workflow_names_classes_of_ours():
    for name in ("train", "inference", "evaluate"):
        assert len(set(targets(reads(name)))) > 2


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_config_imports_nothing_of_ours_and_names_no_path_of_a_machine(path):
    text = path.read_text()
    assert "import bundle" not in text
    assert "from bundle" not in text
    assert not re.search(r'"[^"]*(/home/|/Users/|/mnt/|/tmp/|[A-Z]:\\\\)', text)
    assert "displayable_configs" not in text


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        (
            "train",
            "bundle_root dataset_dir output_dir device network_def network images val_images train#trainer "
            "train#trainer#max_epochs train#dataset train#dataset#data train#handlers train#inferer "
            "train#preprocessing train#postprocessing train#key_metric validate#evaluator validate#dataset "
            "validate#dataset#data validate#dataloader validate#inferer validate#handlers validate#preprocessing "
            "validate#postprocessing validate#key_metric val_interval epoch_length batch_size superpixel "
            "exclude_labels seed initialize run",
        ),
        (
            "inference",
            "bundle_root dataset_dir output_dir device network_def network datalist support labels preprocessing "
            "inferer postprocessing dataset dataset#data evaluator handlers checkpointloader initialize run",
        ),
        ("evaluate", "protocol fold folds setting support_index"),
    ],
)
def test_ids_that_others_override_are_there(name, ids):
    def has(item, keys):
        return not keys or (keys[0] in item and has(item[keys[0]], keys[1:]))

    content = reads(name)
    assert not [item for item in ids.split() if not has(content, item.split("#"))]


def test_evaluation_laid_over_training_leaves_the_training_as_it_is():
    """A federated client reads train.json and evaluate.json together."""
    assert not {key.split("#")[0] for key in reads("evaluate")} & set(reads("train"))


def test_handlers_of_training_are_plain_dictionaries():
    assert all(isinstance(h, dict) and "_target_" in h for h in reads("train")["train"]["handlers"])


def test_inference_network_does_not_align_and_training_does():
    assert reads("inference")["network_def"]["align"] is False
    assert reads("train")["network_def"]["_target_"] == reads("inference")["network_def"]["_target_"]


def test_networks_of_training_and_inference_have_the_same_weights(tmp_path):
    states = {}
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(ROOT / "configs" / f"{name}.json")
        states[name] = parser.get_parsed_content("network_def").state_dict()
    assert {k: v.shape for k, v in states["train"].items()} == {k: v.shape for k, v in states["inference"].items()}


def test_metadata_is_valid():
    jsonschema.validate(METADATA, SCHEMA)
    assert re.fullmatch(r"https://\S+\.json", METADATA["schema"])
    assert next(iter(METADATA["network_data_format"]["inputs"])) == "image"
    assert next(iter(METADATA["network_data_format"]["outputs"])) == "pred"


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_schema_of_this_test_refuses_what_lacks_a_key(key):
    with pytest.raises(jsonschema.ValidationError, match=key):
        jsonschema.validate({k: v for k, v in METADATA.items() if k != key}, SCHEMA)


def test_version_is_in_the_changelog_and_the_package_has_the_same():
    assert METADATA["version"] in METADATA["changelog"]
    assert METADATA["version"] == bundle.__version__
    newest = max(METADATA["changelog"], key=Version)
    assert newest == METADATA["version"]


def requirements():
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.DOTALL)[1]
    return {r.name: r for r in map(Requirement, re.findall(r'"([^"]+)"', block))}


def test_versions_of_the_metadata_lie_in_the_ranges_of_the_project():
    ranges = requirements()
    versions = {
        "monai": METADATA["monai_version"],
        "torch": METADATA["pytorch_version"],
        "numpy": METADATA["numpy_version"],
        **METADATA["required_packages_version"],
    }
    assert set(versions) == set(ranges)
    for name, version in versions.items():
        assert ranges[name].specifier.contains(version), (name, version)


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_every_property_that_monai_asks_for_is_there_without_any_data(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)
    workflow = ConfigWorkflow(
        workflow_type=kind,
        config_file=str(ROOT / "configs" / f"{kind}.json"),
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        dataset_dir=str(tmp_path / "nothing"),
        output_dir=str(tmp_path / "out"),
        network_def=TINY_NETWORK,
        device="cpu",
        **({"pretrained": False} if kind == "train" else {}),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert not (tmp_path / "nothing").exists()
