"""Every file of docs/results from one command: what is measured, in which order, and by which benchmark."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias, TypeVar

from bundle.atomic import write_json, write_text
from bundle.errors import explain
from bundle.ids import suggest

from .on_demand import OnDemand
from .tables import RESULTS, read_rows, tables

benchmark = OnDemand("scripts.benchmark")  # imports this file itself
identity = OnDemand("bundle.identity")
stats = OnDemand("scipy.stats")
torch = OnDemand("torch")
whole_volumes = OnDemand("scripts.volumes")

ROOT = Path(__file__).resolve().parent.parent
CHAOS, ACDC, HIPPOCAMPUS, OPENKBP = TESTED = ("chaos_t2", "acdc_ed", "hippocampus", "openkbp_hn_ct")
SHOWN = dict(zip(TESTED, ("CHAOS", "ACDC", "hippocampus", "OpenKBP")))  # what tables call them
UNTESTED = ("totalseg_example", "sarcoma_ct_t1")  # images for the training alone
FOLDS, SEEDS = (0, 1, 2, 3, 4), (1, 0, 2)
SHIPPED, PERMISSIVE = (str(ROOT / "models" / name) for name in ("model.pt", "model_permissive.pt"))
IMAGENET = str(ROOT / "models/pretrained/efficientnet_lite0_imagenet.pt")
PACKAGES = ("torch", "monai", "numpy", "scikit-image")
STATE = ("bundle/**/*.py", "bundle/**/*.json", "configs/*.json", "models/**/*.pt")  # what a figure depends on
CODE = ("bundle", "configs", "models", "scripts")
QUICK_TEST = {"datalist": "$@split['queries'][:1]"}
QUICK_TRAINING = {"max_epochs": 1, "epoch_length": 40, "images": "$@split['train'][:3]"}

# what is changed one at a time: the name in the table, and ids
DEFAULT = "the default"
NO_REGION = {"region_of_interest": False}
INGREDIENTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "--upsampling False": {"upsampling": False},
    "--registration False, and with it the turns in the plane": {"registration": False},
    "--in_plane_orientation False": {"in_plane_orientation": False},
    "--region_of_interest False": NO_REGION,
    "--num_slices 1": {"num_slices": 1},
    "--min_component_share 0": {"min_component_share": 0},
    "--smoothing_mm 0": {"smoothing_mm": 0},
    "--refinement False": {"refinement": False},
    "--truncated_structures False": {"truncated_structures": False},
    "--completion False": {"completion": False},
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no region of interest": NO_REGION,
    "no region of interest, 8 mm of smoothing": {**NO_REGION, "smoothing_share": 100},
}
ALL_QUERIES = (
    "1 support",
    "upper half",
    "lower half",
    "resampled",
    "1 support, 3 pseudo-supports",
    "1 support, 3 slices",
)
FIVE_QUERIES = ("chaos_01", "chaos_13", "chaos_21", "chaos_33", "chaos_38")  # one of each fold

Row: TypeAlias = "dict[str, Any]"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Work:
    """Where a call measures, and how much.

    Attributes:
        data: folder that holds the folders of the data sets.
        output: folder of the runs.
        quick: measure the first item of each list alone, with short trainings.
        jobs: runs side by side.
    """

    data: Path
    output: Path
    quick: bool = False
    jobs: int = 2

    def some(self, items: Iterable[Item], quick: int = 1) -> list[Item]:
        """All items, or the first few if it has to be quick."""
        return list(items)[: quick if self.quick else None]


@dataclass(frozen=True)
class Part:
    """One file of results.

    Attributes:
        name: the file's, without ``.csv``.
        about: what it measures, in one line.
        sets: folders of the data sets that it needs.
        measure: measures it and returns the file's rows; what is finished is not measured again.
        seeds: seeds of the trainings, where no row tells them; none if nothing is trained.
        note: what the file's head says of its rows.
    """

    name: str
    about: str
    sets: tuple[str, ...]
    measure: Callable[[Work], list[Row]]
    seeds: tuple[int, ...] = ()
    note: Callable[[Sequence[Row]], str] = lambda rows: ""


def cross_validated(
    dataset: str, protocol: str, folder: str, folds: Sequence[int] = FOLDS, seeds: Sequence[int] = (0,), **options: Any
) -> Callable[[Work], list[Row]]:
    """A network a fold and seed, or the weights that are given: a row for each of them and label."""

    def measure(work: Work) -> list[Row]:
        runs = _accuracy(work, dataset, protocol, folder, folds, seeds, **options)
        return _by_label(runs, dataset, protocol, options.get("setting", 1))

    return measure


def by_network_of_chaos(protocol: str) -> Callable[[Work], list[Row]]:
    """Hearts by the network of CHAOS's fold 0 and seed 1, which knows abdomens alone."""

    def measure(work: Work) -> list[Row]:
        _accuracy(work, CHAOS, "volume", "chaos", (0,), (1,))
        weights = str(work.output / "chaos/setting1/fold0_seed1/models/model_final.pt")
        return cross_validated(ACDC, protocol, "acdc_by_chaos", weights=weights)(work)

    return measure


def left_out(dataset: str, protocol: str = "volume", folds: Sequence[int] = FOLDS) -> Callable[[Work], list[Row]]:
    """One network for all folds, trained on the images of all other data sets."""

    def measure(work: Work) -> list[Row]:
        others = [ACDC, UNTESTED[0]] if work.quick else [*TESTED, *UNTESTED]  # the small ones
        folders = [str(work.data / name) for name in dict.fromkeys([dataset, *others])]
        overrides = {"max_epochs": 7} if not work.quick else {**QUICK_TEST, **_schedule()}
        benchmark.transfer(
            folders,
            str(work.output / "transfer"),
            tested=[dataset],
            protocol=protocol,
            folds=work.some(folds),
            overrides=overrides,
            jobs=work.jobs,
        )
        runs = read_rows(work.output / f"transfer/without_{dataset}/setting1/{protocol}.csv")
        return _by_label(runs, dataset, protocol, 1)

    return measure


def changed(
    column: str,
    cases: Mapping[str, Mapping[str, Any]],
    sets: Sequence[str],
    folds: Sequence[int],
    weights: str = SHIPPED,
) -> Callable[[Work], list[Row]]:
    """Weights that are shipped with some ids changed: a row for each case, data set and fold."""

    def measure(work: Work) -> list[Row]:
        rows = []
        for case, ids in work.some(cases.items(), 2):
            for dataset in work.some(sets, 2):
                for run in _shipped(work, dataset, ids, folds, weights):
                    row = {column: case, "dataset": SHOWN[dataset], "protocol": "volume", "fold": run["fold"]}
                    rows.append({**row, "dice": f"{float(run['mean']):.1f}"})
        return rows

    return measure


def shipped(weights: str, cases: Mapping[str, Mapping[str, Any]]) -> Callable[[Work], list[Row]]:
    """Weights that are shipped on every data set, in the order of the columns that the file has."""

    def measure(work: Work) -> list[Row]:
        rows = changed("condition", cases, TESTED, FOLDS, weights)(work)
        order = ("dataset", "protocol", "condition", "fold", "dice")
        return [{key: row[key] for key in order} for row in rows]

    return measure


def steps(work: Work) -> list[Row]:
    """From the paper's recipe to the default."""
    few = {"rows": (0, 2, 15), "folds": (2,), "seeds": (0,), "num_steps": 10, "protocols": ("volume",)}
    options: dict[str, Any] = few if work.quick else {"num_steps": 250}
    benchmark.steps(str(work.data / CHAOS), str(work.output / "steps"), jobs=work.jobs, **options)
    return read_rows(work.output / "steps/steps.csv")


def paired_test(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the default gains over the paper's recipe: one pair a fold and label, since seeds share their scans."""
    labels = [name for name in rows[0] if name not in ("row", "adds", "protocol", "fold", "seed", "mean")]
    told = []
    last = max(rows, key=lambda row: int(row["row"]))["row"]
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        scores: dict[tuple[str, str, str], list[float]] = {}
        for row in rows:
            if row["protocol"] == protocol:
                for label in labels:
                    scores.setdefault((row["row"], row["fold"], label), []).append(float(row[label]))
        gains = [fmean(s) - fmean(scores["2", f, n]) for (row, f, n), s in scores.items() if row == last]
        p = float(stats.wilcoxon(gains).pvalue)
        told.append(f"{protocol} {fmean(gains):+.1f} points in {len(gains)} pairs, p = {p:.2g}")
    return (
        f"row {last} against row 2, the paper's recipe, pairs of fold and label, mean over seeds, "
        f"Wilcoxon signed-rank test, two-sided: {'; '.join(told)}"
    )


def volumes(folder: str, all_queries: bool) -> Callable[[Work], list[Row]]:
    """Whole scans as users bring them, by the networks of CHAOS's seed 1."""

    def measure(work: Work) -> list[Row]:
        _accuracy(work, CHAOS, "volume", "chaos", FOLDS, (1,))
        others = [name for name in whole_volumes.CONDITIONS if name not in ALL_QUERIES[1:]]
        conditions = work.some(ALL_QUERIES if all_queries else others, 2)
        cases = None if all_queries and not work.quick else FIVE_QUERIES
        runs, output = work.output / "chaos", work.output / folder
        given = {"folds": work.some(FOLDS), "seeds": (1,), "cases": cases, "conditions": conditions}
        benchmark.volumes(str(work.data / CHAOS), str(runs), str(output), **given)
        head = {"dataset": CHAOS, "protocol": "volume", "setting": 1}
        return [{**head, **row} for row in read_rows(output / "summary.csv")]

    return measure


def expected(work: Work) -> list[Row]:
    """The estimate of a label's Dice, judged on each data set by a fit to the others."""
    for dataset in TESTED:
        _shipped(work, dataset, {}, FOLDS)
    folder = work.output / "expected_dice"
    benchmark.expected_dice([str(work.output / "shipped/default" / name) for name in TESTED], str(folder))
    return [{**row, "dataset": SHOWN[row["dataset"]]} for row in read_rows(folder / "expected_dice.csv")]


def sensitivity(work: Work) -> list[Row]:
    """Each number of the inference times a half and two."""
    folders = [str(work.data / name) for name in ((HIPPOCAMPUS,) if work.quick else TESTED)]
    output = work.output / "sensitivity"
    benchmark.sensitivity(folders, str(output), **({"ids": ["num_slices"], "queries": 1} if work.quick else {}))
    return [{**row, "dataset": SHOWN[row["dataset"]]} for row in read_rows(output / "sensitivity.csv")]


def completion(work: Work) -> list[Row]:
    """Scans completed from every second slice and from five, by images, by shapes and by both."""
    rows = []
    for dataset in work.some(TESTED):
        for found in _completion(work, dataset, "ways", slices=work.some((5, "every second"))):
            for way in ("images", "shapes", "both"):
                head = {"dataset": SHOWN[dataset], "scan": found["scan"], "labelled": found["labelled"]}
                rows.append({**head, "way": way, "dice": found[way]})
    return rows


def growth(work: Work) -> list[Row]:
    """Slices labelled one after another: the mean over two hearts, and one abdomen."""
    rows = []
    for dataset, scans in work.some(((ACDC, (3, 11)), (CHAOS, (3,)))):
        counts = work.some((1, 2, 3, 5, 8), 2)
        found = _completion(work, dataset, "growth", scans=work.some(scans), growth=True, slices=counts)
        for how in ("evenly", "least sure"):
            for count in map(str, counts):
                dice = fmean(float(row[count]) for row in found if row["slices chosen"] == how)
                rows.append({"dataset": SHOWN[dataset], "slices chosen": how, "slices": count, "dice": f"{dice:.1f}"})
    return rows


def extension(work: Work) -> list[Row]:
    """How far labels are continued beyond the labelled slices: one or three in the middle third, or five over all."""
    rows = []
    for value in work.some((0.75, 0, 0.5, 1)):
        for dataset in work.some((CHAOS, ACDC, HIPPOCAMPUS)):
            for count, middle in work.some(((3, 1 / 3), (1, 1 / 3), (5, 1.0))):
                given: dict[str, Any] = {"slices": [count], "middle": middle, "overrides": {"extension": value}}
                found = _completion(work, dataset, f"extension_{value}_{count}", **given)
                dice = fmean(float(row["both"]) for row in found)
                rows.append({"extension": value, "dataset": SHOWN[dataset], "slices": count, "dice": f"{dice:.1f}"})
    return sorted(rows, key=lambda row: row["extension"])


def second_scan(work: Work) -> list[Row]:
    """Three slices of a scan, another scan that is wholly labelled, and both."""
    rows = []
    for dataset, scans in work.some(((CHAOS, (3,)), (ACDC, (3, 11)), (HIPPOCAMPUS, (3, 11)))):
        for found in _completion(work, dataset, "second_scan", scans=work.some(scans), other=8):
            ways = {way: dice for way, dice in found.items() if way != "scan"}
            head = {"dataset": SHOWN[dataset], "scan": found["scan"]}
            rows += [{**head, "support": way, "dice": dice} for way, dice in ways.items()]
    return rows


GROUPS: dict[str, Any] = {"setting": 2, "groups": ((2, 3), (1, 4))}
# what matters most comes first
PARTS = (
    Part("shipped_volume", "the shipped weights on every kind of scan", TESTED, shipped(SHIPPED, CONDITIONS)),
    Part(
        "permissive_volume",
        "the weights that a company can use on every kind of scan",
        TESTED,
        shipped(PERMISSIVE, {"default": {}}),
    ),
    Part(
        "chaos_setting1_volume", "CHAOS, whole scans", (CHAOS,), cross_validated(CHAOS, "volume", "chaos", seeds=SEEDS)
    ),
    Part(
        "chaos_setting1_official",
        "CHAOS, the published protocol",
        (CHAOS,),
        cross_validated(CHAOS, "official", "chaos", seeds=SEEDS),
    ),
    Part(
        "chaos_permissive_official",
        "CHAOS by the weights that a company can use, which saw no image of it",
        (CHAOS,),
        cross_validated(CHAOS, "official", "chaos_permissive", weights=PERMISSIVE),
    ),
    Part("sensitivity", "each number of the inference times 1/2 and 2", TESTED, sensitivity),
    Part("steps", "from the paper's recipe to the default", (CHAOS,), steps, note=paired_test),
    Part(
        "chaos_setting2_official",
        "CHAOS, tested organs kept from the training",
        (CHAOS,),
        cross_validated(CHAOS, "official", "chaos", seeds=SEEDS, **GROUPS),
    ),
    *(
        Part(f"{short}_transfer_volume", f"{name} left out of the training", (*TESTED, *UNTESTED), left_out(name))
        for short, name in (("chaos", CHAOS), ("acdc", ACDC), ("openkbp", OPENKBP), ("hippocampus", HIPPOCAMPUS))
    ),
    Part("chaos_transfer_official", "the same under official", (*TESTED, *UNTESTED), left_out(CHAOS, "official")),
    Part("openkbp_transfer_official", "the same, fold 0", (*TESTED, *UNTESTED), left_out(OPENKBP, "official", (0,))),
    Part(
        "ingredients",
        "the shipped weights without one ingredient at a time",
        (CHAOS, ACDC, HIPPOCAMPUS),
        changed("without", INGREDIENTS, (CHAOS, ACDC, HIPPOCAMPUS), (0, 1)),
    ),
    Part("expected_dice", "the estimate of each label's Dice", TESTED, expected),
    Part(
        "volumes_all_queries",
        "whole scans: cut, resampled, few labels; sd over folds",
        (CHAOS,),
        volumes("volumes", True),
        seeds=(1,),
    ),
    Part(
        "volumes_five_queries",
        "whole scans, one query of each fold: wrong headers, several supports; sd over folds",
        (CHAOS,),
        volumes("volumes_of_five", False),
        seeds=(1,),
    ),
    Part("completion", "slices between that were not labelled", TESTED, completion),
    Part("completion_growth", "more and more labelled slices, whole scan", (CHAOS, ACDC), growth),
    Part("completion_extension", "labels continued over the other slices", (CHAOS, ACDC, HIPPOCAMPUS), extension),
    Part(
        "completion_second_scan", "another labelled scan beside three slices", (CHAOS, ACDC, HIPPOCAMPUS), second_scan
    ),
    Part(
        "chaos_imagenet_official",
        "CHAOS by ImageNet weights, no training",
        (CHAOS,),
        cross_validated(CHAOS, "official", "imagenet", weights=IMAGENET),
    ),
    Part("acdc_chaos_network_volume", "hearts by a network of CHAOS", (CHAOS, ACDC), by_network_of_chaos("volume")),
    Part("acdc_chaos_network_official", "the same under official", (CHAOS, ACDC), by_network_of_chaos("official")),
    Part(
        "openkbp_own_volume",
        "OpenKBP fold 0 by its own network",
        (OPENKBP,),
        cross_validated(OPENKBP, "volume", "openkbp", folds=(0,)),
    ),
)


def everything(
    data: str,
    output_dir: str,
    parts: Sequence[str] | None = None,
    quick: bool = False,
    jobs: int | None = None,
    results_dir: str = RESULTS,
) -> str:
    """Measure all that docs/benchmark.md shows, train what is missing for it, and write results files and tables.

    Goes on where an earlier call of the same state of code, configs and weights stopped. A results file is written as
    soon as its part is measured; what fails is told at the end.

    Args:
        data: folder that holds the folders chaos_t2, acdc_ed, hippocampus, openkbp_hn_ct, totalseg_example and
            sarcoma_ct_t1. What needs a missing one is left out.
        output_dir: folder of the runs, and of results/ with a file for each finished part.
        parts: names of results files, such as "['steps','shipped_volume']"; by default all.
        quick: one fold, seed and query, and ten training steps: half an hour in all on two cores. Shows that all
            works; the figures are no results and stay in output_dir.
        jobs: folds and seeds side by side; by default 2, or 1 where it has to be quick.
        results_dir: folder that gets the results files; with its default the document's tables are written anew, too.
    """
    names = [part.name for part in PARTS]
    parts = [parts] if isinstance(parts, str) else parts
    for name in parts or ():
        if name not in names:
            raise ValueError(f"parts: no part is called {name!r}{suggest(name, names)}")
    work = Work(Path(data).resolve(), Path(output_dir).resolve(), quick, jobs or (1 if quick else 2))
    todo = [part for part in PARTS if parts is None or part.name in parts]
    for name in (*TESTED, *UNTESTED):
        costs = [part.name for part in todo if name in part.sets]
        if costs and not (work.data / name / "imagesTr").is_dir():
            print(f"{name} is not in {data}: left out are {', '.join(costs)}", flush=True)
            todo = [part for part in todo if part.name not in costs]
    if not todo:
        raise ValueError(f"{data}: no part can be measured with the data sets there")
    commit = claim(work.output, quick)
    started, failed, written = time.monotonic(), {}, []
    for number, part in enumerate(todo, 1):
        file = work.output / "results" / f"{part.name}.csv"
        print(f"[{number}/{len(todo)}, {_clock(started)}] {part.name}: {part.about}", flush=True)
        if not file.is_file():
            try:
                rows = part.measure(work)
            except Exception as error:  # the others must not wait for the next night
                failed[part.name] = explain(error)
                print(f"{part.name} failed: {failed[part.name]}", flush=True)
                continue
            claim(work.output, quick)  # what changed meanwhile has its share in the figures
            write_text(file, as_csv(head(part, rows, commit, quick), rows))
        if not quick:
            file = Path(results_dir) / file.name
            write_text(file, (work.output / "results" / file.name).read_text(encoding="utf-8"))
        written.append(str(file))
    if not quick and results_dir == RESULTS and written:
        print(tables(), flush=True)
    lines = [f"{_clock(started)}, written:", *written]
    others = (
        [] if quick else [path.name for path in sorted(Path(results_dir).glob("*.csv")) if commit_of(path) != commit]
    )
    if others:
        lines.append(f"of another commit than {commit}: {', '.join(others)}")
    if failed:
        print("\n".join(lines), flush=True)
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    return "\n".join(lines)


def claim(output: Path, quick: bool) -> str:
    """Note in a folder of runs which state of the code makes them, and return its commit.

    Raises:
        ValueError: if the folder's runs are of another state.
    """
    file = output / "state.json"
    mine = {"state": state(), "quick": quick}
    if not file.is_file():
        if output.is_dir() and any(output.iterdir()):
            raise ValueError(f"{output}: holds runs of an unknown state; choose another output_dir")
        write_json(file, {**mine, "commit": head_commit()})
    known = json.loads(file.read_text(encoding="utf-8"))
    if {key: known.get(key) for key in mine} != mine:
        what = "quick runs" if known.get("quick") and not quick else "runs"
        raise ValueError(
            f"{output}: holds {what} of another state, commit {known.get('commit')}; choose another output_dir"
        )
    return str(known["commit"])


def state() -> str:
    """A short name of all that figures depend on: code, configs and weights."""
    found = hashlib.sha256()
    for path in sorted({file for pattern in STATE for file in ROOT.glob(pattern)}):
        found.update(f"{path.relative_to(ROOT)} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def head_commit() -> str:
    """The commit that is checked out, marked if code, configs or weights differ from it; unknown without Git.

    Results files and the document do not count: they change as soon as the first part is measured.
    """
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def head(part: Part, rows: Sequence[Row], commit: str, quick: bool) -> list[str]:
    """The comment lines of a results file; no path of any machine is among them."""
    seeds = sorted({int(row["seed"]) for row in rows if "seed" in row} | set(part.seeds))
    versions = [
        f"python {platform.python_version()}",
        *(" ".join(item) for item in identity.installed_versions(PACKAGES).items()),
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    note = "; ".join(text for text in (part.about, part.note(rows)) if text)
    parts = f"--parts \"['{part.name}']\"" + (" --quick" if quick else "")
    return [
        f"command: python -m scripts.benchmark all --data DATA --output_dir RUNS {parts}",
        f"commit: {commit}",
        f"versions: {', '.join(versions)}",
        f"seeds: {', '.join(map(str, seeds)) or 'nothing is trained'}",
        f"device: {device}, {os.cpu_count()} cores",
        f"note: {note}",
    ]


def as_csv(comments: Sequence[str], rows: Sequence[Row]) -> str:
    """A results file: comment lines, then the rows."""
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in comments)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def commit_of(path: Path) -> str:
    """The commit that a results file names."""
    found = re.search(r"^# commit: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "none"


def _accuracy(
    work: Work,
    dataset: str,
    protocol: str,
    folder: str,
    folds: Sequence[int],
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, str]]:
    """Run the benchmark of one protocol; a row for each fold and seed, in this order."""
    quick = {**QUICK_TEST, **(QUICK_TRAINING if options.get("weights") is None else {})} if work.quick else {}
    benchmark.accuracy(
        str(work.data / dataset),
        str(work.output / folder),
        protocol=protocol,
        folds=work.some(folds),
        seeds=work.some(seeds),
        overrides={**quick, **(overrides or {})},
        jobs=work.jobs,
        **options,
    )
    rows = read_rows(work.output / folder / f"setting{options.get('setting', 1)}" / f"{protocol}.csv")
    return sorted(rows, key=lambda row: (int(row["fold"]), int(row["seed"])))


def _shipped(
    work: Work, dataset: str, ids: Mapping[str, Any], folds: Sequence[int], weights: str = SHIPPED
) -> list[dict[str, str]]:
    """Evaluations of shipped weights with some ids changed; parts that ask for the same share them."""
    name = "_".join(f"{key}_{value}" for key, value in ids.items()) or "default"
    folder = f"{'shipped' if weights == SHIPPED else 'permissive'}/{name}/{dataset}"
    return _accuracy(work, dataset, "volume", folder, folds, overrides=ids, weights=weights)


def _completion(work: Work, dataset: str, name: str, scans: Sequence[int] = (3, 11), **options: Any) -> list[Row]:
    """Rows of a table of the benchmark of completion, one a scan."""
    output = str(work.output / "completion" / name / dataset)
    table = benchmark.completion(str(work.data / dataset), output, scans=work.some(scans), **options)
    keys, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [row for row in (dict(zip(keys, line)) for line in lines) if row["scan"] != "mean"]


def _by_label(runs: Iterable[Mapping[str, str]], dataset: str, protocol: str, setting: int) -> list[Row]:
    """One row for each label of each run."""
    return [
        {
            "dataset": dataset,
            "protocol": protocol,
            "setting": setting,
            "fold": run["fold"],
            "seed": run["seed"],
            "label": label,
            "dice": dice,
        }
        for run in runs
        for label, dice in run.items()
        if label not in ("fold", "seed", "mean") and dice  # none where no query shows the label
    ]


def _schedule() -> dict[str, Any]:
    """A short training, without the choice of images that a fold makes."""
    return {key: value for key, value in QUICK_TRAINING.items() if key != "images"}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _clock(started: float) -> str:
    minutes = round((time.monotonic() - started) / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
