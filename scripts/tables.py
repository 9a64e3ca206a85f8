"""The tables of docs/benchmark.md that show what results files hold: figures from there, words by hand."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from bundle.atomic import write_text
from bundle.ids import suggest

RESULTS, DOCUMENT = "docs/results", "docs/benchmark.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


def tables(document: str = DOCUMENT, results_dir: str = RESULTS) -> str:
    """Write the figures of the results files into the document's tables; words and other tables stay.

    A table that is written stands between two lines of comment, ``<!-- table: NAME -->`` and ``<!-- end -->``.

    Args:
        document: the document.
        results_dir: folder of the results files.
    """
    path = Path(document)
    old = path.read_text(encoding="utf-8")

    def fresh(found: re.Match) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"{path}: no table is called {found[2]!r}{suggest(found[2], TABLES)}")
        lines = TABLES[found[2]](Path(results_dir), found[3].splitlines())
        return found[1] + "".join(f"{line}\n" for line in lines)

    new = TABLE.sub(fresh, old)
    if new != old:
        write_text(path, new)
    return f"{path.name}: {'tables written anew' if new != old else 'its tables are those of the results'}"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, below its comment lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def mean_sd(values: Sequence[float]) -> str:
    """Mean, and the standard deviation of several."""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def fill(results: Path, lines: Sequence[str]) -> list[str]:
    """Figures of the rows that link to a results file; all other rows and words stay."""
    head = _cells(lines[0])
    filled = list(lines)
    for number, line in enumerate(lines):
        link = re.search(r"\[[^]]*\]\(results/(\w+)\.csv\)", line)
        if link:
            rows, cells = read_rows(results / f"{link[1]}.csv"), _cells(line)
            (_fill_conditions if "condition" in rows[0] else _fill_labels)(rows, cells, head, link[1])
            filled[number] = _line(cells)
    return filled


def _fill_labels(rows: Sequence[Mapping[str, str]], cells: list[str], head: Sequence[str], name: str) -> None:
    """Number of runs, mean of each label, and mean of all of them over the runs."""
    labels: dict[str, list[float]] = {}
    runs: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        labels.setdefault(row["label"], []).append(float(row["dice"]))
        runs.setdefault((row["fold"], row["seed"]), []).append(float(row["dice"]))
    cells[head.index("runs")] = f"[{len(runs)}](results/{name}.csv)"
    cells[head.index("mean")] = f"**{mean_sd([fmean(scores) for scores in runs.values()])}**"
    if set(labels) <= set(head):
        for label, scores in labels.items():
            cells[head.index(label)] = mean_sd(scores)
    else:
        cells[-1] = ", ".join(f"{label} {mean_sd(scores)}" for label, scores in labels.items())


def _fill_conditions(rows: Sequence[Mapping[str, str]], cells: list[str], head: Sequence[str], _: str) -> None:
    """Mean over the folds; that of other conditions after their names in the last cell."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if cells[0].split(" (")[0] == row["dataset"]:
            scores.setdefault(row["condition"], []).append(float(row["dice"]))
    cells[head.index("mean")] = f"**{fmean(scores.pop('default')):.1f}**"
    for condition, values in scores.items():
        last = condition.split(", ")[-1]  # the cell tells what comes on top of the condition before
        cells[-1] = re.sub(rf"({re.escape(last)} )[\d.]+\d", rf"\g<1>{fmean(values):.1f}", cells[-1])


def ingredients(results: Path, lines: Sequence[str]) -> list[str]:
    """A row for each ingredient; those that change nothing stand beside the default."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in read_rows(results / "ingredients.csv"):
        found.setdefault(row["without"], {}).setdefault(row["dataset"], []).append(row["dice"])
    default, *others = found
    same = [name for name in others if found[name] == found[default]]
    sets = [cell.split(",")[0] for cell in _cells(lines[0])[1:-1]]
    rows = list(lines[:2])
    for name, scores in found.items():
        if name in same:
            continue
        shown = re.sub(r"^(--\w+ \w+)", r"`\1`", name)
        if name == default and same:
            shown += f"; the same with {' or '.join(f'`{other}`' for other in same)}"
        mean = fmean(float(dice) for dices in scores.values() for dice in dices)
        rows.append(_line([shown, *(", ".join(scores[name]) for name in sets), f"{mean:.1f}"]))
    return rows


def steps(results: Path, lines: Sequence[str]) -> list[str]:
    """A row for each step from the paper's recipe, with the mean under each protocol."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in read_rows(results / "steps.csv"):
        scores = found.setdefault((row["row"], row["adds"]), {})
        scores.setdefault(row["protocol"], []).append(float(row["mean"]))
    protocols = [cell.strip("`") for cell in _cells(lines[0])[2:]]
    return [
        *lines[:2],
        *(_line([*key, *(mean_sd(scores[name]) for name in protocols)]) for key, scores in found.items()),
    ]


def sensitivity(results: Path, lines: Sequence[str]) -> list[str]:
    """A row for each number that costs a point somewhere at half or twice its value; the worst of all others."""
    rows = read_rows(results / "sensitivity.csv")
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["change"]:
            found.setdefault(row["id"], {}).setdefault(row["dataset"], []).append(float(row["change"]))
    worst = {name: min(min(values) for values in changes.values()) for name, changes in found.items()}
    small = [name for name in found if worst[name] > -1]
    table = [f"| [× ½ / × 2](results/sensitivity.csv) | {' | '.join(sets)} |", "|---" * (1 + len(sets)) + "|"]
    for name in sorted(set(found) - set(small), key=lambda name: worst[name]):
        shown = [" / ".join(f"{value:+.1f}" for value in found[name].get(one, ())) for one in sets]
        table.append(_line([f"`{name}`", *shown]))
    if small:
        least = [min(min(found[name].get(one, [0.0])) for name in small) for one in sets]
        table.append(_line([f"{len(small)} others, the worst", *(f"{value:+.1f}" for value in least)]))
    return table


TABLES: dict[str, Callable[[Path, Sequence[str]], list[str]]] = {
    "chaos": fill,
    "kinds": fill,
    "ingredients": ingredients,
    "steps": steps,
    "sensitivity": sensitivity,
}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
