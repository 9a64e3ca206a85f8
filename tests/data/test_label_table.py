"""Tables of label names: those of other programs are read, ours are read by them."""

from __future__ import annotations

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from bundle.data import label_names
from bundle.data.label_table import read_label_table, write_label_tables
from bundle.data.prepare import make_recipe, prepare_dataset

from .archives import scan, write_nifti, write_volume

NAMES = {1: "liver", 2: "right kidney", 7: "spleen"}
FREESURFER = "#$Id: FreeSurferColorLUT.txt\n#No. Label Name:  R G B A\n0 Unknown 0 0 0 0\n10  Liver-Left  220 1 2 0\n\n"


def prepare(src, dst):
    return prepare_dataset("folder", src, dst, make_recipe("folder"), None, None, 1, False, lambda line: None)


def test_written_tables_are_read_again(tmp_path):
    files = write_label_tables(tmp_path / "a_seg", NAMES, {value: (value, 2, 3) for value in NAMES})
    assert [path.name for path in files] == ["a_seg_itksnap.txt", "a_seg.ctbl"]
    assert read_label_table(files[0]) == NAMES
    assert read_label_table(files[1]) == {1: "liver", 2: "right_kidney", 7: "spleen"}
    assert '    7     7    2    3        1  1  1    "spleen"' in files[0].read_text().splitlines()
    assert "7 spleen 7 2 3 255" in files[1].read_text().splitlines()


@pytest.mark.parametrize("text", ["hello\n", "1 liver 2 3\n", "a b 1 2 3 4\n", ""])
def test_other_text_is_no_table(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read_label_table(tmp_path / "a.txt") == {}


@pytest.mark.parametrize("table", ["a_seg.ctbl", "a_seg_labels.txt", "names.label", "../FreeSurferColorLUT.txt"])
def test_names_come_from_the_table_beside_the_label(tmp_path, table):
    image, label = scan()
    write_nifti(tmp_path / "src/p/a.nii.gz", image)
    write_nifti(tmp_path / "src/p/a_seg.nii.gz", label * 10)
    (tmp_path / "src/p" / table).write_text(FREESURFER)
    summary = prepare(tmp_path / "src", tmp_path / "dst")
    assert summary["aside"] == []
    assert label_names(tmp_path / "dst") == {10: "Liver-Left", 20: "label 20", 30: "label 30", 40: "label 40"}
    [case] = summary["cases"]
    out = np.asarray(nib.load(tmp_path / f"dst/labelsTr/{case['case']}.nii.gz").dataobj)
    assert np.array_equal(out, label * 10)


def with_table(path, names):
    """Put a color table behind the voxels of an ``.mgz`` file, as FreeSurfer does, after a tag of another kind."""
    data = gzip.decompress(path.read_bytes())
    assert len(data) == 284 + 4 * np.prod(nib.load(path).shape) + 20  # nibabel writes the parameters as well
    tags = struct.pack(">iq", 31, 5) + b"a.xfm"
    tags += struct.pack(">4i", 1, -2, 2000, 4) + b"lut\0" + struct.pack(">i", len(names))
    for value, name in names.items():
        text = name.encode() + b"\0"
        tags += struct.pack(">2i", value, len(text)) + text + struct.pack(">4i", 1, 2, 3, 0)
    path.write_bytes(gzip.compress(data + tags))


def test_freesurfer_names(tmp_path):
    image, label = scan((40, 36, 6))
    for case in ("bert", "ernie"):
        for index, state in enumerate(("orig", "T1", "norm")):
            write_volume(tmp_path / f"src/{case}/mri/{state}.mgz", image + index)
        stored = np.select([label == 1, label == 2], [17, 53])
        write_volume(tmp_path / f"src/{case}/mri/aseg.mgz", stored)
    prepare(tmp_path / "src", tmp_path / "dst")
    assert label_names(tmp_path / "dst") == {17: "Left-Hippocampus", 53: "Right-Hippocampus"}
    for case in ("bert", "ernie"):
        with_table(tmp_path / f"src/{case}/mri/aseg.mgz", {17: "HippoL", 53: "HippoR"})
    prepare(tmp_path / "src", tmp_path / "dst")
    assert label_names(tmp_path / "dst") == {17: "HippoL", 53: "HippoR"}
    out = np.asarray(nib.load(tmp_path / "dst/labelsTr/bert.nii.gz").dataobj)
    assert np.array_equal(out, stored)
