"""What a user sees when the input is wrong: one line that names the file or argument and the remedy.

Each kind is run as the command line runs it, in this process; the root cause is what `bundle.errors` prints last. Two
kinds run in a process of their own, for the exit status and the last line itself.
"""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.errors import root_cause

from .configs.test_run import NETWORK, bundle_command
from .conftest import ROOT, make_tiny, save_nifti

pytestmark = pytest.mark.filterwarnings("ignore")
SUPPORT = [{"image": "imagesTr/phantom_02.nii.gz", "label": "labelsTr/phantom_02.nii.gz"}]


class Folder:
    """A copy of the phantom that bad input spoils: ``image`` and ``label`` are the support, ``query`` is segmented."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.query = root / "imagesTs" / "phantom_05.nii.gz"
        self.image = root / "imagesTr" / "phantom_02.nii.gz"
        self.label = root / "labelsTr" / "phantom_02.nii.gz"
        self.weights = root / "weights.pt"

    def rewrite(self, path, change, dtype=None):
        stored = nib.load(path)
        values = change(np.array(stored.dataobj).astype(np.float32))
        save_nifti(path, values.astype(dtype) if dtype else values, stored.affine)


@pytest.fixture
def folder(tmp_path, phantom_dir):
    shutil.copytree(phantom_dir, tmp_path / "data")
    return Folder(tmp_path / "data")


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def with_nan(values):
    values[3, 3, 3] = np.nan
    return values


def with_inf(values):
    values[3, 3, 3] = np.inf
    return values


def rgb(path):
    stored = nib.load(path)
    colors = np.zeros(stored.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    save_nifti(path, colors, stored.affine)


def save_weights(folder, content):
    torch.save(content, folder.weights)
    return {"ckpt_path": str(folder.weights)}


def other_network(folder):
    state = make_tiny().state_dict()
    return save_weights(folder, {key.replace("layers", "blocks"): value for key, value in state.items()})


def other_shape(folder):
    return save_weights(
        folder, {key: value[:1] if value.ndim else value for key, value in make_tiny().state_dict().items()}
    )


def do(action, **overrides):
    """Spoil the folder; the run gets these overrides."""

    def spoil(folder):
        made = action(folder)
        return {**overrides, **(made if isinstance(made, dict) else {})}

    return spoil


nothing = do(lambda f: None)
INFERENCE = {
    "support image is missing": (
        do(lambda f: f.image.unlink()),
        r"phantom_02.nii.gz: no such support image; give a path",
    ),
    "support label is missing": (
        do(lambda f: f.label.unlink()),
        r"phantom_02.nii.gz: no such support label; give a path",
    ),
    "query is missing": (
        do(lambda f: None, datalist=[{"image": "/no/such/q.nii.gz"}]),
        r"/no/such/q.nii.gz: no such file or directory; check the path",
    ),
    "no queries": (do(lambda f: f.query.unlink()), r"data: no query images; put them into imagesTs or imagesTr"),
    "no data set": (
        do(lambda f: shutil.rmtree(f.root / "imagesTs"), dataset_dir="/no/such/folder"),
        r"(no such support image|/no/such/folder)",
    ),
    "support is empty": (do(lambda f: None, support=[]), r"no support: label at least one scan and pass it"),
    "support without label": (
        do(lambda f: None, support=[{"image": SUPPORT[0]["image"]}]),
        r"a support entry needs the keys 'image' and 'label', got \{'image'",
    ),
    "support key misspelt": (
        do(lambda f: None, support=[{"image": SUPPORT[0]["image"], "lable": SUPPORT[0]["label"]}]),
        r"needs the keys 'image' and 'label', got .*'lable'",
    ),
    "support is one entry": (do(lambda f: None, support=SUPPORT[0]), r"support must be a list of .*, got \{'image'"),
    "support is a string": (do(lambda f: None, support="a.nii.gz"), r"support must be a list of .*, got 'a.nii.gz'"),
    "support image of zero bytes": (
        do(lambda f: f.image.write_bytes(b"")),
        r"phantom_02.nii.gz: cannot be read as NIfTI",
    ),
    "truncated support image": (do(lambda f: truncate(f.image)), r"phantom_02.nii.gz: cannot be read to its end"),
    "truncated support label": (
        do(lambda f: truncate(f.label)),
        r"labelsTr/phantom_02.nii.gz: cannot be read to its end",
    ),
    "support image is text": (do(lambda f: f.image.write_text("text")), r"phantom_02.nii.gz: cannot be read as NIfTI"),
    "zipped text": (
        do(lambda f: f.image.write_bytes(gzip.compress(b"text"))),
        r"phantom_02.nii.gz: cannot be read as NIfTI",
    ),
    "label without foreground": (
        do(lambda f: f.rewrite(f.label, np.zeros_like, np.uint8)),
        r"labelsTr/phantom_02.nii.gz: has no foreground, every voxel is 0; label at least one structure",
    ),
    "label of another shape": (
        do(lambda f: f.rewrite(f.label, lambda v: v[:, :, :-1], np.uint8)),
        r"labelsTr/phantom_02.nii.gz: label of shape \(48, 48, 11\) does not fit the image .*\(48, 48, 12\)",
    ),
    "label of fractions": (
        do(lambda f: f.rewrite(f.label, lambda v: v / 2)),
        r"labelsTr/phantom_02.nii.gz: label values must be whole numbers from 0, got \[0.5",
    ),
    "negative label": (
        do(lambda f: f.rewrite(f.label, lambda v: -v, np.int16)),
        r"label values must be whole numbers from 0, got \[-4.0",
    ),
    "label with NaN": (
        do(lambda f: f.rewrite(f.label, with_nan)),
        r"label values must be whole numbers from 0, got \[nan",
    ),
    "wanted labels are not in the support": (
        do(lambda f: None, labels=[8, 9]),
        r"none of the wanted label values \[8, 9\]",
    ),
    "support image is 2D": (
        do(lambda f: f.rewrite(f.image, lambda v: v[..., 0])),
        r"phantom_02.nii.gz: expected one 3D",
    ),
    "support image is 4D": (
        do(lambda f: f.rewrite(f.image, lambda v: np.stack([v, v], -1))),
        r"phantom_02.nii.gz: expected one 3D volume, got 4 spatial axes",
    ),
    "support image with NaN": (
        do(lambda f: f.rewrite(f.image, with_nan)),
        r"phantom_02.nii.gz: contains NaN or infinite",
    ),
    "constant support image": (
        do(lambda f: f.rewrite(f.image, lambda v: v * 0 + 3)),
        r"phantom_02.nii.gz: every voxel is 3; the file holds no image",
    ),
    "support image in color": (do(lambda f: rgb(f.image)), r"phantom_02.nii.gz: voxels must be single real numbers"),
    "query is 2D": (
        do(lambda f: f.rewrite(f.query, lambda v: v[..., 0])),
        r"phantom_05.nii.gz: expected one 3D volume, got 2 spatial axes \(48, 48\); convert 2D",
    ),
    "query is 4D": (
        do(lambda f: f.rewrite(f.query, lambda v: np.stack([v, v], -1))),
        r"phantom_05.nii.gz: expected one 3D volume, got 4 spatial axes \(48, 48, 12, 2\).*split 4D series",
    ),
    "query with NaN": (
        do(lambda f: f.rewrite(f.query, with_nan)),
        r"phantom_05.nii.gz: contains NaN or infinite values",
    ),
    "query with infinity": (do(lambda f: f.rewrite(f.query, with_inf)), r"phantom_05.nii.gz: contains NaN or infinite"),
    "constant query": (do(lambda f: f.rewrite(f.query, np.zeros_like)), r"phantom_05.nii.gz: every voxel is 0"),
    "query in color": (do(lambda f: rgb(f.query)), r"phantom_05.nii.gz: voxels must be single real numbers"),
    "query of zero bytes": (do(lambda f: f.query.write_bytes(b"")), r"phantom_05.nii.gz: cannot be read as NIfTI"),
    "truncated query": (do(lambda f: truncate(f.query)), r"phantom_05.nii.gz: cannot be read to its end"),
    "no weights": (do(lambda f: None, ckpt_path="/no/model.pt"), r"/no/model.pt: no such weights; train first, or set"),
    "weights are text": (
        do(lambda f: f.weights.write_text("no weights") and {"ckpt_path": str(f.weights)}),
        r"weights.pt' is no checkpoint that torch.load\(weights_only=True\) can read",
    ),
    "weights of another network": (other_network, r"weights .*weights.pt' do not fit ALPNet: .*; build the network"),
    "weights of another shape": (other_shape, r"weights .*weights.pt' do not fit ALPNet: .*; build the network"),
    "size that the stride does not divide": (
        do(lambda f: None, image_size=[62, 64]),
        r"multiples of the stride 4, got 62",
    ),
}
EVALUATION = {
    "unknown protocol": (do(lambda f: None, protocol="paper"), r"protocol must be one of .*, got 'paper'"),
    "fold out of range": (do(lambda f: None, fold=2), r"fold must be in 0..1 with at least 4 cases, got 2 of 4"),
    "too few scans for the folds": (
        do(lambda f: None, folds=5),
        r"fold must be in 0..4 with at least 10 cases, got 0 of 4",
    ),
    "support index out of range": (do(lambda f: None, support_index=7), r"support_index must be in 0..2, got 7"),
    "no names of the labels": (
        do(lambda f: (f.root / "dataset.json").unlink()),
        r"no labels to evaluate; name them in",
    ),
    "broken dataset.json": (
        do(lambda f: (f.root / "dataset.json").write_text("{")),
        r"dataset.json: 'labels' must map",
    ),
    "truth of another shape": (
        do(lambda f: f.rewrite(f.root / "labelsTr/phantom_01.nii.gz", lambda v: v[:, :, :-1], np.uint8)),
        r"phantom_01.nii.gz: label of shape \(48, 48, 11\) does not fit",
    ),
}
TRAINING = {
    "no images": (
        do(lambda f: shutil.rmtree(f.root / "imagesTr") or shutil.rmtree(f.root / "imagesTs")),
        r"no training images; point",
    ),
    "excluded labels without labels": (
        do(lambda f: shutil.rmtree(f.root / "labelsTr"), exclude_labels=[1]),
        r"phantom_0\d.nii.gz: exclude_labels needs a label of every training image, this one has none",
    ),
    "everything is excluded": (
        do(lambda f: None, exclude_labels=[0]),
        r"no usable slice in \d scans: .*outside the labels \[0\]",
    ),
    "no superpixel is large enough": (
        do(lambda f: None, **{"superpixel#min_area_px": 100000}),
        r"no usable slice in \d scans: none has a superpixel of 100000 pixels",
    ),
    "image with NaN": (
        do(lambda f: f.rewrite(f.image, with_nan)),
        r"phantom_02.nii.gz: contains NaN or infinite values",
    ),
    "constant image": (do(lambda f: f.rewrite(f.image, np.ones_like)), r"phantom_02.nii.gz: every voxel is 1"),
    "4D image": (
        do(lambda f: f.rewrite(f.image, lambda v: np.stack([v, v], -1))),
        r"phantom_02.nii.gz: (expected one 3D volume|expected 1 channel)",
    ),
    "truncated image": (do(lambda f: truncate(f.image)), r"phantom_02.nii.gz"),
    "pretrained weights are missing": (
        do(lambda f: None, pretrained="/no/weights.pt"),
        r"no weights at '/no/weights.pt'",
    ),
    "unknown superpixel method": (
        do(lambda f: None, **{"superpixel#method": "watershed"}),
        r"superpixel method must be one of .*, got 'watershed'",
    ),
}
ALL = [
    pytest.param(names, *case, id=f"{names[-1]}: {what}")
    for names, table in ((("inference",), INFERENCE), (("inference", "evaluate"), EVALUATION), (("train",), TRAINING))
    for what, case in table.items()
]


def test_there_are_many_kinds():
    assert len(ALL) >= 50


@pytest.mark.parametrize(("names", "spoil", "line"), ALL)
def test_bad_input_ends_with_one_clear_line(run_config, folder, tmp_path, names, spoil, line):
    settings = {"dataset_dir": str(folder.root)}
    if names == ("inference",):
        settings["support"] = SUPPORT
    elif "evaluate" in names:
        settings |= {"folds": 2, "fold": 0}
    overrides = spoil(folder)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the text below is what matters
        run_config(*names, **{**settings, **overrides})
    text = " ".join(str(root_cause(caught.value)).split())
    assert re.search(line, text), text
    assert len(text) < 500
    assert not list((tmp_path / "out").rglob("*_seg.nii.gz"))  # nothing is left that looks like a result
    assert not list((tmp_path / "out").rglob("summary.json"))


@pytest.mark.parametrize("kind", ["label without foreground", "weights are text"])
def test_last_line_and_exit_status_of_the_command(folder, tmp_path, kind, tiny_weights):
    spoil, line = INFERENCE[kind]
    overrides = {"ckpt_path": str(tiny_weights), "support": SUPPORT, "dataset_dir": folder.root, **spoil(folder)}
    overrides |= {"network_def": NETWORK, "output_dir": tmp_path / "out", "device": "cpu"}
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", value)]
    done = bundle_command("run", "--config_file", ROOT / "configs/inference.json", *arguments)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(line, last), last
