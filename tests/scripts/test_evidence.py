"""The one command that makes all results files, and the tables of the document."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from scripts import benchmark, evidence
from scripts.evidence import INGREDIENTS, PARTS, TESTED, UNTESTED, everything, paired_test
from scripts.tables import read_rows, tables

from ..conftest import ROOT

RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def runs(monkeypatch):
    """Calls of the benchmark of accuracy, which leaves its table as the real one does."""
    made = []

    def accuracy(dataset_dir, output_dir, protocol, folds, seeds, setting=1, **options):
        made.append(
            {"dataset": Path(dataset_dir).name, "protocol": protocol, "folds": folds, "seeds": seeds, **options}
        )
        path = Path(output_dir) / f"setting{setting}" / f"{protocol}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["fold", "seed", "disc", "ring", "mean"])
            writer.writerows(
                [fold, seed, 50 + fold, 60 + seed, 55 + (fold + seed) / 2] for seed in seeds for fold in folds
            )

    monkeypatch.setattr(benchmark, "accuracy", accuracy)
    return made


@pytest.fixture
def folder(tmp_path):
    """Folders of all data sets, empty."""
    for name in (*TESTED, *UNTESTED):
        (tmp_path / "data" / name / "imagesTr").mkdir(parents=True)
    return tmp_path / "data"


def run(folder, *parts, **options):
    """Measure parts into folders beside the data."""
    places = {"output_dir": str(folder.parent / "runs"), "results_dir": str(folder.parent / "results")}
    return everything(str(folder), parts=parts, **{**places, **options})


def test_a_part_writes_its_file_with_a_head_that_names_no_path(runs, folder):
    said = run(folder, "chaos_setting1_volume")
    path = folder.parent / "results" / "chaos_setting1_volume.csv"
    text = path.read_text()
    assert str(path) in said
    head = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("# "))
    assert list(head) == ["command", "commit", "versions", "seeds", "device", "note"]
    assert head["command"].endswith("""--parts "['chaos_setting1_volume']\"""")
    assert head["seeds"] == "0, 1, 2"
    assert re.fullmatch(r"python 3\S+, torch \S+, monai \S+, numpy \S+, scikit-image \S+", head["versions"])
    assert str(folder.parent) not in text
    assert str(ROOT) not in text
    rows = read_rows(path)
    assert len(rows) == 5 * 3 * 2
    assert rows[0] == {"dataset": "chaos_t2", "protocol": "volume", "setting": "1", "fold": "0", "seed": "0",
                       "label": "disc", "dice": "50"}  # fmt: skip
    assert list(rows[0]) == list(read_rows(RESULTS / "chaos_setting1_volume.csv")[0])


def test_what_is_measured_is_not_measured_again(runs, folder):
    run(folder, "chaos_setting1_volume")
    shutil.rmtree(folder.parent / "results")
    run(folder, "chaos_setting1_volume", "chaos_setting1_official")
    assert [each["protocol"] for each in runs] == ["volume", "official"]
    assert len(list((folder.parent / "results").iterdir())) == 2


def test_quick_takes_little_and_leaves_the_results_alone(runs, folder):
    run(folder, "chaos_setting1_official", "shipped_volume", "ingredients", quick=True)
    assert all(len(each["folds"]) == len(each["seeds"]) == 1 for each in runs)
    trained = [each for each in runs if each.get("weights") is None]
    assert [each["overrides"]["epoch_length"] for each in trained] == [40]
    assert all("datalist" in each["overrides"] for each in runs)
    assert not (folder.parent / "results").exists()
    written = folder.parent / "runs" / "results" / "ingredients.csv"
    assert "--quick" in written.read_text().splitlines()[0]
    assert {row["without"] for row in read_rows(written)} == set(list(INGREDIENTS)[:2])


def test_rows_of_the_shipped_weights_have_the_columns_of_the_committed_files(runs, folder):
    run(folder, "shipped_volume", "ingredients", jobs=3)
    for name in ("shipped_volume", "ingredients"):
        found = read_rows(folder.parent / "results" / f"{name}.csv")
        assert list(found[0]) == list(read_rows(RESULTS / f"{name}.csv")[0])
    assert {each["jobs"] for each in runs} == {3}
    assert found[0] == {"without": "the default", "dataset": "CHAOS", "protocol": "volume", "fold": "0", "dice": "55.0"}


def test_a_missing_data_set_costs_its_parts_alone(runs, folder, capsys):
    shutil.rmtree(folder / "acdc_ed")
    run(folder, "chaos_setting1_volume", "shipped_volume")
    assert "acdc_ed is not in" in capsys.readouterr().out
    assert [each["dataset"] for each in runs] == ["chaos_t2"]
    with pytest.raises(ValueError, match="no part can be measured with the data sets there"):
        run(folder, "shipped_volume")


def test_an_unknown_part_is_refused(runs, folder):
    with pytest.raises(ValueError, match=r"no part is called 'step'; did you mean steps\?"):
        run(folder, "step")
    assert not (folder.parent / "runs").exists()


def test_runs_of_another_state_are_refused(runs, folder, monkeypatch):
    run(folder, "chaos_setting1_volume")
    with pytest.raises(ValueError, match="holds runs of another state, commit .*; choose another output_dir"):
        run(folder, "chaos_setting1_volume", quick=True)
    monkeypatch.setattr(evidence, "state", lambda: "another")
    with pytest.raises(ValueError, match="another state"):
        run(folder, "chaos_setting1_volume")
    (folder.parent / "runs" / "state.json").unlink()
    with pytest.raises(ValueError, match="holds runs of an unknown state"):
        run(folder, "chaos_setting1_volume")


def test_code_that_changes_during_a_part_leaves_no_file(runs, folder, monkeypatch):
    states = iter(["before", "after"])
    monkeypatch.setattr(evidence, "state", lambda: next(states))
    with pytest.raises(ValueError, match="holds runs of another state"):
        run(folder, "chaos_setting1_volume", "chaos_setting1_official")
    assert len(runs) == 1
    assert not (folder.parent / "results").exists()


def test_a_part_that_fails_does_not_stop_the_others(runs, folder, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "steps", lambda *_, **__: 1 / 0)
    with pytest.raises(RuntimeError, match="steps: division by zero"):
        run(folder, "steps", "chaos_setting2_official")
    assert "chaos_setting2_official.csv" in capsys.readouterr().out
    assert runs[0]["groups"] == ((2, 3), (1, 4))


def test_files_of_other_commits_are_named(runs, folder):
    (folder.parent / "results").mkdir()
    shutil.copy(RESULTS / "steps.csv", folder.parent / "results")
    assert re.search("of another commit than .*: steps.csv", run(folder, "chaos_setting1_volume"))


def test_the_state_follows_code_configs_and_weights(tmp_path, monkeypatch):
    for name in ("bundle/a.py", "configs/a.json", "models/model.pt", "scripts/a.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    found = {evidence.state()}
    for name in ("bundle/a.py", "configs/a.json", "models/model.pt"):
        (tmp_path / name).write_text("2")
        found.add(evidence.state())
    assert len(found) == 4
    (tmp_path / "scripts/a.py").write_text("2")
    assert evidence.state() in found


def test_every_committed_file_has_a_part():
    assert {path.stem for path in RESULTS.glob("*.csv")} <= {part.name for part in PARTS}


def test_paired_test_of_the_committed_steps():
    told = paired_test(read_rows(RESULTS / "steps.csv"))
    assert told in (RESULTS / "steps.csv").read_text()
    assert "official +35.2 points in 8 pairs, p = 0.0078" in told


def test_the_document_shows_its_results_files(tmp_path):
    copy = Path(shutil.copy(ROOT / "docs" / "benchmark.md", tmp_path))
    said = tables(str(copy), str(RESULTS))
    assert said == "benchmark.md: its tables are those of the results"
    assert copy.read_text() == (ROOT / "docs" / "benchmark.md").read_text()


def test_tables_follow_their_files_and_keep_the_words(tmp_path):
    copy = Path(shutil.copy(ROOT / "docs" / "benchmark.md", tmp_path))
    results = Path(shutil.copytree(RESULTS, tmp_path / "results"))
    before = copy.read_text()
    for name, old, new in (
        ("chaos_setting1_official", "1,0,0,liver,81.88", "1,0,0,liver,11.88"),
        ("ingredients", "--upsampling False,CHAOS,volume,0,78.2", "--upsampling False,CHAOS,volume,0,8.2"),
        ("shipped_volume", "CHAOS,volume,default,0,82.0", "CHAOS,volume,default,0,2.0"),
    ):
        text = (results / f"{name}.csv").read_text()
        assert old in text
        (results / f"{name}.csv").write_text(text.replace(old, new))
    assert tables(str(copy), str(results)) == "benchmark.md: tables written anew"
    after = copy.read_text()
    changed = [pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]]
    assert [new.split(" |")[0] for _, new in changed] == [
        "| setting 1",
        "| CHAOS (slices of 7.7 mm)",
        "| `--upsampling False`",
    ]
    assert "| 78.99 ± 18.71 |" in changed[0][1]
    assert "without `atlas_fallback` 84.5" in changed[0][1]
    assert (
        "| **66.8** | before empty slices were cut off 83.3; no region of interest, 8 mm of smoothing 83.1 |"
        in changed[1][1]
    )
    assert "| 8.2, 77.2 |" in changed[2][1]


def test_a_table_that_nobody_knows_is_refused(tmp_path):
    (tmp_path / "doc.md").write_text("<!-- table: step -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"no table is called 'step'; did you mean steps\?"):
        tables(str(tmp_path / "doc.md"), str(RESULTS))


def test_the_table_of_sensitivity_shows_what_costs_a_point(tmp_path):
    rows = ["id,factor,value,dataset,measure,dice,change"]
    tried = (("0.5", "CHAOS", "-3.24"), ("2", "CHAOS", "+0.50"), ("0.5", "ACDC", "+0.00"), ("2", "ACDC", ""))
    rows += [f"a#b,{factor},1,{name},volume,80,{change}" for factor, name, change in tried]
    rows += [f"c,{factor},1,{name},volume,80,-0.50" for factor in ("0.5", "2") for name in ("CHAOS", "ACDC")]
    (tmp_path / "sensitivity.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "doc.md").write_text("<!-- table: sensitivity -->\n<!-- end -->\n")
    tables(str(tmp_path / "doc.md"), str(tmp_path))
    assert (tmp_path / "doc.md").read_text().splitlines()[1:-1] == [
        "| [× ½ / × 2](results/sensitivity.csv) | CHAOS | ACDC |",
        "|---|---|---|",
        "| `a#b` | -3.2 / +0.5 | +0.0 |",
        "| 1 others, the worst | -0.5 | -0.5 |",
    ]


def test_whole_chain_of_the_other_parts(runs, folder, monkeypatch):
    """Rows of the parts that are made of other benchmarks have the columns of the committed files."""

    def steps(dataset_dir, output_dir, **_):
        Path(output_dir).mkdir(parents=True)
        shutil.copy(RESULTS / "steps.csv", output_dir)

    def completion(dataset_dir, output_dir, slices=(), growth=False, other=None, **_):
        if growth:
            names = ["slices chosen", "scan", *map(str, slices)]
            rows = [[how, name, *(50 for _ in slices)] for how in ("evenly", "least sure") for name in ("a", "mean")]
        elif other is not None:
            names, rows = ["scan", "own slices alone", "the other scan alone", "both"], [["a", 1, 2, 3]]
        else:
            names = ["labelled", "scan", "images", "shapes", "both"]
            rows = [[how, name, 1, 2, 3] for how in slices for name in ("a", "mean")]
        lines = [names, ["---"] * len(names), *rows]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

    monkeypatch.setattr(benchmark, "steps", steps)
    monkeypatch.setattr(benchmark, "completion", completion)
    names = ("steps", "completion", "completion_growth", "completion_extension", "completion_second_scan")
    run(folder, *names)
    for name in names:
        found = read_rows(folder.parent / "results" / f"{name}.csv")
        assert found
        assert "mean" not in {row.get("scan") for row in found}
        if name != "completion":
            assert list(found[0]) == list(read_rows(RESULTS / f"{name}.csv")[0])
    assert "Wilcoxon" in (folder.parent / "results" / "steps.csv").read_text()
    assert json.loads((folder.parent / "runs" / "state.json").read_text())["quick"] is False
