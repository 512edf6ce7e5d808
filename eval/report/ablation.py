"""The folder of an ablation: numbers, CSV, one Markdown report and a heat map per task, all from
the numbers.
"""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path

import numpy as np

from lo_framework.eval.report import numbers
from lo_framework.eval.report.heat_maps import draw
from lo_framework.eval.report.origin import origin
from lo_framework.eval.report.table import Table
from lo_framework.eval.running.protocol import BY_KEY, METRICS
from lo_framework.eval.statistics import mean_interval
from lo_framework.eval.studies.ablation import FILE, Ablation, Entry, from_json, to_json
from lo_framework.eval.studies.panels import Mark, Panel
from lo_framework.files.atomic import atomic_write_text

TITLES = {".json": "numbers", ".csv": "rows", ".md": "report", ".png": "heat maps"}
KEY = "final_loss"


def save(result: Ablation, folder: str | os.PathLike[str]) -> list[Path]:
    """Numbers first, then what is made from them; returns the files."""
    path = Path(folder)
    atomic_write_text(path / FILE.name, to_json(result))
    return [path / FILE.name, *redraw(result, path)]


def redraw(result: Ablation, folder: Path) -> list[Path]:
    files = [folder / "ablation.csv", folder / "ablation.md"]
    atomic_write_text(files[0], rows(result))
    pictures = {}
    for task in result.tasks:
        if any(not entry.failure for entry in result.entries if entry.task == task):
            pictures[task] = f"ablation-{re.sub('[^A-Za-z0-9.]+', '-', task)}.png"
            draw(result, task, folder / pictures[task])
    atomic_write_text(files[1], markdown(result, pictures))
    return files + [folder / name for name in pictures.values()]


def load(folder: str | os.PathLike[str]) -> Ablation:
    """The ablation saved in a folder; raises UserError."""
    return FILE.load(folder, from_json)


def listing(written: list[Path]) -> str:
    return "\n".join(f"{TITLES[path.suffix]:11}{path}" for path in written)


def rows(result: Ablation) -> str:
    """CSV: a row for each cell of each panel, then one for each reference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = dict.fromkeys(name for entry in result.entries for name in entry.metrics)
    metrics = [metric for metric in METRICS if metric.key in names]
    counts = [name for name in names if name not in BY_KEY]
    labels = list(dict.fromkeys(entry.spec for entry in result.references))
    start = ["task", "panel", "row", "column", "optimizer", "seeds", "diverged"]
    parts = [f"{m.key}_{part}" for m in metrics for part in ("mean", "low", "high")]
    ratios = [f"{KEY} / {label}" for label in labels]
    writer.writerow([*start, *parts, *(f"{name}_mean" for name in counts), *ratios])

    def write(panel: str, row: str, column: str, entry: Entry) -> None:
        if entry.failure:
            return
        values: list[float] = []
        for metric in metrics:
            if metric.key in entry.metrics:
                found = mean_interval(entry.metrics[metric.key], diverged_as=metric.diverged_as)
                values += [found.value, found.low, found.high]
            else:
                values += [np.nan] * 3
        values += [
            float(entry.metrics[name].mean()) if name in entry.metrics else np.nan
            for name in counts
        ]
        beside = {
            r.spec: r.metrics[KEY].mean() for r in result.references_of(entry.task) if not r.failure
        }
        values += [
            float(entry.metrics[KEY].mean() / beside[label]) if label in beside else np.nan
            for label in labels
        ]
        name = " ".join([entry.spec, *([f"({entry.setting})"] if entry.setting else [])])
        first = [
            entry.task,
            panel,
            row,
            column,
            name,
            len(entry.diverged),
            int(entry.diverged.sum()),
        ]
        writer.writerow([*first, *(f"{x:.6g}" for x in values)])

    for task in result.tasks:
        for panel in result.study.panels:
            for row in panel.rows.values:
                for column in panel.columns.values:
                    write(panel.name, row, column, result.entry(task, panel, row, column))
        for entry in result.references_of(task):
            write("reference", "", "", entry)
    return text.getvalue()


def plain(result: Ablation) -> str:
    shown = [table.plain() for task in result.tasks for table in tables(result, task)]
    return "\n\n".join([heading(result), *shown, "\n".join(notes(result)), *failures(result)])


def markdown(result: Ablation, pictures: dict[str, str]) -> str:
    parts = ["# Ablation", heading(result)]
    for task in result.tasks:
        parts.append(f"## {task}")
        if task in pictures:
            parts.append(f"![final loss of every cell, {task}]({pictures[task]})")
        parts += [table.markdown() for table in tables(result, task)]
    parts += [
        *failures(result),
        "## How to read this",
        "\n".join(f"- {line}" for line in notes(result)),
    ]
    return "\n\n".join([*parts, *origin(result.provenance)]) + "\n"


def heading(result: Ablation) -> str:
    return f"{result.study.baseline}: {result.steps} steps, {numbers.seeds(result.seeds)}, no cell tuned"


def tables(result: Ablation, task: str) -> list[Table]:
    """References; then per panel the final loss, and what was counted where anything was."""
    found = []
    beside = result.references_of(task)
    if beside:
        found.append(_references(task, beside))
    for panel in result.study.panels:
        cells = {
            (row, column): result.entry(task, panel, row, column)
            for row in panel.rows.values
            for column in panel.columns.values
        }
        found.append(
            _matrix(
                panel, f"{task}: final loss, {panel.title}", {k: _loss(e) for k, e in cells.items()}
            )
        )
        marks = {key: marked(entry, result.study.marks) for key, entry in cells.items()}
        if any(marks.values()):
            found.append(
                _matrix(
                    panel,
                    f"{task}: diagnostics, {panel.title}",
                    {k: m or "-" for k, m in marks.items()},
                )
            )
    return found


def marked(entry: Entry, marks: tuple[Mark, ...]) -> str:
    """``"~12% ↑3%"``: counts that are not zero, as a share of all or as a mean over seeds."""
    words = []
    for mark in marks:
        if mark.count not in entry.metrics or not (
            total := float(np.nansum(entry.metrics[mark.count]))
        ):
            continue
        if mark.over:
            share = 100.0 * total / float(np.nansum(entry.metrics[mark.over]))
            words.append(f"{mark.symbol}{share:.0f}%" if share >= 1 else f"{mark.symbol}<1%")
        else:
            words.append(f"{mark.symbol}{total / entry.metrics[mark.count].size:.3g}")
    return " ".join(words)


def _references(task: str, beside: list[Entry]) -> Table:
    metrics = [m for m in METRICS if any(m.key in entry.metrics for entry in beside)]
    table = Table(
        "reference", "setting", *(m.title for m in metrics), "diverged", title=f"{task}: references"
    )
    for entry in beside:
        if entry.failure:
            table.add(entry.spec, "FAILED", *[""] * (len(metrics) + 1))
            continue
        shown = [mean_interval(entry.metrics[m.key], diverged_as=m.diverged_as) for m in metrics]
        cells = [numbers.plus_minus(x, m.percent) for x, m in zip(shown, metrics)]
        table.add(
            entry.spec,
            entry.setting,
            *cells,
            f"{int(entry.diverged.sum())} of {entry.diverged.size}",
        )
    return table


def _matrix(panel: Panel, title: str, cells: dict[tuple[str, str], str]) -> Table:
    table = Table(
        panel.rows.option,
        *(f"{panel.columns.option} {value}" for value in panel.columns.values),
        title=title,
    )
    for row in panel.rows.values:
        table.add(row, *(cells[row, column] for column in panel.columns.values))
    return table


def _loss(entry: Entry) -> str:
    if entry.failure:
        return "FAILED"
    bad = int(entry.diverged.sum())
    if bad:
        return f"{bad} of {entry.diverged.size} diverged"
    return numbers.plus_minus(mean_interval(entry.metrics[KEY]))


def notes(result: Ablation) -> list[str]:
    lines = [
        "final loss: full training split after the last step; ±: half of the 95% interval of the mean over seeds"
    ]
    if result.references:
        count = len(result.tuning_seeds)
        lines.append(
            f"references: what their specs leave open is tuned on {count} other seeds, by the final loss"
        )
    if result.study.marks:
        words = [
            f"{mark.symbol} {mark.count}"
            + (f" (% of {mark.over.replace('_', ' ')})" if mark.over else " (a run)")
            for mark in result.study.marks
        ]
        lines.append(f"diagnostics, where not zero: {', '.join(words)}")
    return lines


def failures(result: Ablation) -> list[str]:
    lines = [f"  {entry.task}, {entry.spec}: {entry.failure}" for entry in result.failures]
    return ["\n".join(["FAILED", *lines])] if lines else []
