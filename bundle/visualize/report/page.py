"""The page: sections of HTML around tables, charts and viewers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from ...data.datalist import label_names
from ...quality import Expectation
from ..colors import CONFIDENCE_SCALE, SIMILARITY_SCALE, HeatScale, heat_colors
from .charts import line_chart, strip_chart
from .runs import Run, mean_sd
from .viewer import case_pictures, find_file

HERE = Path(__file__).parent
# what CaseQuality writes of each label: key, head of the column, format
MEASURED = (
    ("volume_ml", "mL", ".4g"),
    ("extent_mm", "extent mm", ".0f"),  # from left to right, front to back and feet to head
    ("expected_dice", "expected Dice %", "range"),
    ("mean_intensity", "mean intensity", ".4g"),
    ("confidence", "confidence %", ".0f"),
    ("reverse_dice", "reverse Dice", ".2f"),
)
CONVENTION = "Radiological view: R marks the patient's right, on the left of each picture."


def build_page(
    runs: Sequence[Run],
    dataset_dir: str | os.PathLike | None = None,
    title: str | None = None,
    command: str | None = None,
    versions: Mapping[str, str] | None = None,
    max_pictures: int = 400,
    progress: Any = None,
) -> str:
    """One HTML page about runs that needs nothing but itself.

    Args:
        runs: at least one, see :func:`find_runs`.
        dataset_dir: folder where the scans and the truth of the cases lie; ``None`` for the one that a run recorded.
        title: heading; by default the run's name.
        command: how this page was made.
        versions: of the software that made the page, shown where a run recorded none.
        max_pictures: slices in the page at most, shared by its cases, at least 6 each; about 25 kB each.
        progress: wraps the list of cases, for example ``tqdm``.

    Raises:
        ValueError: without a run.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    title = title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    body = [header(title, runs)]
    if len(runs) > 1:
        body.append(runs_section(runs))
    body += [scores_section(run, len(runs) > 1) for run in runs if run.scores]
    body += [curves_section(run, len(runs) > 1) for run in runs if run.curves]
    body.append(cases_section(runs, dataset_dir, max_pictures, progress))
    body.append(origin_section(runs, command, versions or {}))
    style, script = ((HERE / f"page.{kind}").read_text() for kind in ("css", "js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{''.join(part for part in body if part)}\n</main><script>\n{script}</script></body></html>\n"
    )


def percent(value: float) -> str:
    """A Dice in percent, or a dash."""
    return "–" if math.isnan(value) else f"{value:.1f}"


def with_sd(values: Sequence[float]) -> str:
    """Mean and standard deviation of Dice in percent."""
    mean, spread = mean_sd(values)
    return percent(mean) if math.isnan(spread) else f"{percent(mean)} ± {spread:.1f}"


def header(title: str, runs: Sequence[Run]) -> str:
    """Heading and the figures that matter most."""
    facts = []
    scored = [run for run in runs if run.scores]
    if scored:
        facts.append((with_sd([run.mean for run in scored]), "mean Dice %"))
        cases = {(run.name, case) for run in scored for case in run.scores}
        facts.append((str(len(cases)), "cases measured"))
        facts.append((" / ".join(sorted({run.protocol or "?" for run in scored})), "protocol"))
    if len(runs) > 1:
        facts.append((str(len(runs)), "runs"))
    for run in runs[:1]:
        keys = [k for k in ("fold", "setting", "support") if k in run.summary] if len(runs) == 1 else []
        for key in keys:
            value = run.summary[key]
            facts.append((", ".join(map(str, value)) if isinstance(value, list) else str(value), key))
    boxes = "".join(f'<div class="fact"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in facts)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"<h1>{escape(title)}</h1><p class='soft'>Few-shot segmentation report, made {made}. "
        f"Research use only, not for diagnosis.</p><div class='facts'>{boxes}</div>"
    )


def score_cell(value: float) -> str:
    """A table cell with its Dice and a bar of that length, in one of three tints."""
    if math.isnan(value):
        return '<td class="number">–</td>'
    tint = "high" if value >= 75 else "middle" if value >= 50 else "low"
    return f'<td class="score" style="--bar:var(--{tint});--at:{min(max(value, 0), 100):.1f}%">{value:.1f}</td>'


def runs_section(runs: Sequence[Run]) -> str:
    """Table of runs and labels, with mean and standard deviation over the runs."""
    scored = [run for run in runs if run.scores]
    if not scored:
        return ""
    labels = list(dict.fromkeys(label for run in scored for label in run.labels))
    head = "".join(f'<th class="number">{escape(label)}</th>' for label in [*labels, "mean"])
    rows = []
    columns: dict[str, list[float]] = {label: [] for label in [*labels, "mean"]}
    for run in scored:
        values = {label: mean_sd(run.label_scores(label))[0] for label in labels}
        values["mean"] = run.mean
        for label, value in values.items():
            columns[label].append(value)
        cells = "".join(score_cell(value) for value in values.values())
        rows.append(f"<tr><th>{escape(run.name)}</th><td>{escape(run.protocol)}</td>{cells}</tr>")
    foot = "".join(f'<td class="number">{with_sd(values)}</td>' for values in columns.values())
    return (
        "<h2>Runs</h2><p class='soft'>Dice % of each run; the last line is mean ± standard deviation over runs.</p>"
        f'<div class="wide"><table><thead><tr><th>run</th><th>protocol</th>{head}</tr></thead><tbody>{"".join(rows)}'
        f"</tbody><tfoot><tr><th>mean ± sd</th><td></td>{foot}</tr></tfoot></table></div>"
    )


def by_worst(run: Run) -> list[str]:
    """Cases of a run, lowest mean Dice first, then those without one, lowest expected Dice first."""
    return sorted(dict.fromkeys([*run.scores, *run.predictions]), key=lambda case: _worst_first(run, case))


def _worst_first(run: Run, case: str) -> tuple[int, float]:
    """What cases are sorted by, see :func:`by_worst`."""
    measured, expected = run.case_mean(case), run.quality.get(case, {}).get("expected_dice")
    if not math.isnan(measured):
        return 0, measured
    return (1, sum(each[0] for each in expected.values()) / len(expected)) if expected else (2, 0.0)


def scores_section(run: Run, named: bool) -> str:
    """Chart and table of the Dice of each case and label."""
    labels = run.labels
    head = "".join(f'<th class="number">{escape(label)}</th>' for label in [*labels, "mean"])
    rows = []
    for case in by_worst(run):
        if case in run.scores:
            values = [*(run.scores[case].get(label, math.nan) for label in labels), run.case_mean(case)]
            rows.append(f"<tr><th>{escape(case)}</th>{''.join(map(score_cell, values))}</tr>")
    foot = "".join(f'<td class="number">{with_sd(run.label_scores(label))}</td>' for label in labels)
    foot += f'<td class="number">{percent(run.mean)}</td>'
    rule = {"volume": "over the whole volume; no extent of an organ was given", "": "protocol not recorded"}.get(
        run.protocol, "within the organ's true extent, as this protocol prescribes"
    )
    return (
        f"<h2>Dice{' of ' + escape(run.name) if named else ''}</h2>"
        f"<p class='soft'>Percent, protocol {escape(run.protocol or 'unknown')}: {escape(rule)}. A dot is a case, the "
        "line the mean, the band one standard deviation. Worst cases first.</p>"
        f"{strip_chart({label: run.label_scores(label) for label in labels})}"
        f'<div class="wide"><table><thead><tr><th>case</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"<tfoot><tr><th>mean ± sd</th>{foot}</tr></tfoot></table></div>"
    )


def curves_section(run: Run, named: bool) -> str:
    """Training curves."""
    charts = "".join(line_chart(name, *points) for name, points in run.curves.items())
    return f"<h2>Training{' of ' + escape(run.name) if named else ''}</h2><div class='charts'>{charts}</div>"


def cases_section(
    runs: Sequence[Run], dataset_dir: str | os.PathLike | None, max_pictures: int, progress: Any = None
) -> str:
    """A viewer for each predicted case, worst first."""
    cases = [(run, case) for run in runs for case in by_worst(run) if case in run.predictions]
    if not cases:
        return ""
    cases.sort(key=lambda pair: _worst_first(*pair))
    count = min(48, max(6, max_pictures // len(cases)))
    parts = []
    for index, (run, case) in enumerate(progress(cases) if progress else cases):
        folder = dataset_dir or run.record.get("settings", {}).get("dataset_dir")
        folder = folder if folder and Path(folder).is_dir() else None
        try:
            shown = case_pictures(
                run.predictions[case],
                find_file(folder, "images", case),
                find_file(folder, "labels", case),
                label_names(folder) if folder else {},
                count,
                confidence=run.confidences.get(case),
                similarity=run.similarities.get(case),
            )
        except ValueError as error:
            parts.append(f'<article class="case"><h3>{escape(case)}</h3><p>{escape(str(error))}</p></article>')
            continue
        name = case if len(runs) == 1 else f"{case} ({run.name})"
        parts.append(viewer(name, run, case, shown, f"slices-{index}"))
    return (
        "<h2>Cases</h2><p class='soft'>Worst first. Fill: prediction; line: truth. "
        f"{CONVENTION} The slider moves through the slices, so do the arrow keys when it is selected.</p>"
        f"<div class='cases'>{''.join(parts)}</div>"
    )


def viewer(name: str, run: Run, case: str, shown: Mapping[str, Any], identifier: str) -> str:
    """One case: its slices with a slider, what to show, names and scores."""
    slices, start = shown["slices"], shown["start"]
    first = slices[start]
    scores = "; ".join(f"{escape(k)} {percent(v)}" for k, v in run.scores.get(case, {}).items())
    scores = f"Dice % ({escape(run.protocol or 'protocol unknown')}): {scores}" if scores else "no Dice measured"
    legend = "".join(
        f'<span><i style="background:{color}"></i>{escape(text)}</span>' for text, color in shown["legend"]
    )
    boxes = '<label><input type="checkbox" class="show-fill" checked>prediction</label>'
    truth = heat = scale = ""
    if shown["truth"]:
        boxes += '<label><input type="checkbox" class="show-lines" checked>truth</label>'
        truth = f'<img class="lines" alt="truth" src="{first.get("truth", "")}">'
    if shown["confidence"]:
        boxes += '<label><input type="checkbox" class="show-heat">confidence instead of prediction</label>'
        heat = f'<img class="heat" alt="confidence" src="{first["confidence"]}" hidden>'
        scale = heat_legend(CONFIDENCE_SCALE, "heat-scale")
    if shown["similarity"]:
        boxes += '<label><input type="checkbox" class="show-like">similarity instead of prediction</label>'
        heat += f'<img class="like" alt="similarity to the support" src="{first["similarity"]}" hidden>'
        scale += heat_legend(SIMILARITY_SCALE, "like-scale")
    data = json.dumps(slices).replace("<", "\\u003c")
    note = f"<p class='soft'>{escape(shown['note'])}</p>" if shown["note"] else ""
    return (
        f'<article class="case" data-viewer="{identifier}"><h3>{escape(name)}</h3><p class="soft">{scores}</p>'
        f"{quality_line(run.quality.get(case, {}))}"
        f'<div class="stack" style="aspect-ratio:{shown["aspect"]}">'
        f'<img class="scan" alt="slice of {escape(name)}" src="{first["image"]}">'
        f'<img class="fill" alt="prediction" src="{first.get("prediction", "")}">{heat}{truth}'
        f'<b class="left">{escape(shown["left"])}</b><b class="top">{escape(shown["top"])}</b>'
        f'<b class="where">slice <span class="number">{first["number"]}</span> of {shown["total"]}</b></div>'
        f'<div class="controls"><input type="range" class="slider" min="0" max="{len(slices) - 1}" value="{start}" '
        f'aria-label="slice of {escape(name)}">{boxes}<span class="note soft">{escape(first["note"])}</span></div>'
        f'<div class="legend">{legend}</div>{scale}{note}'
        f'<script type="application/json" id="{identifier}">{data}</script></article>'
    )


def quality_line(found: Mapping[str, Any]) -> str:
    """Similarity of the support, and a table of what is measured of each label, if a run wrote them."""
    parts = []
    if isinstance(found.get("warning"), str):
        parts.append(f"<strong>{escape(found['warning'][:1].upper() + found['warning'][1:])}</strong>")
    if isinstance(found.get("support_similarity"), (int, float)):
        parts.append(f"Support–query similarity {found['support_similarity']:.2f} (-1 to 1, higher is closer)")
    line = f'<p class="soft quality">{". ".join(parts)}</p>' if parts else ""
    return line + measurements_table(found)


def measurements_table(found: Mapping[str, Any]) -> str:
    """A row for each label with what is measured of it; columns of which nothing is known are left out."""
    known = {key: found[key] for key, _, _ in MEASURED if isinstance(found.get(key), Mapping) and found[key]}
    shown = [(key, head, form) for key, head, form in MEASURED if key in known]
    if not shown:
        return ""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th>"
        + "".join(f"<td>{_cell(known[key].get(name), form)}</td>" for key, _, form in shown)
        + "</tr>"
        for name in dict.fromkeys(name for values in known.values() for name in values)
    )
    heads = "".join(f"<th>{head}</th>" for _, head, _ in shown)
    table = f"<thead><tr><th>label</th>{heads}</tr></thead><tbody>{rows}</tbody>"
    note = (
        "Extent from left to right, front to back and feet to head. Expected Dice: estimated without truth, and the "
        "range that holds about 70 % of such labels. Reverse Dice: 0 to 1, higher is surer."
    )
    return f'<div class="wide"><table class="measured" title="{note}">{table}</table></div>'


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "–"
    if form == "range":
        return str(Expectation(*map(float, value)))
    return " × ".join(format(float(part), form) for part in (value if isinstance(value, list) else [value]))


def heat_legend(scale: HeatScale, name: str) -> str:
    """Legend of a heat: a bar from clear to strongest; ``name`` is its class."""
    colors, opacities = heat_colors(scale.hues)
    clear = scale.clear - (scale.clear - scale.strongest) / (len(colors) - 1)  # the last step without color
    stops = [
        f"rgba({red},{green},{blue},{opacity / 255:.2f})" for (red, green, blue), opacity in zip(colors, opacities)
    ]
    return (
        f'<div class="scale {name}" hidden><span>{100 * clear:.0f} % or more, {scale.good}</span>'
        f'<i style="background:linear-gradient(90deg,{",".join(stops)}),#555"></i>'
        f"<span>{100 * scale.strongest:.0f} % or less, {scale.bad}</span></div>"
    )


def repeat_command(run: Run) -> tuple[str, bool]:
    """The command that made a run, and whether it was recorded; otherwise it is put together from the summary."""
    if run.record.get("command"):
        return str(run.record["command"]), True
    if not run.summary:
        return "", False
    options = [f"--{key} {run.summary[key]}" for key in ("protocol", "fold", "setting") if key in run.summary]
    if run.summary.get("weights"):
        options.append(f"--ckpt_path {run.summary['weights']}")
    files = "\"['configs/inference.json','configs/evaluate.json']\""
    return f"python -m monai.bundle run --config_file {files} --dataset_dir DATASET {' '.join(options)}", False


def origin_section(runs: Sequence[Run], command: str | None, versions: Mapping[str, str]) -> str:
    """Configuration, versions and commands."""
    parts = ["<h2>Configuration and how to repeat it</h2>"]
    for run in runs:
        inner = []
        text, recorded = repeat_command(run)
        if text:
            note = "" if recorded else "<p class='soft'>Put together from summary.json; options may be missing.</p>"
            inner.append(f"<h3>Command</h3>{note}<pre>{escape(text)}</pre>")
        settings = {**run.summary, **run.record.get("settings", {})}
        settings = {k: v for k, v in settings.items() if k not in ("mean", "per_label", "cases")}
        for key in ("started", "seconds", "device"):
            if key in run.record:
                settings[key] = run.record[key]
        if settings:
            rows = "\n".join(f"{k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items())
            inner.append(f"<h3>Settings</h3><pre>{escape(rows)}</pre>")
        known = run.record.get("versions", {})
        if known:
            inner.append(f"<h3>Versions</h3><p>{escape(', '.join(f'{k} {v}' for k, v in known.items()))}</p>")
        if inner:
            opened = " open" if len(runs) == 1 else ""
            parts.append(f"<details{opened}><summary>{escape(run.name)}</summary>{''.join(inner)}</details>")
    if not any(run.record.get("versions") for run in runs) and versions:
        text = ", ".join(f"{k} {v}" for k, v in versions.items())
        parts.append(f"<p class='soft'>The run recorded no versions. This page was made with {escape(text)}.</p>")
    if command:
        parts.append(f"<h3>This page</h3><pre>{escape(command)}</pre>")
    return "".join(parts)
