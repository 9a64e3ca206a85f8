"""What a user sees when the input is wrong: one line that names the file or argument and the remedy.

Each kind is run as the command line runs it, in this process; the root cause is what `bundle.errors` prints last. Two
kinds run in a process of their own, for the exit status and the last line itself.

`WRITE_TABLE=1 python -m pytest tests/test_bad_input.py` writes all lines into docs/trust.md.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.errors import explain
from scripts.check import check

from .configs.test_run import NETWORK, bundle_command
from .conftest import ROOT, make_tiny, save_nifti

pytestmark = pytest.mark.filterwarnings("ignore")
SUPPORT = [{"image": "imagesTr/phantom_02.nii.gz", "label": "labelsTr/phantom_02.nii.gz"}]
EVERY_SCAN = [
    {kind: f"{folder}/phantom_0{n}.nii.gz" for kind, folder in (("image", "imagesTr"), ("label", "labelsTr"))}
    for n in (1, 2, 3, 4)
]


class Folder:
    """A copy of the phantom that bad input spoils: ``image`` and ``label`` are the support, ``query`` is segmented."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.monkeypatch = monkeypatch
        self.query = root / "imagesTs" / "phantom_05.nii.gz"
        self.image = root / "imagesTr" / "phantom_02.nii.gz"
        self.label = root / "labelsTr" / "phantom_02.nii.gz"
        self.weights = root / "weights.pt"

    def rewrite(self, path, change, dtype=None):
        stored = nib.load(path)
        values = change(np.array(stored.dataobj).astype(np.float32))
        save_nifti(path, values.astype(dtype) if dtype else values, stored.affine)

    def place(self, path, affine):
        """Give a file another affine, ``affine(old)``."""
        stored = nib.load(path)
        changed = affine(stored.affine.copy())
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), changed, stored.header), path)

    def header(self, path, **fields):
        """Change fields of the header as they are stored, past nibabel's checks."""
        data = bytearray(gzip.decompress(path.read_bytes()))
        header = nib.Nifti1Header(bytes(data[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        data[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(data)))

    def json(self, **changes):
        file = self.root / "dataset.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path, phantom_dir, monkeypatch):
    shutil.copytree(phantom_dir, tmp_path / "data")
    return Folder(tmp_path / "data", monkeypatch)


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


def negative_spacing(path):
    def spoil(folder):
        folder.header(getattr(folder, path), pixdim=[1, -7, 7, 14, 0, 0, 0, 0], sform_code=0, qform_code=0)

    return spoil


def scale(factor):
    return lambda affine: affine @ np.diag([factor] * 3 + [1])


def shift(affine):
    affine[:3, 3] += 40
    return affine


def flat(affine):
    affine[:3, 2] = affine[:3, 1]
    return affine


def link(folder, target):
    folder.query.unlink()
    folder.query.symlink_to(target)


def copy(source, target):
    target.parent.mkdir(exist_ok=True)
    shutil.copy(source, target)


def full_disk(folder):
    usage = shutil.disk_usage(folder.root)._replace(free=1000)
    folder.monkeypatch.setattr("bundle.data.preflight.shutil.disk_usage", lambda _: usage)


def disk_that_fills(folder):
    def save(image, path):
        open(path, "wb").write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.monkeypatch.setattr("monai.data.image_writer.nib.save", save)


def read_only(folder):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    folder.monkeypatch.setattr("bundle.data.preflight.replacing", refuse)


class Malicious:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


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
        r"/no/such/folder: no such folder; set dataset_dir to your data set",
    ),
    "data set is a file": (
        lambda f: {"dataset_dir": str(f.image), "support": []},
        r"phantom_02.nii.gz: dataset_dir must be a folder, not a file",
    ),
    "data set without imagesTr": (
        lambda f: (
            (f.root / "imagesTs").rename(f.root / "pictures") and shutil.rmtree(f.root / "imagesTr") or {"support": []}
        ),
        r"data: no folder imagesTr and no NIfTI files; a data set has imagesTr/\*.nii.gz",
    ),
    "data set is empty": (
        lambda f: shutil.rmtree(f.root) or f.root.mkdir() or {"support": []},
        r"data: the folder is empty; put images into .*imagesTr",
    ),
    "imagesTr is empty": (
        lambda f: [p.unlink() for d in ("imagesTr", "imagesTs") for p in (f.root / d).iterdir()] and {"support": []},
        r"imagesTr: no images; put NIfTI files",
    ),
    "no scan is labelled": (
        lambda f: shutil.rmtree(f.root / "labelsTr") or {"support": []},
        r"no support: label at least one scan and pass it",
    ),
    "label of unknown name": (
        do(lambda f: None, labels="livr"),
        r"no label is called 'livr'; there are liver \(1\), right kidney \(2\)",
    ),
    "label name without names": (
        do(lambda f: (f.root / "dataset.json").unlink(), labels=["liver"]),
        r"no label is called 'liver'; dataset.json, which would name the values, is not in dataset_dir",
    ),
    "label is the background": (
        do(lambda f: None, labels=[0]),
        r"a label must be a name or a whole number above 0, the background, got 0",
    ),
    "every scan is a support": (
        do(lambda f: shutil.rmtree(f.root / "imagesTs"), support=EVERY_SCAN),
        r"data: every scan is a support; put those to segment into imagesTs, or set datalist",
    ),
    "a label that no support shows": (
        do(lambda f: None, labels=[1, 9], support=EVERY_SCAN),
        r"labels: no support shows 9; supports show 1 \(\w+\), 2 \(",
    ),
    "memory": (
        do(lambda f: f.monkeypatch.setattr("bundle.memory.available_bytes", lambda _: 1_000_000)),
        r"imagesTs/phantom_05.nii.gz: 4 labels on 48 x 48 x 12 voxels need about 0.0 GB of memory, 0.0 GB are free; "
        r"segment at most 2 labels at a time",
    ),
    "output folder with a number sign": (
        do(lambda f: None, output_dir="/tmp/a#b"),
        r"/tmp/a#b: a config cannot hold # in the name of an output folder; choose another output folder",
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
        r"labels: no support shows 8, 9; supports show 1 \(\w+\), 2 \(",
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
    "weights that run code": (
        lambda f: save_weights(f, {"encoder": Malicious()}),
        r"weights.pt' is no checkpoint that torch.load\(weights_only=True\) can read",
    ),
    "support label lies elsewhere": (
        do(lambda f: f.place(f.label, shift)),
        r"labelsTr/phantom_02.nii.gz: lies up to 69.3 mm beside its image phantom_02.nii.gz; repair its header",
    ),
    "support label is 4D": (
        do(lambda f: f.rewrite(f.label, lambda v: np.stack([v, v], -1), np.uint8)),
        r"labelsTr/phantom_02.nii.gz: expected one 3D label map, got shape \(48, 48, 12, 2\)",
    ),
    "negative spacing": (
        negative_spacing("image"),
        r"phantom_02.nii.gz: spacing -7 x 7 x 14 mm is not in 0.01..100; repair the header",
    ),
    "spacing in meters": (
        do(lambda f: f.place(f.query, scale(1e-3))),
        r"phantom_05.nii.gz: spacing 0.007 x 0.007 x 0.014 mm is not in 0.01..100",
    ),
    "spacing in micrometers": (
        do(lambda f: f.place(f.query, scale(1e3))),
        r"phantom_05.nii.gz: spacing 7000 x 7000 x 1.4e\+04 mm is not in 0.01..100",
    ),
    "two spacings": (
        do(lambda f: f.header(f.query, pixdim=[1, 7, 7, 5, 0, 0, 0, 0], qform_code=0)),
        r"phantom_05.nii.gz: the header gives two spacings, 7 x 7 x 5 mm and by its affine 7 x 7 x 14 mm",
    ),
    "no geometry": (
        do(lambda f: f.place(f.query, flat)),
        r"phantom_05.nii.gz: the header has no valid geometry; repair its affine",
    ),
    "geometry with NaN": (
        do(lambda f: f.header(f.query, srow_x=np.full(4, np.nan), qform_code=0)),
        r"phantom_05.nii.gz: the header has no valid geometry; repair its affine",
    ),
    "query is a link to nowhere": (
        lambda f: link(f, "/no/such/scan.nii.gz"),
        r"phantom_05.nii.gz: is a link to /no/such/scan.nii.gz, which does not exist; restore or remove it",
    ),
    "query is a link to itself": (
        lambda f: link(f, f.query.name),
        r"phantom_05.nii.gz: is a link to phantom_05.nii.gz, which does not exist; restore or remove it",
    ),
    "query is a folder": (
        do(lambda f: f.query.unlink() or f.query.mkdir()),
        r"phantom_05.nii.gz: is a folder, not a NIfTI file; it is empty, remove it",
    ),
    "query of complex numbers": (
        do(lambda f: save_nifti(f.query, np.ones((4, 4, 4), np.complex64))),
        r"phantom_05.nii.gz: voxels must be single real numbers, got complex64",
    ),
    "query without voxels": (
        do(lambda f: f.rewrite(f.query, lambda v: v[:, :, :0])),
        r"phantom_05.nii.gz: (the volume is empty|cannot be read|expected one 3D volume)",
    ),
    "query beyond single precision": (
        do(lambda f: save_nifti(f.query, np.linspace(0, 1e300, 64).reshape(4, 4, 4))),
        r"phantom_05.nii.gz: contains NaN or infinite values",
    ),
    "query with a broken checksum": (
        do(lambda f: f.query.write_bytes(f.query.read_bytes()[:-8] + b"\0" * 8)),
        r"phantom_05.nii.gz: cannot be read to its end \(CRC check failed",
    ),
    "two queries of one name": (
        do(lambda f: copy(f.query, f.root / "imagesTs" / "PHANTOM_05.nii.gz"), strict=True),
        r"phantom_05.nii.gz: has the case name of .*PHANTOM_05.nii.gz, results need one of their own; rename it",
    ),
    "the same scan twice": (
        do(lambda f: copy(f.query, f.root / "imagesTs" / "copy.nii.gz"), strict=True),
        r"phantom_05.nii.gz: holds the same voxels as .*copy.nii.gz; remove one of them",
    ),
    "every query is bad": (
        do(lambda f: copy(f.image, f.query) or truncate(f.query) or copy(f.query, f.root / "imagesTs" / "b.nii.gz")),
        r"imagesTs/b.nii.gz: cannot be read to its end .*; copy it again \(1 more above\)",
    ),
    "output folder is a file": (
        do(lambda f: (f.root.parent / "out").write_text("")),
        r"out: cannot be written to \(.+\); choose another output folder",
    ),
    "output folder is read-only": (
        read_only,
        r"out: cannot be written to \(Read-only file system\); choose another output folder",
    ),
    "disk is full": (
        full_disk,
        r"out: 0 MB are free, up to 0 MB are needed; free some space or choose another output folder",
    ),
    "disk fills while a result is written": (
        disk_that_fills,
        r"phantom_05_seg.nii.gz: cannot be written \(No space left on device\); free some space or choose another",
    ),
}
EVALUATION = {
    "unknown protocol": (
        do(lambda f: None, protocol="paper"),
        r"no protocol is called 'paper'; there are official, .*, volume",
    ),
    "fold out of range": (do(lambda f: None, fold=2), r"fold must be in 0..1 with at least 4 cases, got 2 of 4"),
    "too few scans for the folds": (
        do(lambda f: None, folds=5),
        r"data: 5 folds need 10 scans with a label in labelsTr, there are 4; set folds",
    ),
    "no labels": (
        do(lambda f: shutil.rmtree(f.root / "labelsTr")),
        r"data: 2 folds need 4 scans with a label in labelsTr, there are 0",
    ),
    "label of unknown name": (
        do(lambda f: None, labels=["livr"]),
        r"no label is called 'livr'; there are liver \(1\), right kidney \(2\)",
    ),
    "no folder of data": (do(lambda f: None, dataset_dir="/no/data"), r"/no/data: no such folder; set dataset_dir"),
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
    "truth of fractions": (
        do(lambda f: f.rewrite(f.root / "labelsTr/phantom_01.nii.gz", lambda v: v / 2)),
        r"labelsTr/phantom_01.nii.gz: label values must be whole numbers from 0",
    ),
    "empty truth": (
        do(lambda f: f.rewrite(f.root / "labelsTr/phantom_01.nii.gz", np.zeros_like, np.uint8)),
        r"labelsTr/phantom_01.nii.gz: has no foreground",
    ),
    "truth lies elsewhere": (
        do(lambda f: f.place(f.root / "labelsTr/phantom_01.nii.gz", shift)),
        r"labelsTr/phantom_01.nii.gz: lies up to 69.3 mm beside its image",
    ),
    "a query is the support": (
        do(lambda f: [copy(f.root / d / "phantom_01.nii.gz", f.root / d / "phantom_03.nii.gz")
                      for d in ("imagesTr", "labelsTr")]),
        r"phantom_01.nii.gz: holds the same voxels as the support .*phantom_03.nii.gz; remove one of them",
    ),
    "one bad query of several": (
        do(lambda f: f.rewrite(f.root / "imagesTr/phantom_01.nii.gz", with_nan)),
        r"phantom_01.nii.gz: contains NaN or infinite values",
    ),
}  # fmt: skip
TRAINING = {
    "no images": (
        do(lambda f: shutil.rmtree(f.root / "imagesTr") or shutil.rmtree(f.root / "imagesTs")),
        r"data: no folder imagesTr and no NIfTI files; a data set has",
    ),
    "no data set": (do(lambda f: None, dataset_dir="/no/data"), r"/no/data: no such folder; set dataset_dir"),
    "data set is a file": (
        lambda f: {"dataset_dir": str(f.image)},
        r"phantom_02.nii.gz: dataset_dir must be a folder, not a file",
    ),
    "excluded label of unknown name": (
        do(lambda f: None, exclude_labels=["liver", "splen"]),
        r"no label is called 'splen'; there are liver",
    ),
    "excluded labels without labels": (
        do(lambda f: shutil.rmtree(f.root / "labelsTr"), exclude_labels=[1]),
        r"phantom_0\d.nii.gz: exclude_labels needs a label of every training image, this one has none",
    ),
    "everything is excluded": (
        do(
            lambda f: [
                f.rewrite(f.root / "labelsTr" / f"phantom_0{n}.nii.gz", lambda v: np.ones_like(v), np.uint8)
                for n in range(1, 5)
            ],
            exclude_labels=["liver"],
        ),
        r"no usable slice in \d scans: .*outside the labels \[1\]",
    ),
    "no superpixel is large enough": (
        do(lambda f: None, **{"superpixel#min_area_px": 100000}),
        r"no usable slice in \d scans: none has a superpixel of 100000 pixels",
    ),
    "image with NaN": (
        do(lambda f: f.rewrite(f.image, with_nan), strict=True),
        r"phantom_02.nii.gz: contains NaN or infinite values",
    ),
    "constant image": (
        do(lambda f: f.rewrite(f.image, np.ones_like), strict=True),
        r"phantom_02.nii.gz: every voxel is 1",
    ),
    "4D image": (
        do(lambda f: f.rewrite(f.image, lambda v: np.stack([v, v], -1)), strict=True),
        r"phantom_02.nii.gz: (expected one 3D volume|expected 1 channel)",
    ),
    "truncated image": (do(lambda f: truncate(f.image), strict=True), r"phantom_02.nii.gz: cannot be read to its end"),
    "pretrained weights are missing": (
        do(lambda f: None, pretrained="/no/weights.pt"),
        r"no weights at '/no/weights.pt'",
    ),
    "unknown superpixel method": (
        do(lambda f: None, **{"superpixel#method": "watershed"}),
        r"superpixel method must be one of felzenszwalb, slic or a function, got 'watershed'",
    ),
    "parameter of another superpixel method": (
        do(lambda f: None, **{"superpixel#method": "slic"}),  # with the parameters that this test sets
        r"superpixel method 'slic' takes no 'scale'; it takes image, n_segments",
    ),
    "every image is bad": (
        do(lambda f: [truncate(path) for path in (f.root / "imagesTr").iterdir()]),
        r"phantom_01.nii.gz: cannot be read to its end .*; copy it again \(3 more above\)",
    ),
    "a label is bad that is to be excluded": (
        do(lambda f: f.rewrite(f.label, lambda v: v / 2), exclude_labels=[1], strict=True),
        r"labelsTr/phantom_02.nii.gz: label values must be whole numbers",
    ),
    "models folder is a file": (
        do(lambda f: (f.root.parent / "models").write_text("")),
        r"models: cannot be written to \(.+\); choose another output folder",
    ),
}
CHECK = {
    "no such folder": (lambda f: shutil.rmtree(f.root), r"data: no such folder; give the folder of a data set"),
    "no scans": (
        lambda f: [shutil.rmtree(f.root / name) for name in ("imagesTr", "imagesTs")],
        r"data: no scans; put NIfTI files into imagesTr$",
    ),
    "label without an image": (
        lambda f: f.image.unlink(),
        r"labelsTr/phantom_02.nii.gz: is a label without an image in imagesTr; add the image or remove the label",
    ),
    "letter case of a label": (
        lambda f: f.label.rename(f.label.with_name("Phantom_02.nii.gz")),
        r"labelsTr/Phantom_02.nii.gz: is not read, its image is phantom_02.nii.gz; give it exactly this name",
    ),
    "suffix of a label": (
        lambda f: f.label.rename(f.label.with_name("phantom_02.nii")),
        r"labelsTr/phantom_02.nii: is not read, its image is phantom_02.nii.gz; give it exactly this name",
    ),
    "Unicode form of a label": (
        lambda f: [
            f.image.rename(f.image.with_name("\u00e4.nii.gz")),
            f.label.rename(f.label.with_name("a\u0308.nii.gz")),
        ],
        r"labelsTr/a\u0308.nii.gz: is not read, its image is \u00e4.nii.gz; give it exactly this name",
    ),
    "letter case of a suffix": (
        lambda f: f.query.rename(f.query.with_name("q.NII.GZ")),
        r"imagesTs/q.NII.GZ: is not read, its suffix must be in lower case; rename it",
    ),
    "letter case of a folder": (
        lambda f: f.query.parent.rename(f.root / "ImagesTS"),
        r"ImagesTS: is not read, the folder's name must be imagesTs; rename it",
    ),
    "names that differ in letter case alone": (
        lambda f: f.rewrite(f.image, lambda v: v + 1) or copy(f.image, f.image.with_name("PHANTOM_01.nii.gz")),
        r"phantom_01.nii.gz: has the case name of .*PHANTOM_01.nii.gz, results need one of their own; rename it",
    ),
    "another format": (
        lambda f: f.query.with_name("q.nrrd").write_text(""),
        r"q.nrrd: is not read, only NIfTI is; convert the data set with `python -m scripts.prepare folder --src .*",
    ),
    "value without a name": (
        lambda f: f.rewrite(f.label, lambda v: np.where(v == 4, 9, v), np.uint8),
        r"labelsTr/phantom_02.nii.gz: label values \[9\] have no name in dataset.json, which names \[1, 2, 3, 4\]",
    ),
    "names that are no names": (lambda f: f.json(labels=["liver"]), r"dataset.json: 'labels' must map values to names"),
    "listed file is missing": (
        lambda f: f.json(test=["./imagesTs/other.nii.gz"]),
        r"dataset.json: lists ./imagesTs/other.nii.gz, which is not there; copy the file or remove it from the list",
    ),
    "listed file lies outside": (
        lambda f: f.json(training=[{"image": "../../secret.nii.gz"}]),
        r"dataset.json: lists ../../secret.nii.gz, which lies outside of the data set and is not read; remove it",
    ),
    "the same scan under two names": (
        lambda f: copy(f.image, f.image.with_name("zwilling.nii.gz")),
        r"zwilling.nii.gz: holds the same voxels as .*phantom_02.nii.gz; remove one of them",
    ),
}
ALL = [
    pytest.param(names, *case, id=f"{names[-1]}: {what}")
    for names, table in (
        (("inference",), INFERENCE),
        (("inference", "evaluate"), EVALUATION),
        (("train",), TRAINING),
        (("check",), CHECK),
    )
    for what, case in table.items()
]
LINES: dict[str, str] = {}  # what was seen, by kind
TABLE = ROOT / "docs" / "trust.md"
HEADER = "| command | what is wrong | last line |\n|---|---|---|\n"


def seen(kind, text, root):
    """Keep a line for the table, without the places of this machine."""
    for place, name in ((root.parent, ""), (ROOT, ".")):
        text = text.replace(f"{place}/", "" if not name else f"{name}/").replace(str(place), name or ".")
    LINES[kind] = text.replace("|", "\\|")


def test_there_are_many_kinds():
    assert len(ALL) >= 90


@pytest.mark.parametrize(("names", "spoil", "line"), ALL)
def test_bad_input_ends_with_one_clear_line(run_config, folder, tmp_path, names, spoil, line, request, monkeypatch):
    settings = {"dataset_dir": str(folder.root)}
    if names == ("inference",):
        settings["support"] = SUPPORT
    elif "evaluate" in names:
        settings |= {"folds": 2, "fold": 0}
    monkeypatch.chdir(tmp_path)
    overrides = spoil(folder)
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011, PT012 - the text below is what matters
        if names == ("check",):
            check(str(folder.root), strict=True)
        else:
            run_config(*names, **{**settings, **(overrides if isinstance(overrides, dict) else {})})
    text = f"error: {explain(caught.value)}"
    assert re.search(line, text), text
    assert len(text) < 500
    assert not list((tmp_path / "out").rglob("*_seg.nii.gz"))  # nothing is left that looks like a result
    assert not list((tmp_path / "out").rglob("summary.json"))
    assert not list(tmp_path.rglob("model*.pt"))
    assert not (tmp_path / "executed").exists()
    seen(request.node.callspec.id, text, folder.root)


def test_table_of_the_docs_has_every_kind_with_its_line():
    """With WRITE_TABLE set, write the table of what the tests before this one saw."""
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(HEADER)
    rows, _, after = rest.partition("\n\n")
    if os.environ.get("WRITE_TABLE"):
        assert len(LINES) == len(ALL), "run the whole file"
        rows = "\n".join(f"| {' | '.join(kind.split(': ', 1))} | `` {line} `` |" for kind, line in LINES.items())
        TABLE.write_text(f"{before}{HEADER}{rows}\n\n{after}", encoding="utf-8")
    told = {}
    for row in rows.splitlines():
        command, what, line = re.fullmatch(r"\| (\w+) \| (.+?) \| `` (.+) `` \|", row).groups()
        told[f"{command}: {what}"] = line.replace("\\|", "|")
    assert set(told) == {item.id for item in ALL}
    for item in ALL:
        assert re.search(item.values[2], told[item.id]), item.id


@pytest.mark.parametrize("spoil", [with_nan, np.zeros_like], ids=["NaN", "constant"])
def test_a_bad_query_is_left_out_by_name_and_the_others_are_segmented(run_config, folder, caplog, spoil):
    bad = folder.root / "imagesTs" / "bad.nii.gz"
    copy(folder.query, bad)
    folder.rewrite(bad, spoil)
    out = run_config("inference", dataset_dir=str(folder.root), support=SUPPORT)
    assert [path.name for path in out.rglob("*_seg.nii.gz")] == ["phantom_05_seg.nii.gz"]
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"left out: {bad}: ")]


def test_a_bad_pseudo_support_is_left_out_by_name(run_config, folder, caplog):
    bad = folder.root / "imagesTs" / "bad.nii.gz"
    copy(folder.query, bad)
    folder.rewrite(bad, with_nan)
    images = [{"image": str(bad)}, {"image": str(folder.image)}]
    queries = [{"image": str(folder.query)}]
    chosen = {"support": SUPPORT, "datalist": queries, "num_pseudo_supports": 2, "pseudo_support_images": images}
    out = run_config("inference", dataset_dir=str(folder.root), **chosen)
    assert [path.name for path in out.rglob("*_seg.nii.gz")] == ["phantom_05_seg.nii.gz"]
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"left out: {bad}: ")]


def test_a_bad_image_is_left_out_by_name_and_the_others_train(run_config, folder, tmp_path, caplog):
    truncate(folder.image)
    run_config("train", dataset_dir=str(folder.root))
    assert (tmp_path / "models" / "model.pt").is_file()
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"left out: {folder.image}: ")]


def test_an_evaluation_may_leave_cases_out_when_told_so(run_config, folder):
    truncate(folder.root / "imagesTr/phantom_01.nii.gz")
    out = run_config("inference", "evaluate", dataset_dir=str(folder.root), folds=2, fold=0, strict=False)
    assert json.loads((out / "summary.json").read_text())["cases"] == 1


@pytest.mark.parametrize("name", ["with space.nii.gz", "\u00e4\u4e2d.nii.gz", "$(id) @x %y '\".nii.gz", "a,b;c.nii"])
def test_odd_names_are_names_like_others(run_config, folder, name):
    stored = nib.load(folder.query)
    values = np.array(stored.dataobj)[..., None]  # and a fourth axis of length 1 does no harm
    folder.query.unlink()
    save_nifti(folder.query.with_name(name), values, stored.affine)
    out = run_config("inference", dataset_dir=str(folder.root), support=SUPPORT)
    (result,) = out.rglob("*_seg.nii.gz")
    assert result.name == name.split(".nii")[0] + "_seg.nii.gz"
    assert nib.load(result).shape == (48, 48, 12)


def test_links_to_scans_are_scans(run_config, folder, tmp_path):
    folder.query.rename(tmp_path / "elsewhere.nii.gz")
    folder.query.symlink_to(tmp_path / "elsewhere.nii.gz")
    out = run_config("inference", dataset_dir=str(folder.root), support=SUPPORT)
    assert [path.name for path in out.rglob("*_seg.nii.gz")] == ["phantom_05_seg.nii.gz"]


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
