from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bundle.data.phantom import write_phantom
from scripts import preview

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return str(write_phantom(tmp_path_factory.mktemp("data"), 2, shape=(48, 48, 8), spacing_mm=(7.0, 7.0, 20.0)))


def is_picture(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.format == "PNG" and min(picture.size) > 200 and np.asarray(picture).std() > 10


def test_superpixels_follow_the_config_and_overrides(dataset, tmp_path):
    size = {"parameters": {"min_size": 40, "scale": 1, "sigma": 1}, "min_area_px": 4, "method": "felzenszwalb"}
    path = preview.superpixels(dataset, output=str(tmp_path / "a.png"), image_size=[64, 64], superpixel=size)
    assert is_picture(path)
    options = {"overrides": {"image_size": [64, 64]}}
    other = preview.superpixels(dataset, output=str(tmp_path / "b.png"), superpixel=size, case="phantom_02", **options)
    assert other.read_bytes() != path.read_bytes()


def test_episodes_are_repeatable(dataset, tmp_path):
    options = {"image_size": [64, 64], "superpixel#min_area_px": 8, "count": 2}
    one, two, three = (
        preview.episodes(dataset, output=str(tmp_path / f"{n}.png"), seed=seed, **options)
        for n, seed in enumerate((1, 1, 2))
    )
    assert is_picture(one)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != three.read_bytes()


def test_overlay_and_triptych_from_files(dataset, tmp_path):
    image, label = f"{dataset}/imagesTr/phantom_01.nii.gz", f"{dataset}/labelsTr/phantom_01.nii.gz"
    assert is_picture(preview.overlay(dataset, "phantom_01", prediction=label, output=str(tmp_path / "a.png")))
    path = preview.triptych(image, label, image, label, dataset_dir=dataset, output=str(tmp_path / "b.png"))
    assert is_picture(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: preview.superpixels(), "set --dataset_dir"),
        (lambda d: preview.superpixels("/nowhere"), "no such data set"),
        (lambda d: preview.superpixels(d, case="nobody"), "no such case"),
        (lambda d: preview.superpixels(d, superpixl=1), "did you mean superpixel"),
        (lambda d: preview.superpixels(d, config_file="configs/none.json"), "none.json: no such config"),
        (lambda d: preview.superpixels(d, overrides=3), "must be a dictionary"),
        (lambda d: preview.overlay(image=f"{d}/imagesTr/phantom_01.nii.gz"), "nothing to draw"),
        (lambda d: preview.overlay(d, run_dir=d), "no predictions"),
        (lambda d: preview.prototypes(d, ckpt_path="/nowhere.pt"), "no such weights"),
        (lambda d: preview.curves(d), "no TensorBoard scalars"),
    ],
)
def test_bad_input_says_what_is_wrong(dataset, call, message):
    with pytest.raises((ValueError, TypeError, KeyError, OSError), match=message):
        call(dataset)


def test_command_line_ends_with_one_line_and_a_status():
    command = [sys.executable, "-m", "scripts.preview", "overlay", "--dataset_dir", "/nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: /nowhere: no such data set; check dataset_dir"
