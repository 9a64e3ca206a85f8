"""The list of options is complete, none is stale, and help comes at once in every script."""

from __future__ import annotations

import json
import subprocess
import sys

import fire
import pytest

from bundle.ids import MEANINGS, walk
from bundle.options import check_options
from scripts import options
from scripts.command import command

from ..conftest import ROOT

CONFIGS = ROOT / "configs"
SCRIPTS = ["benchmark", "convert_weights", "export", "next_sample", "options", "phantom", "preview", "report", "gpu"]
COMMANDS = [
    *((name,) for name in SCRIPTS),
    *(("benchmark", part) for part in ("accuracy", "transfer", "volumes", "speed", "sensitivity", "all", "tables")),
    *(("convert_weights", part) for part in ("official", "torchvision", "efficientnet_lite")),
    *(("export", part) for part in ("zoo", "monailabel")),
    *(("gpu", part) for part in ("run", "measure", "pack")),
    *(("preview", part) for part in ("superpixels", "episodes", "overlay", "triptych", "prototypes", "curves")),
]


@pytest.mark.parametrize("config", options.CONFIGS)
def test_every_id_has_a_meaning_and_no_meaning_is_stale(config):
    content = options.read(config)
    meanings = content.pop(MEANINGS)
    ids = {path for path, _ in walk(content)}
    assert set(content) - set(meanings) == set()
    assert set(meanings) - ids == set()
    for key, told in meanings.items():
        text = options.meaning(told)
        assert 5 < len(text) < 200, key
        assert not text.endswith("."), key


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_an_overlay_tells_what_its_new_ids_mean(path):
    content = json.loads(path.read_text())
    if path.name in ("metadata.json", "mlflow.json"):
        return
    bases = {key for name in ("train", "inference", "evaluate") for key in options.read_file(name)}
    told = content.get(f"+{MEANINGS}", {})
    new = {key.lstrip("+") for key in content if "#" not in key} - bases - {"+" + MEANINGS}
    assert new <= set(told)


@pytest.mark.parametrize("config", options.CONFIGS)
def test_every_example_is_accepted_by_the_check(config):
    content = options.read(config)
    files = [CONFIGS / f"{name}.json" for name in options.CONFIGS[config]]
    seen = 0
    for key, told in content.pop(MEANINGS).items():
        if isinstance(told, list):
            words = [f"--{key}", str(told[1])]
            given = fire.Fire(lambda **ids: ids, command=words, serialize=lambda _: None)
            assert given[key] is not None
            check_options(files, given)
            seen += 1
    assert seen > 4


def test_the_list_names_every_id_with_its_default_and_an_example():
    for config in options.CONFIGS:
        text = options.options(config)
        own = set(options.read(config)) - (set(options.read("inference")) if config == "evaluate" else set())
        for key in own - {MEANINGS}:
            assert f"\n{key}\n    " in text, key
        assert max(map(len, text.splitlines())) <= 160
    train = options.options("train")
    assert "max_epochs\n    epochs\n    default 5; for example --max_epochs 20\n" in train
    assert options.options().count("Settings") == 3


def test_one_id_is_told_with_the_arguments_of_its_class():
    text = options.options("inference", "registration")
    assert "--registration False" in text
    assert "registration#reach\n    support slices above and below that are looked at" in text
    assert "default 3; for example --registration#reach 3" in text
    assert "--superpixel#method slic" in options.options("train", "superpixel")
    assert options.options("inference", "registration::reach").startswith("registration#reach\n    support slices")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("inferense",), r"did you mean inference\?"),
        (("train", "superpixl"), r"no id 'superpixl'; did you mean superpixel\?"),
        ((None, "max_epohcs"), r"no config has an id 'max_epohcs'; did you mean max_epochs\?"),
        ((None, "registration#reech"), r"'registration#reech'; did you mean registration#reach\?"),
    ],
)
def test_unknown_names_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        options.options(*given)


def test_a_misspelt_part_is_refused_on_the_command_line():
    with pytest.raises(ValueError, match=r"no id 'registration#reech'; did you mean registration#reach\?"):
        command(options.options, "scripts.options", ["inference", "--id", "registration#reech"])


def test_an_id_is_told_for_the_configs_that_have_it():
    assert options.options(id="max_epochs") == "train:\n" + options.options("train", "max_epochs")
    assert options.options(id="image_size").startswith("inference, train, evaluate:\nimage_size\n")
    apart = options.options(id="save_confidence").split("\n\n")
    assert [text.partition("\n")[0] for text in apart] == ["inference:", "evaluate:"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_comes_at_once_and_imports_nothing_heavy(words):
    """What takes seconds is the import of PyTorch and MONAI, so that a loaded machine does not decide this."""
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module('scripts.' + sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'monai', 'skimage', 'matplotlib'} & set(sys.modules)\n"
    )
    line = [sys.executable, "-c", code, words[0], *words[1:], "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "SYNOPSIS" in done.stdout + done.stderr
    assert "DESCRIPTION" in done.stdout + done.stderr or "COMMANDS" in done.stdout + done.stderr
