"""What a user may set: misspelt ids are refused, parts are switched off, labels have names, in every way of setting."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from bundle import FewShotSegmenter
from bundle.handlers import CaseQuality
from bundle.ids import optional_parts, switches
from bundle.inferers import FewShotInferer
from bundle.options import as_arguments, check_command_line, check_options, read_config
from bundle.quality import ExpectedDice
from bundle.transforms import AnswerQualityd, BodyMaskd

from .conftest import ROOT, TINY_NETWORK

CONFIGS = ROOT / "configs"
PROGRAM = "/somewhere/monai/bundle/__main__.py"
# every overlay and what it may be laid over
OVERLAYS = {
    "evaluate": ["inference", "train"],  # over train.json in federated learning
    "fold": ["train"],
    "paper": ["train", "train fold", "inference", "inference evaluate"],
    "abdomen_ct": ["train", "train fold", "inference", "inference evaluate"],
    "abdomen_mr": ["train", "train fold", "inference", "inference evaluate"],
    "cardiac_mr": ["train", "train fold", "inference", "inference evaluate"],
    "sabs": ["train", "train fold", "train fold paper", "inference", "inference evaluate", "inference evaluate paper"],
    "mscmr": ["train", "train fold", "train fold paper", "inference", "inference evaluate", "inference evaluate paper"],
    "multi_gpu_train": ["train", "train paper", "train fold abdomen_ct"],
    "multi_gpu_inference": ["inference", "inference evaluate", "inference evaluate paper"],
    "inference_onnx": ["inference", "inference evaluate"],
    "inference_ts": ["inference", "inference evaluate"],
    "inference_trt": ["inference", "inference evaluate"],
}
EXPORTED = ("inference_onnx", "inference_ts", "inference_trt")  # built in tests/integration/test_exports.py
OFF = ["completion", "registration", "in_plane_orientation", "atlas_fallback", "pseudo_supports", "refinement",
       "upsampling", "region_of_interest", "shape_interpolation", "truncated_structures", "mirror_check",
       "memory_check"]  # fmt: skip


def parts_of(inferer):
    """What each switch of the config leaves in an inferer."""
    stages = {
        "completion": inferer.support_encoder.completion,
        "region_of_interest": inferer.support_encoder.region_of_interest,
        "registration": inferer.registration.cells,
        "atlas_fallback": inferer.known_extents.atlas_fallback,
        "truncated_structures": inferer.quality.truncated_structures,
    }
    return {key: stages[key] if key in stages else getattr(inferer, key) for key in OFF}


def files(names):
    return [str(CONFIGS / f"{name}.json") for name in (names.split() if isinstance(names, str) else names)]


def command(names, *words):
    return [PROGRAM, "run", "--config_file", str(files(names)), *words]


def small(names, tmp_path, phantom_dir, **overrides):
    settings = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path / "out"), "network_def": TINY_NETWORK}
    return read_config(files(names), {"bundle_root": str(ROOT), "device": "cpu", **settings, **overrides})


@pytest.mark.parametrize(
    ("names", "key", "value", "message"),
    [
        ("inference evaluate", "protcol", "volume", r"--protcol: .*did you mean protocol\?"),
        ("inference", "num_slices", False, "--num_slices False: this is no switch; leave it out"),
        ("inference", "image_size", False, "--image_size False: this is no switch; leave it out"),
        ("inference evaluate", "fold", False, "--fold False: this is no switch; leave it out"),
        ("train", "max_epoch", 1, r"--max_epoch: .*did you mean max_epochs\?"),
        ("train", "datset_dir", "x", r"--datset_dir: .*did you mean dataset_dir\?"),
        ("inference", "config_fil", "x", r"did you mean config_file\?"),
        ("inference", "max_epochs", 1, "--max_epochs: the configs have no such id"),
        ("train", "smoothing_mm", 1, "--smoothing_mm: the configs have no such id"),
        ("train", "method", "slic", r"did you mean superpixel#method\?"),
        ("train", "superpixl#method", "slic", r"did you mean superpixel\?"),
        ("train", "superpixel::metod", "slic", r"--superpixel#metod: .*did you mean superpixel#method\?"),
        ("train", "superpixel", {"metod": "slic"}, r"did you mean superpixel#method\?"),
        ("train", "train#trainer#max_epoch", 1, r"SupervisedTrainer has no such argument; did you mean max_epochs\?"),
        ("train", "train#handlers#99#x", 1, "train#handlers is a list of"),
        ("train", "validate#preprocessing#transforms", [], "set train#preprocessing instead"),
        ("inference", "registration#smoothingmm", 1, r"has no such argument; did you mean smoothing_mm\?"),
        ("inference", "alignment#candidate", 1, r"did you mean alignment#candidates\?"),
        ("inference", "network_def", {"_target_": "bundle.networks.ALPNet", "encodr": 1}, r"did you mean encoder\?"),
        ("inference", "network_def#encoder", {"_target_": "bundle.networks.TinyEncodr"}, r"mean TinyEncoder\?"),
        ("inference", "network_def#encoder#_target_", "bundle.networks.TinyEncoder", "#variant: .* no such argument"),
        ("inference", "+handlers", [], r"\+ appends in a config file only"),
        ("inference", "registration", "null", "type --registration False"),
        ("inference", "registration", True, "--registration True: give False to switch it off, or a part"),
        ("inference paper", "upsampling", 2, "--upsampling 2: give False to switch it off, or a part"),
        ("inference", "overlays", "false", "type --overlays False"),
        ("train", "loss", False, "cannot be switched off"),
    ],
)  # fmt: skip
def test_a_misspelt_id_is_refused_with_the_one_that_was_meant(names, key, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_options(files(names), {key: value})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        check_command_line(command(names, *as_arguments({key: value})))


@pytest.mark.parametrize(
    "overrides",
    [
        {"registration#reach": 2, "registration::pooling": 4, "handlers#0#strict": False},
        {"network_def#encoder": {"_target_": "bundle.networks.TinyEncoder", "out_channels": 4}},
        {"network_def#upsample_training": True},  # an argument that the config leaves to the class
        {"my_part": {"_target_": "bundle.networks.TinyEncoder"}, "network_def#encoder": "@my_part"},
        {"finalize": ["$print()"], "labels": ["liver", 2], "precision": "float32", "evaluator#_disabled_": True},
        {"label_names": {1: "liver"}, "support": [{"image": "a", "label": "b", "values": {"1": 2}}]},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
def test_what_the_configs_have_or_a_class_takes_is_accepted(overrides):
    check_options(files("inference"), overrides)
    check_command_line(command("inference", *as_arguments(overrides)))


def test_the_arguments_of_monai_itself_and_of_tracking_are_accepted(tmp_path):
    words = ["--meta_file", str(CONFIGS / "metadata.json"), "--logging_file", "x", "--run_id", "run", "--init_id", "i"]
    check_command_line(command("inference", *words, "--tracking", "mlflow", "--experiment_name", "x"))
    check_command_line(command("train", "--tracking", str(CONFIGS / "mlflow.json"), "--run_name", "x"))
    with pytest.raises(ValueError, match="experiment_name"):
        check_command_line(command("inference", "--experiment_name", "x"))
    check_command_line(["/somewhere/monailabel", "start_server", "--no_such", "1"])
    arguments = {"config_file": files("train"), "max_epochs": 2, "seed": None}
    for name, changes, message in (("good", {}, None), ("bad", {"max_epoch": 3}, "did you mean max_epochs")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**arguments, **changes}))
        words = [PROGRAM, "run", "--args_file", str(tmp_path / f"{name}.json"), "--batch_size", "2"]
        if message is None:
            check_command_line(words)
        else:
            with pytest.raises(ValueError, match=message):
                check_command_line(words)


@pytest.mark.parametrize("base", ["inference", "train"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"device": "cpu", "my_encoder": {"_target_": "bundle.networks.TinyEncoder"},
          "network_def#encoder": "@my_encoder"}, None),
        ({"max_epochs": 2, "num_slices": 3}, None),  # one file for both
        ({"+run_settings": {"note": 1}}, None),
        ({"+handlers": []} , None),
        ({"my_note": 1, "+_meanings_": {"my_note": "a note"}}, None),
        ({"max_epoch": 2}, r"mine.json: max_epoch: the configs have no such id"),
        ({"network_def#position_wieght": 2}, r"mine.json: network_def#position_wieght: .*did you mean position_weight"),
        ({"my_note": {"self": "@my_note#x", "x": 1}}, "mine.json: my_note: "),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Can't merge entry")
def test_an_overlay_of_the_user_may_add_what_something_refers_to(tmp_path, base, content, message):
    (tmp_path / "mine.json").write_text(json.dumps(content))
    both = [*files(base), str(tmp_path / "mine.json")]
    if message is None:
        check_options(both)
    else:
        with pytest.raises(ValueError, match=message):
            check_options(both)


def test_a_wrong_config_path_and_a_broken_config_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"inferense.json: no such config; did you mean .*inference.json\?"):
        check_options(CONFIGS / "inferense.json")
    (tmp_path / "broken.json").write_text('{"a": 1,}')
    with pytest.raises(ValueError, match=r"broken.json: not valid JSON: .*line 1"):
        check_options([*files("train"), tmp_path / "broken.json"])
    with pytest.raises(ValueError, match="a config is a .json or .yaml file"):
        check_options(ROOT / "LICENSE")


@pytest.mark.parametrize("key", [*OFF, "labels", "strict", "network_def#encoder#taps", "body_threshold"])
@pytest.mark.parametrize("form", ["--{} None", "--{}=None"])
def test_a_bare_none_is_refused(key, form):
    with pytest.raises(ValueError, match=rf"--{key} None: .*type --{key} False"):
        check_command_line(command("inference", *form.format(key).split()))


def test_every_part_that_the_inferer_can_do_without_is_a_switch():
    config = ConfigParser.load_config_files(files("inference"))
    assert {*OFF, "support_check", "expected_dice"} == optional_parts(config) < switches(config)
    assert {"pretrained"} <= switches(ConfigParser.load_config_files(files("train")))


def test_no_dice_is_expected_where_it_is_switched_off(tmp_path, phantom_dir):
    for given, wanted in (({}, ExpectedDice()), ({"expected_dice": False}, None)):
        parser = small("inference", tmp_path, phantom_dir, **given)
        saver = next(each for each in parser.get_parsed_content("handlers") if isinstance(each, CaseQuality))
        steps = parser.get_parsed_content("postprocessing").transforms
        answer = next(each for each in steps if isinstance(each, AnswerQualityd))
        assert saver.expected_dice == answer.expected_dice == wanted


@pytest.mark.parametrize("key", OFF)
@pytest.mark.parametrize("form", ["value", "expression", "python", "workflow", "overlay", "null", "words"])
def test_every_documented_form_of_a_switch_changes_what_is_built(key, form, tmp_path, phantom_dir, tiny_weights):
    pseudo = {"num_pseudo_supports": 1}
    if form in ("value", "expression"):
        parser = small(
            "inference", tmp_path, phantom_dir, **pseudo, **{key: "$None" if form == "expression" else False}
        )
        inferer = parser.get_parsed_content("inferer")
    elif form == "python":
        given = {"dataset_dir": str(phantom_dir), "ckpt_path": str(tiny_weights), "network_def": TINY_NETWORK}
        inferer = FewShotSegmenter.from_bundle(ROOT, device="cpu", **given, **pseudo, **{key: False}).inferer
    elif form in ("workflow", "words"):
        given = {"dataset_dir": str(phantom_dir), "network_def": TINY_NETWORK, "device": "cpu", **pseudo}
        value = False if form == "workflow" else "$None"  # as benchmark and speed pass None on
        assert as_arguments({key: None}) == [f"--{key}", "$None"]
        workflow = ConfigWorkflow(
            files("inference"), logging_file=False, workflow_type="infer", **given, **{key: value}
        )
        workflow.initialize()
        inferer = workflow.inferer
    else:
        (tmp_path / "mine.json").write_text(json.dumps({key: None if form == "null" else False}))
        parser = read_config([*files("inference"), tmp_path / "mine.json"], {"dataset_dir": str(phantom_dir), **pseudo})
        inferer = parser.get_parsed_content("inferer")
    usual = small("inference", tmp_path, phantom_dir, **pseudo).get_parsed_content("inferer")
    assert parts_of(inferer)[key] is None
    assert parts_of(usual)[key] is not None


def test_false_gives_the_automatic_choice_of_other_ids(tmp_path, phantom_dir):
    parser = small("inference abdomen_ct", tmp_path, phantom_dir, body_threshold=False, labels=False)
    body = next(step for step in parser.get_parsed_content("steps") if isinstance(step, BodyMaskd))
    assert body.converter.threshold is None
    assert parser.get_parsed_content("inferer").support_encoder.labels is None
    bank = small("train", tmp_path, phantom_dir, bank_limit_gb=False, cache_dir=False).get_parsed_content("train#bank")
    assert bank.limit_gb is None


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_table_of_overlays_is_complete_and_each_can_be_laid_over_what_it_says(overlay, monkeypatch):
    others = {"metadata", "mlflow", "train", "inference"}
    assert {path.stem for path in CONFIGS.glob("*.json")} - others == set(OVERLAYS)
    for base in OVERLAYS[overlay]:
        check_options([*files(base), *files(overlay)])


@pytest.mark.parametrize(("overlay", "base"), [(o, b) for o in OVERLAYS if o not in EXPORTED for b in OVERLAYS[o]])
@pytest.mark.filterwarnings("ignore")
def test_an_overlay_can_be_built_with_each_base(overlay, base, tmp_path, phantom_dir, tiny_weights, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    tiny = {"network_def#encoder": TINY_NETWORK["encoder"], "image_size": [64, 64], "dataset_dir": str(phantom_dir)}
    tiny |= {"folds": 2} if {"fold", "evaluate"} & {overlay, *base.split()} else {}
    if base.startswith("train"):
        tiny |= {"pretrained": False, "ckpt_dir": str(tmp_path)}
    else:
        tiny |= {"ckpt_path": str(tiny_weights)}
    parser = read_config([*files(base), *files(overlay)], {**tiny, "output_dir": str(tmp_path / "out")})
    if overlay.startswith("multi_gpu"):  # needs a process group; tests/integration/test_processes.py runs it
        parser.get_parsed_content("device")
        return
    parser.get_parsed_content("train#trainer" if base.startswith("train") else "evaluator")


def test_nothing_of_ours_is_active_under_the_paper(tmp_path, phantom_dir):
    given = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path), "folds": 2, "device": "cpu"}
    given |= {"network_def#encoder": TINY_NETWORK["encoder"]}
    parser = read_config(files("inference evaluate paper"), {**given, "protocol": "official"})
    inferer, network = parser.get_parsed_content("inferer"), parser.get_parsed_content("network")
    on = [key for key, part in parts_of(inferer).items() if part is not None]
    assert on == ["memory_check"]  # which changes no result
    assert inferer.registration.num_slices == 1
    quality = inferer.quality
    assert [inferer.fusion.smoothing_mm, quality.min_reverse_dice, quality.reverse_dice_discount] == [0.0] * 3
    assert (network.position_weight, network.depth_weight, network.precision) == (0.0, 0.0, "float32")
    assert (network.training_window, network.testing_window, network.official_gate) == (4, 2, True)
    assert parser["min_component_share"] == 0
    train = read_config(files("train paper"), {"pretrained": False, "network_def#encoder": TINY_NETWORK["encoder"]})
    assert (train["batch_size"], train["num_ways"], train["max_epochs"] * train["epoch_length"]) == (1, 1, 101000)


@pytest.mark.filterwarnings("ignore")
def test_the_paper_trains_segments_and_evaluates(run_config, tmp_path):
    network = {"network_def": {**TINY_NETWORK, "foreground_gate": "official", "position_weight": 0.0, "align": True}}
    superpixel = {"superpixel": {"method": "felzenszwalb", "parameters": [{"min_size": 40}], "min_area_px": 16}}
    tiny = {"superpixel#parameters": superpixel["superpixel"]["parameters"], **network}
    run_config("train", "paper", **tiny, seed=1)
    weights = str(tmp_path / "models" / "model.pt")
    out = run_config("inference", "paper", ckpt_path=weights, output_dir=str(tmp_path / "seg"), **network)
    assert len(list((tmp_path / "seg").rglob("*_seg.nii.gz"))) == 1
    out = run_config("inference", "evaluate", "paper", ckpt_path=weights, protocol="official", folds=2, **network)
    assert json.loads((out / "summary.json").read_text())["protocol"] == "official"


@pytest.mark.filterwarnings("ignore")
def test_labels_are_wanted_by_name(run_config, tmp_path, phantom_dir):
    for labels in ("liver", ["liver"], ["Liver", 1], 1, "1"):
        inferer = small("inference", tmp_path, phantom_dir, labels=labels).get_parsed_content("inferer")
        assert inferer.support_encoder.labels == [1]
    assert isinstance(inferer, FewShotInferer)
    with pytest.raises(Exception, match="Failed to instantiate") as caught:
        small("inference", tmp_path, phantom_dir, labels=["livr"]).get_parsed_content("label_values")
    assert "liver (1), right kidney (2)" in str(caught.value.__cause__)
    out = run_config("inference", "evaluate", folds=2, labels=["spleen", "liver"])
    assert list(json.loads((out / "summary.json").read_text())["per_label"]) == ["spleen", "liver"]
    dataset = small("train", tmp_path, phantom_dir, exclude_labels=["spleen", 2]).get_parsed_content("train#dataset")
    assert dataset.exclude_labels == (4, 2)


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (
            "inference evaluate",
            ["--protcol", "volume"],
            "--protcol: the configs have no such id; did you mean protocol?",
        ),
        ("train", ["--seed", "None"], "--seed None: MONAI ignores None here; type --seed '$None' for null"),
        ("train", ["--seeed", "None"], "--seeed: the configs have no such id; did you mean seed?"),
        (
            "inference",
            ["--upsampling", "None"],
            "--upsampling None: MONAI ignores None here; type --upsampling False to switch it off",
        ),
    ],
    ids=["misspelt", "none", "misspelt none", "none for a switch"],
)
def test_the_command_ends_with_one_line_before_any_work(names, words, message, tmp_path):
    typed = ["-W", "ignore", "-m", "monai.bundle", *command(names, *words, "--output_dir", str(tmp_path / "out"))[1:]]
    done = subprocess.run([sys.executable, *typed], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == f"error: {message}"
    assert not (tmp_path / "out").exists()
