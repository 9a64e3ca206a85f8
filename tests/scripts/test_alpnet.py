"""The console command: what its options mean, what it refuses, and that it works where it is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts import alpnet

from ..conftest import ROOT, TINY_NETWORK


def parsed(*arguments):
    """Configs and ids that a command line means."""
    parser = alpnet.make_parser()
    options = parser.parse_args(alpnet.collect_ids(arguments, alpnet.options_of(parser, arguments[0])))
    files = alpnet.config_files(options.command, options.config)
    return [Path(file).stem for file in files], alpnet.overrides_of(options)


def command(*arguments, cwd=ROOT, program=(sys.executable, "-m", "scripts.alpnet"), **environment):
    """``alpnet`` in a process of its own."""
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MONAI_LABEL_STUDIES": "", **environment}
    return subprocess.run(
        [*map(str, program), *map(str, arguments)], cwd=cwd, env=settings, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def label(phantom_dir):
    return phantom_dir / "labelsTr" / "phantom_02.nii.gz"


@pytest.fixture
def image(phantom_dir):
    return phantom_dir / "imagesTr" / "phantom_02.nii.gz"


def test_scans_and_supports(phantom_dir, image, label):
    query = phantom_dir / "imagesTs" / "phantom_05.nii.gz"
    files, ids = parsed("segment", str(query), "--support", str(image), str(label), "-o", "out")
    assert files == ["inference"]
    assert ids["datalist"] == [{"image": str(query)}]
    assert ids["support"] == [{"image": str(image), "label": str(label)}]
    assert (ids["output_dir"], ids["bundle_root"]) == ("out", str(ROOT))
    assert ids["dataset_dir"] == str(phantom_dir)  # whose dataset.json names the label's values
    assert "device" not in ids
    two = ["--support", "a", "b", "--support", "c", "d"]
    by_name = parsed("segment", *two, str(query), "-o", "out", "--weights", "model_permissive")[1]["ckpt_path"]
    assert by_name == str(ROOT / "models" / "model_permissive.pt")
    ids = parsed("segment", *two, str(query), "-o", "out", "--device", "cpu", "--weights", "w.pt")[1]
    assert ids["support"] == [{"image": "a", "label": "b"}, {"image": "c", "label": "d"}]
    assert (ids["device"], ids["ckpt_path"]) == ("cpu", "w.pt")


def test_files_of_a_folder_that_are_not_read_are_named_with_what_to_do(image, label, tmp_path, capsys):
    shutil.copy(image, tmp_path / "a.nii.gz")
    for name in ("b.NII.gz", "c.nrrd", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    ids = parsed("segment", str(tmp_path), "--support", str(image), str(label), "-o", "out")[1]
    assert ids["datalist"] == [{"image": str(tmp_path / "a.nii.gz")}]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert told[0] == f"{tmp_path / 'b.NII.gz'}: is not read, its suffix must be in lower case; rename it"
    assert told[1].startswith(f"{tmp_path / 'c.nrrd'}: is not read, only NIfTI is; convert it with `")
    assert f"--src {tmp_path}" in told[1]


def test_a_scan_to_complete_is_its_own_support(image, label):
    files, ids = parsed("complete", str(image), str(label), "--support", "a", "b", "-o", "out")
    assert files == ["inference"]
    own = {"image": str(image), "label": str(label), "slices": "labelled"}
    assert ids["support"] == [own, {"image": "a", "label": "b"}]
    assert ids["datalist"] == [{"image": str(image)}]


def test_drawn_slices_of_a_completed_scan_stay(image, label, tiny_weights, tmp_path):
    file = nib.load(label)
    whole = np.asarray(file.dataobj)
    kept = np.flatnonzero((whole > 0).any(axis=(0, 1)))[::3]
    part = np.zeros_like(whole)
    part[..., kept] = whole[..., kept]
    nib.save(nib.Nifti1Image(part, file.affine), tmp_path / "part.nii.gz")
    settings = ["--network_def", str(TINY_NETWORK), "--image_size", "[64,64]", "--weights", str(tiny_weights)]
    done = command("complete", image, tmp_path / "part.nii.gz", "-o", tmp_path / "out", "--device", "cpu", *settings)
    assert done.returncode == 0, done.stderr
    found = np.asarray(nib.load(tmp_path / "out" / "phantom_02" / "phantom_02_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(found[..., kept], whole[..., kept])
    assert (found > 0).any(axis=(0, 1)).sum() > len(kept)


def test_of_a_folder_all_scans_but_the_supports(phantom_dir, image, label):
    support = ["--support", str(image), str(label), "-o", "out"]
    ids = parsed("segment", str(phantom_dir / "imagesTr"), *support)[1]
    assert sorted(Path(entry["image"]).name[8:10] for entry in ids["datalist"]) == ["01", "03", "04"]
    assert [Path(e["image"]).parent.name for e in parsed("segment", str(phantom_dir), *support)[1]["datalist"]] == [
        "imagesTs"
    ]
    assert len(parsed("segment", str(image), *support)[1]["datalist"]) == 1  # who names it gets it
    assert len(parsed("segment", str(image), str(image.parent), *support)[1]["datalist"]) == 4


@pytest.mark.parametrize("name", ["02 label.nii.gz", "mask_02.nii.gz", "z.nii.gz"])
def test_label_maps_in_a_folder_are_no_scans(tmp_path, phantom_dir, image, label, name, capsys):
    other = phantom_dir / "labelsTr" / "phantom_01.nii.gz"
    shutil.copy(image, tmp_path / "b.nii.gz")
    shutil.copy(label, tmp_path / "a.nii.gz")  # the support's own, whatever its name
    shutil.copy(other, tmp_path / name)
    support = ["--support", str(image), str(tmp_path / "a.nii.gz"), "-o", "out"]
    assert parsed("segment", str(tmp_path), *support)[1]["datalist"] == [{"image": str(tmp_path / "b.nii.gz")}]
    assert f"left aside as label maps: {name}; give the file itself" in capsys.readouterr().out
    assert len(parsed("segment", str(tmp_path / name), *support)[1]["datalist"]) == 1


def test_a_data_set_brings_its_own_support(phantom_dir):
    ids = parsed("segment", str(phantom_dir), "-o", "out")[1]
    assert ids["dataset_dir"] == str(phantom_dir)
    assert not {"support", "datalist"} & set(ids)
    with pytest.raises(ValueError, match="no support: give a labelled scan.* which alpnet prepare makes of a folder"):
        parsed("segment", str(phantom_dir / "imagesTr"), "-o", "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("liver,spleen", ["liver", "spleen"]), ("1,4", [1, 4]), ("liver", ["liver"]), ("4", [4]),
        ("[1, 4]", [1, 4]), ("['liver', 4]", ["liver", 4]), ("left kidney, 2", ["left kidney", 2]),
    ],
)  # fmt: skip
def test_labels_by_name_or_by_value(phantom_dir, text, expected):
    assert parsed("segment", str(phantom_dir), "-o", "out", "--labels", text)[1]["labels"] == expected


@pytest.mark.parametrize(
    "given",
    [
        ["--num_slices", "3"], ["--num_slices=3"], ["--set", "num_slices=3"], ["--set=num_slices=3"],
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_every_id_is_an_option(phantom_dir, given, first):
    plain = [str(phantom_dir), "-o", "out"]
    ids = parsed("segment", *([*given, *plain] if first else [*plain, *given]))[1]
    assert ids["num_slices"] == 3
    assert ids["dataset_dir"] == str(phantom_dir)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-0.5", -0.5), ("[1, 2]", [1, 2]), ("True", True), ("false", False), ("None", None), ("null", None),
        ("$@a + 1", "$@a + 1"), ("a=b", "a=b"), ("word", "word"), ("{'x': 1}", {"x": 1}), ("", ""),
    ],
)  # fmt: skip
def test_values_are_read_as_python_reads_them(phantom_dir, text, value):
    for given in ([f"--a#b={text}"], ["--set", f"a::b={text}"]):
        assert parsed("segment", str(phantom_dir), "-o", "out", *given)[1]["a#b"] == value


def test_training_and_evaluation(phantom_dir, image):
    files, ids = parsed("train", str(phantom_dir), "-o", "run", "--epochs", "3")
    assert files == ["train"]
    assert (ids["dataset_dir"], ids["output_dir"], ids["max_epochs"]) == (str(phantom_dir), "run", 3)
    assert ids["ckpt_dir"] == os.path.join("run", "models")
    assert parsed("train", str(image), "-o", "run")[1]["images"] == [{"image": str(image)}]
    files, ids = parsed("evaluate", str(phantom_dir), "-o", "run", "--protocol", "official", "--fold", "2")
    assert files == ["inference", "evaluate"]
    assert (ids["protocol"], ids["fold"], ids["dataset_dir"]) == ("official", 2, str(phantom_dir))
    assert "protocol" not in parsed("evaluate", str(phantom_dir), "-o", "run")[1]


def test_overlays_are_files_or_those_of_the_bundle(phantom_dir, tmp_path):
    own = tmp_path / "mine.json"
    own.write_text("{}")
    given = ["segment", str(phantom_dir), "-o", "out", "--config", "abdomen_ct", "--config", str(own)]
    assert parsed(*given)[0] == ["inference", "abdomen_ct", "mine"]
    with pytest.raises(FileNotFoundError, match=r"abdomen: no such config; give a file or one of abdomen_ct, "):
        parsed("segment", str(phantom_dir), "-o", "out", "--config", "abdomen")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], ""),
        (["sgment"], "argument COMMAND: invalid choice: 'sgment'"),
        (["segment"], "the following arguments are required: -o/--output, SCAN"),
        (["segment", "x.nii", "-o", "out", "--support", "a.nii"], "argument --support: expected 2 arguments"),
        (["segment", "x.nii", "-o", "out", "--num_slices"], "--num_slices: no value; give --num_slices VALUE"),
        (["segment", "x.nii", "-o", "out", "--num_slices", "--device", "cpu"], "--num_slices: no value"),
        (["segment", "x.nii", "-o", "out", "--set", "num_slices"], "--set num_slices: write --set ID=VALUE"),
        (["segment", "/no/x.nii", "-o", "out"], "/no/x.nii: no such scan or folder"),
        (["segment", __file__, "-o", "out"], "no support: give a labelled scan, --support IMAGE LABEL, or a data set"),
        (["train", "x.nii", "-o", "out", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["evaluate", "/no/data", "-o", "out"], "/no/data: no such data set"),
        (["segment", "x.nii", "-o", "out", "--config", "nothing"], "nothing: no such config; give a file or one of"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_in_one_line(tmp_path, arguments, line):
    done = command(*arguments, PYTHONPATH=str(ROOT), cwd=tmp_path)
    if not arguments:
        assert done.stdout.startswith("usage: alpnet")
        return
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"error: {line}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["segmnt"], "argument COMMAND: invalid choice: 'segmnt'; did you mean segment?"),
        (["prepair", "folder"], "argument COMMAND: invalid choice: 'prepair'; did you mean prepare?"),
        (["--hepl"], "--hepl: no such option; did you mean --help?"),
        (["segment", "a", "-o", "r", "--suport", "b", "c"], "--suport: no such option; did you mean --support?"),
        (["segment", "a", "-o", "r", "--suport"], "--suport: no such option; did you mean --support?"),
        (["train", "a", "-o", "r", "--epoch", "3"], "--epoch: no such option; did you mean --epochs?"),
        (["train", "a", "-o", "r", "--seeed=3"], "--seeed: no such option; did you mean --seed?"),
        (["segment", "a", "-o", "r", "--registratoin#reach", "3", "4"],
         "--registratoin#reach: no such option; did you mean --registration?"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)  # fmt: skip
def test_a_misspelt_name_is_answered_by_the_one_that_was_meant(arguments, line, capsys):
    with pytest.raises(SystemExit) as end:
        alpnet.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_what_a_config_or_the_line_itself_refers_to_is_no_misspelling(tmp_path):
    plain = ["train", "a", "-o", "r"]
    overlay = tmp_path / "mine.json"
    for content in ('{"epoch": 3}', '{"max_epochs": "$@epoch + 1"}', '{"+_meanings_": {"epoch": "mine"}}'):
        overlay.write_text(content)
        assert alpnet.parse([*plain, "--config", str(overlay), "--epoch", "5"]).set == ["epoch=5"]
    assert alpnet.parse([*plain, "--epoch", "5", "--max_epochs", "@epoch"]).set == ["epoch=5", "max_epochs=@epoch"]
    overlay.with_suffix(".yaml").write_text("epoch: 3")  # which MONAI reads
    assert alpnet.parse([*plain, f"--config={overlay.with_suffix('.yaml')}", "--epoch", "5"]).set == ["epoch=5"]
    assert alpnet.parse([*plain, "--finalize", "[]"]).set == ["finalize=[]"]


@pytest.mark.parametrize("name", ["options", "preview", "convert_weights"])
def test_a_script_is_called_as_it_was_typed(name):
    done = command(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"alpnet {name}" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["segment"], ["train"], ["evaluate"]])
def test_help_comes_at_once(arguments):
    start = time.process_time(), os.times().children_user
    done = command(*arguments, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: alpnet")
    assert os.times().children_user - start[1] < 2
    assert command("--version").stdout.startswith("alpnet ")


def test_a_run_from_another_directory(tmp_path, image, label, phantom_dir, tiny_weights):
    """One line for an id that is wrong, then a run to its end."""
    common = ["segment", phantom_dir / "imagesTs", "--support", image, label, "-o", "out", "--device", "cpu"]
    common += ["--weights", tiny_weights, "--image_size", "[64, 64]", "--network_def", str(TINY_NETWORK)]
    program = (sys.executable, ROOT / "scripts" / "alpnet.py")
    done = command(*common, cwd=tmp_path, program=program)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    assert "input summary" not in done.stdout
    assert "\r" not in done.stdout
    assert re.search(r"^case +seconds +liver +right kidney", done.stdout, re.MULTILINE)
    assert (tmp_path / "out" / "phantom_05" / "phantom_05_seg.nii.gz").is_file()
    again = command(*common, cwd=tmp_path, program=program)
    assert "all 1 cases were finished before: nothing to do" in again.stdout


@pytest.mark.slow
def test_the_wheel_works_beside_other_packages_of_the_same_names(tmp_path, image, label, phantom_dir):
    source = tmp_path / "source"
    for part in (
        "bundle",
        "configs",
        "models",
        "scripts",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "docs/data_license.txt",
    ):
        target = source / part
        target.parent.mkdir(parents=True, exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__")
        (
            shutil.copytree(ROOT / part, target, ignore=ignored)
            if (ROOT / part).is_dir()
            else shutil.copy(ROOT / part, target)
        )
    pip = [sys.executable, "-m", "pip", "-q"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), "."]
    built = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    folder = next((environment / "lib").iterdir()) / "site-packages"
    (folder / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = tmp_path.glob("*.whl")
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    mine = {path.name for path in folder.iterdir() if "dist-info" not in path.name}
    assert mine == {"fewshot_alpnet", "dependencies.pth"}
    elsewhere = tmp_path / "elsewhere"
    for name in ("bundle", "scripts"):  # a project of the user's with packages of the same names
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text("raise ImportError('not mine')")
    done = command(
        "segment", phantom_dir / "imagesTs", "--support", image, label, "-o", "out", "--labels", "1,4",
        cwd=elsewhere, program=[environment / "bin" / "alpnet"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    result = nib.load(elsewhere / "out" / "phantom_05" / "phantom_05_seg.nii.gz")
    assert set(np.unique(np.asarray(result.dataobj))) <= {0, 1, 4}
    assert json.loads((elsewhere / "out" / "run.json").read_text())["command"].startswith("alpnet segment ")
    page = command("report", "out", cwd=elsewhere, program=[environment / "bin" / "alpnet"])
    assert page.returncode == 0, page.stderr[-2000:]
    assert (elsewhere / "out" / "report.html").is_file()
