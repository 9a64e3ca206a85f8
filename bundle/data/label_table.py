"""Names of label values in the tables of FreeSurfer, ITK-SNAP and 3D Slicer: read with labels, written with results."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

from ..atomic import write_text

Color = tuple[int, int, int]
SUFFIXES = (".ctbl", ".label", ".lut", ".txt")
FREESURFER_NAMES = Path(__file__).with_name("freesurfer_names.json")
MGH_BYTES = {0: 1, 1: 4, 3: 4, 4: 2}  # of a voxel, by the type in the header
MGH_DATA = 284  # where voxels begin
MGH_PARAMETERS = 20  # bytes between voxels and tags: repetition time and so on
COLOR_TABLE, WITHOUT_LENGTH, SHORT_LENGTH = 1, (2, 20), 30  # tags of the MGH format
SLICER = re.compile(r'^(\d+)\s+(".*?"|\S+)((?:\s+\d+){4})$')  # value, name, color; FreeSurfer's tables are alike
ITK_SNAP = re.compile(r'^(\d+)((?:\s+[\d.]+){6})\s+"(.*)"$')  # value, color and two switches, name


def read_label_table(path: str | os.PathLike) -> dict[int, str]:
    """Names of label values besides 0 in a text file; empty for any other text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    names: dict[int, str] = {}
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        snap, slicer = ITK_SNAP.match(line), SLICER.match(line)
        if snap:
            names[int(snap[1])] = snap[3].strip()
        elif slicer:
            names[int(slicer[1])] = slicer[2].strip('"')
        else:
            return {}
    return {value: name for value, name in sorted(names.items()) if value > 0 and name}


def names_beside(label: Path) -> dict[int, str]:
    """Names of a label's values: from the file itself, or from a table beside it or one folder above.

    A table of the label's own name goes first; another one counts if no other in its folder differs. FreeSurfer's files
    have the names that FreeSurfer gives to their values, where no table says otherwise.
    """
    stem = label.name.split(".")[0].lower()
    freesurfer = label.name.lower().endswith((".mgz", ".mgh"))
    if freesurfer and (names := embedded_names(label)):
        return names
    for folder in (label.parent, label.parent.parent):
        files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
        tables = {path: names for path in sorted(files) if (names := read_label_table(path))}
        own = [names for path, names in tables.items() if path.name.split(".")[0].lower().startswith(stem)]
        if own or len({frozenset(names) for names in tables.values()}) == 1:
            return (own or list(tables.values()))[-1]  # ITK-SNAP's, whose names may have spaces, after 3D Slicer's
    return freesurfer_names() if freesurfer else {}


def freesurfer_names() -> dict[int, str]:
    """The names of FreeSurfer's subcortical segmentation."""
    return {int(value): name for value, name in json.loads(FREESURFER_NAMES.read_text(encoding="utf-8")).items()}


def embedded_names(path: Path) -> dict[int, str]:
    """Names in the color table that FreeSurfer writes behind the voxels; empty if there is none."""
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        width, height, depth, frames, kind = struct.unpack_from(">5i", data, 4)
        place = MGH_DATA + width * height * depth * frames * MGH_BYTES[kind] + MGH_PARAMETERS
        while place + 4 <= len(data):
            (tag,) = struct.unpack_from(">i", data, place)
            place += 4
            if tag == COLOR_TABLE:
                return _color_table(data, place)
            if tag == SHORT_LENGTH:
                place += 4 + struct.unpack_from(">i", data, place)[0]
            elif tag not in WITHOUT_LENGTH:
                place += 8 + struct.unpack_from(">q", data, place)[0]
    except (OSError, EOFError, KeyError, struct.error, UnicodeDecodeError):
        pass  # what is broken is said when the voxels are read
    return {}


def _color_table(data: bytes, place: int) -> dict[int, str]:
    """The table at a place: version, size, file name, entries of value, name and color."""
    version, _, length = struct.unpack_from(">3i", data, place)
    if version >= 0:  # an old form, in which values are counted
        return {}
    place += 12 + length
    (count,) = struct.unpack_from(">i", data, place)
    place += 4
    names = {}
    for _ in range(count):
        value, length = struct.unpack_from(">2i", data, place)
        name = data[place + 8 : place + 8 + length].rstrip(b"\0").decode()
        place += 8 + length + 16
        if value > 0 and name:
            names[value] = name
    return names


def write_label_tables(stem: Path, names: Mapping[int, str], colors: Mapping[int, Color]) -> list[Path]:
    """Write ``<stem>_itksnap.txt``, a label description of ITK-SNAP, and ``<stem>.ctbl``, a color table of 3D Slicer.

    Args:
        stem: of both files.
        names: names of label values.
        colors: their colors.
    """
    lines = ["# ITK-SNAP Label Description File", '    0     0    0    0        0  0  0    "Clear Label"']
    table = ["# Color table file", f"# {len(names)} values", "0 background 0 0 0 0"]
    for value, name in sorted(names.items()):
        red, green, blue = colors[value]
        plain = name.replace('"', "'")
        lines.append(f'{value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{plain}"')
        table.append(f"{value} {'_'.join(plain.split())} {red} {green} {blue} 255")
    files = [stem.with_name(f"{stem.name}_itksnap.txt"), stem.with_name(f"{stem.name}.ctbl")]
    for path, content in zip(files, (lines, table)):
        write_text(path, "\n".join(content) + "\n")
    return files
