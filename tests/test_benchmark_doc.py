"""docs/benchmark.md: short, its means are those of docs/results/*.csv, and links to its headings lead somewhere."""

from __future__ import annotations

import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from scipy.stats import rankdata

from .conftest import ROOT

DOC = ROOT / "docs" / "benchmark.md"
RESULTS = ROOT / "docs" / "results"
TEXT = DOC.read_text(encoding="utf-8")
TABLES = sorted(path.stem for path in RESULTS.glob("*.csv"))
RUNS = [name for name in TABLES if name.startswith(("acdc_", "chaos_", "openkbp_"))]
SETS = ("CHAOS", "ACDC", "hippocampus", "OpenKBP")


def rows(name: str) -> list[dict[str, str]]:
    """The lines of a CSV file, below its comments."""
    lines = (RESULTS / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def plain(cell: str) -> str:
    """A cell without bold type, code and links."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).replace("*", "").replace("`", "").strip()


def table(header: str) -> tuple[list[str], list[list[str]]]:
    """The one table whose first line begins so, without its formatting."""
    lines = TEXT.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(header))
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    head, _, *body = ([plain(cell) for cell in line.strip("|").split("|")] for line in lines[start:end])
    return head, body


def line_with(link: str, start: str = "") -> str:
    """The one line of the document that links to a CSV file, and begins so."""
    (found,) = (line for line in TEXT.splitlines() if f"(results/{link}.csv)" in line and line.startswith(start))
    return found


def columns(entries: list[dict[str, str]], key: Callable[[dict[str, str]], str]) -> dict[str, list[float]]:
    """The Dice of each group, in the file's order."""
    found: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        found[key(entry)].append(float(entry["dice"]))
    return dict(found)


def mean_sd(values: Iterable[float]) -> str:
    values = list(values)
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def close(text: str, values: Iterable[float], digits: int) -> bool:
    """Whether a figure is the mean of others; all were rounded, so that it may be off by more than half a digit."""
    return abs(float(text) - statistics.fmean(values)) < 0.7 * 10.0**-digits


def test_it_has_at_most_250_lines():
    assert len(TEXT.splitlines()) <= 250


@pytest.mark.parametrize("name", TABLES)
def test_each_csv_file_names_its_command_and_is_linked(name):
    first, second, *others = (RESULTS / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    assert re.match(r"# command: \S", first)
    assert re.fullmatch(r"# commit: (unknown, measured before )?[0-9a-f]{7,}(\+changes)?", second)
    if "unknown" not in second:  # what the command for all tables has written
        assert [line.split(":")[0] for line in others[:4]] == ["# versions", "# seeds", "# device", "# note"]
    assert f"(results/{name}.csv)" in TEXT
    assert all(None not in entry and None not in entry.values() for entry in rows(name))


@pytest.mark.parametrize("name", RUNS)
def test_means_over_folds_and_seeds(name):
    entries = rows(name)
    labels = columns(entries, lambda entry: entry["label"])
    runs = columns(entries, lambda entry: f"{entry['fold']} {entry['seed']}")
    means = {label: mean_sd(values) for label, values in labels.items()}
    total = mean_sd(statistics.fmean(values) for values in runs.values())
    cells = [plain(cell) for cell in line_with(name).strip("|").split("|")]
    *_, protocol, number = cells[:3] if name.startswith("chaos_") else cells[:4]
    assert (protocol, number) == (entries[0]["protocol"], str(len(runs)))
    if name.startswith("chaos_"):
        head, _ = table("| network | protocol | runs |")
        found = dict(zip(head[3:8], cells[3:8]))
        assert found == {**means, "mean": total}
    else:
        assert cells[4] == total
        written = dict(re.fullmatch(r"(\D+) (\d.*)", part).groups() for part in cells[5].split(", "))
        assert {label: "0.00" if text == "0" else text for label, text in written.items()} == means


def test_headline_figures_are_those_below():
    _, body = table("| what | Dice | protocol |")
    means = [line_with(f"chaos_{name}") for name in ("setting1_official", "setting2_official", "setting1_volume")]
    means += [line_with("volumes_five_queries") + TEXT.split("\n| 3 supports |")[1], line_with("chaos_transfer_volume")]
    for row, line in zip(body, means):
        figures = re.findall(r"\d+\.\d+ ± \d+\.\d+", row[1])
        assert figures
        assert all(f"| {figure} |" in line.replace("*", "") for figure in figures)
    folds = columns(
        [row for row in rows("shipped_volume") if row["condition"] == "default"], lambda row: row["dataset"]
    )
    for name in ("ACDC", "hippocampus", "OpenKBP"):
        (cell,) = (row[1] for row in body if row[0].startswith(name))
        mean, least, most = re.fullmatch(r"(\S+) \(folds (\S+) to (\S+)\)", cell).groups()
        assert close(mean, folds[name], 1)
        assert (float(least), float(most)) == (min(folds[name]), max(folds[name]))


def test_shipped_weights():
    found = columns(rows("shipped_volume"), lambda row: f"{row['dataset']}, {row['condition']}")
    for name in SETS:
        cells = [plain(cell) for cell in line_with("shipped_volume", f"| {name} (").strip("|").split("|")]
        assert close(cells[4], found.pop(f"{name}, default"), 1)
        before = f"{name}, before empty slices were cut off"
        if before in found:
            assert close(re.search(r"cut off ([\d.]+)", cells[5]).group(1), found.pop(before), 1)
        if f"{name}, no region of interest" in found:
            least = re.search(r"no region of interest ([\d.]+)", cells[5]).group(1)
            assert close(least, found.pop(f"{name}, no region of interest"), 1)
        smooth = re.search(r"8 mm of smoothing ([\d.]+)", cells[5]).group(1)
        assert close(smooth, found.pop(f"{name}, no region of interest, 8 mm of smoothing"), 1)
    assert found == {}


def test_weights_that_a_company_can_use():
    found = columns(rows("permissive_volume"), lambda row: row["dataset"])
    written = re.search(r"\[([^]]+)\]\(results/permissive_volume.csv\)", TEXT.replace("\n", " ")).group(1)
    assert [part.rsplit(" ", 1)[0] for part in written.split(", ")] == list(found)
    figures = [part.rsplit(" ", 1)[1] for part in written.split(", ")]
    assert all(close(figure, values, 1) for figure, values in zip(figures, found.values(), strict=True))
    (row,) = (row for row in table("| what | Dice | protocol |")[1] if "a company can use" in row[0])
    first, second = row[1].split("; CHAOS under official ")
    assert first == ", ".join(figures)
    assert f"| {second} |" in line_with("chaos_permissive_official").replace("*", "")


def test_ingredients():
    entries = rows("ingredients")
    found = columns(entries, lambda row: row["without"])
    same = found["--truncated_structures False"], found["--completion False"]
    assert same == (found["the default"],) * 2
    _, body = table("| without |")
    written = {row[0].split("; the same with")[0]: row[1:] for row in body}
    assert set(written) == set(found) - {"--truncated_structures False", "--completion False"}
    for name, (*folds, mean) in written.items():
        assert [float(value) for cell in folds for value in cell.split(", ")] == found[name]
        assert close(mean, found[name], 1)


@pytest.mark.parametrize("name", ["volumes_all_queries", "volumes_five_queries"])
def test_whole_volumes(name):
    entries = rows(name)
    means = {entry["condition"]: f"{entry['dice']} ± {entry['sd']}" for entry in entries if entry["label"] == "mean"}
    _, body = table("| CHAOS, `volume`,")
    (second,) = (number for number, row in enumerate(body) if row[0].startswith("one query of each fold"))
    body = body[:second] if name == "volumes_all_queries" else body[second:]
    written = {}
    for conditions, dice, *_ in body:
        names = conditions.split(": ")[-1].split("; ")
        names = ["3 supports, 3 slices", "5 supports, 3 slices"] if conditions.startswith("3; 5") else names
        figures = dice.split("; ")
        written.update(zip(names, figures * (len(names) // len(figures))))
    assert written == means
    for condition, mean in means.items():
        organs = [float(row["dice"]) for row in entries if row["condition"] == condition and row["label"] != "mean"]
        assert len(organs) == 4
        assert close(mean.split(" ")[0], organs, 2)


def test_steps_from_the_paper():
    entries = rows("steps")
    _, body = table("| | each row adds")
    assert [row[1] for row in body] == list(dict.fromkeys(entry["adds"] for entry in entries))
    for number, name, *cells in body:
        for protocol, cell in zip(("official", "volume"), cells, strict=True):
            chosen = [e for e in entries if (e["row"], e["adds"], e["protocol"]) == (number, name, protocol)]
            assert cell == mean_sd(float(entry["mean"]) for entry in chosen)
            organs = [float(e[organ]) for e in chosen for organ in ("liver", "right kidney", "left kidney", "spleen")]
            rounded = 3 * 0.005  # of the organs, of the runs' means, and of their mean
            assert abs(float(cell.split(" ")[0]) - statistics.fmean(organs)) < rounded + 1e-9


def test_expected_dice():
    entries = rows("expected_dice")
    head, (means, ranks) = table("| [left out]")
    for column, cell, rank in zip(head[1:], means[1:], ranks[1:], strict=True):
        name, labels = column.removesuffix(" labels").split(", ")
        chosen = [(float(row["expected"]), float(row["dice"])) for row in entries if name in ("all", row["dataset"])]
        assert int(labels) == len(chosen)
        errors = [abs(expected - dice) for expected, dice in chosen]
        for mean, values in zip(cell.split(", "), (*zip(*chosen), errors), strict=True):
            assert close(mean, values, 1)
        expected, dice = (rankdata(values) for values in zip(*chosen))
        assert abs(float(rank.split(", ")[0]) - np.corrcoef(expected, dice)[0, 1]) < 0.006


def test_completion():
    _, body = table("| labelled: by images")
    for _, *sets, mean in body:
        ways = zip(*(cell.split(" / ") for cell in sets))
        for total, values in zip(mean.split(" / "), ways, strict=True):
            assert close(total, map(float, values), 1)
    growth = columns(rows("completion_growth"), lambda row: f"{row['dataset']}, {row['slices chosen']}")
    line = plain(line_with("completion_growth"))
    for how in ("evenly", "least sure"):
        assert f"{how} {', '.join(map(str, growth[f'ACDC, {how}']))}" in line
    spread, sure = (growth[f"CHAOS, {how}"] for how in ("evenly", "least sure"))
    assert f"{sure[1]} and {sure[2]} instead of {spread[1]} and {spread[2]}" in line


def test_completion_beyond_the_labelled_slices():
    found = columns(rows("completion_extension"), lambda row: row["extension"])
    written = re.findall(r"(\d[\d.]*): (\d\d\.\d)", plain(line_with("completion_extension").split("|")[2]))
    assert [value for value, _ in written] == list(found)
    assert all(close(mean, found[value], 1) for value, mean in written)


def test_completion_with_another_scan():
    cell = plain(line_with("completion_second_scan").split("|")[2])
    written = {part.split(" ")[0]: part.split(" ", 1)[1].split(" / ") for part in cell.split("; ")}
    found = columns(rows("completion_second_scan"), lambda row: f"{row['dataset']}, {row['support']}")
    for name, key in (("chaos_05", "CHAOS"), ("ACDC", "ACDC"), ("hippocampus", "hippocampus")):
        ways = ("own slices alone", "the other scan alone", "both")
        assert [[float(value) for value in way.split(", ")] for way in written[name]] == [
            found[f"{key}, {way}"] for way in ways
        ]


def anchors(text: str) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in names}


def test_links_to_its_headings_and_its_own_links_lead_somewhere():
    known = anchors(TEXT)
    found = re.findall(r"\]\(#([^)]+)\)", TEXT)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found += re.findall(r"\]\((?:docs/)?benchmark\.md#([^)]+)\)", path.read_text(encoding="utf-8"))
    assert found
    assert set(found) - known == set()
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (DOC.parent / link).exists(), link


def test_what_scripts_write_for_it_has_its_place():
    assert "### On a GPU\n" in TEXT  # scripts/gpu.sh: out/gpu.md
    assert TEXT.split("### On a GPU")[1].split("\n| ")[1].startswith("what | bundle | literal | times faster | |")
