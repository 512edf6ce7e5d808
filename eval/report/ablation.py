"""The report of `eval ablation`: one heat map per task among its files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.columns import columns
from lo_framework.eval.report.drawing import png
from lo_framework.eval.report.heat_maps import KEY, cells, draw, marked
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import file_names, markdown, picture, table_of_values
from lo_framework.eval.running.protocol import BY_KEY, METRICS, Metric
from lo_framework.eval.statistics import Array, mean_interval
from lo_framework.eval.studies.ablation import FILE, Ablation, Entry
from lo_framework.eval.studies.panels import Mark, Panel


class AblationReport(Report[Ablation]):
    file, title = FILE, "Ablation"

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        yield "ablation.csv", self.csv()
        yield "ablation.md", self.markdown()
        for task, name in self._pictures().items():
            yield name, png(draw(self.result, task), 120)

    def csv(self) -> str:
        """Return a row for each cell of each panel, then one for each reference."""
        result = self.result
        measured = (entry.metrics for entry in result.entries)
        names, cells_of = columns(measured, ("mean", "low", "high"), _interval)
        labels = list(dict.fromkeys(entry.spec for entry in result.references))
        headers = ["task", "panel", "row", "column", "optimizer", "seeds", "diverged"]
        headers += [*names, *(f"{KEY} / {x}" for x in labels)]
        rows: list[list[object]] = []
        for task in result.tasks:
            shown = [
                (panel.name, *place, entry)
                for panel in result.study.panels
                for place, entry in cells(result, task, panel).items()
            ]
            beside = result.references_of(task)
            losses = {r.spec: r.metrics[KEY].mean() for r in beside if not r.failure}
            shown += [("reference", "", "", entry) for entry in beside]
            for panel_name, row, column, entry in shown:
                if entry.failure:
                    continue
                name = f"{entry.spec} ({entry.setting})" if entry.setting else entry.spec
                runs = (len(entry.diverged), int(entry.diverged.sum()))
                own = entry.metrics[KEY].mean()
                ratios = [float(own / losses.get(label, np.nan)) for label in labels]
                values = (*cells_of(entry.metrics), *ratios)
                rows.append([task, panel_name, row, column, name, *runs, *values])
        return table_of_values(headers, rows)

    def heading(self) -> list[str]:
        result = self.result
        seeds = numbers.seeds(result.seeds)
        return [f"{result.study.baseline}: {result.steps} steps, {seeds}, no cell tuned"]

    def tables(self) -> list[Table]:
        return [table for task in self.result.tasks for table in tables(self.result, task)]

    def body(self) -> list[str]:
        pictures, parts = self._pictures(), []
        for task in self.result.tasks:
            parts.append(f"## {markdown(task)}")
            if task in pictures:
                parts.append(picture(f"final loss of every cell, {task}", pictures[task]))
            parts += [table.markdown() for table in tables(self.result, task)]
        return parts

    def notes(self) -> list[str]:
        result = self.result
        lines = [
            "final loss: full training split after the last step; "
            "±: half of the 95% interval of the mean over seeds"
        ]
        if result.references:
            lines.append(
                "references: what their specs leave open is tuned on "
                f"{len(result.tuning_seeds)} other seeds, by the final loss"
            )
        if marks := result.study.marks:
            lines.append(f"diagnostics, where not zero: {', '.join(map(_meaning, marks))}")
        return lines

    def failures(self) -> list[str]:
        return [f"{entry.task}, {entry.spec}: {entry.failure}" for entry in self.result.failures]

    def worked(self) -> bool:
        return any(not entry.failure for entry in self.result.entries)

    def _pictures(self) -> dict[str, str]:
        """Name the picture of each task that has numbers."""
        result = self.result
        worked = {entry.task for entry in result.entries if not entry.failure}
        return file_names("ablation", [task for task in result.tasks if task in worked])


def _interval(values: Array, metric: Metric) -> tuple[float, ...]:
    mean = mean_interval(values, diverged_as=metric.diverged_as)
    return mean.value, mean.low, mean.high


def tables(result: Ablation, task: str) -> list[Table]:
    """Return references; then per panel the final loss, and what was counted where anything was."""
    beside = result.references_of(task)
    found = [_references(task, beside)] if beside else []
    for panel in result.study.panels:
        entries = cells(result, task, panel)
        losses = {place: _loss(entry) for place, entry in entries.items()}
        found.append(_matrix(panel, f"{task}: final loss, {panel.title}", losses))
        marks = {
            place: marked(entry, result.study.marks) or "-" for place, entry in entries.items()
        }
        if set(marks.values()) != {"-"}:
            found.append(_matrix(panel, f"{task}: diagnostics, {panel.title}", marks))
    return found


def _references(task: str, beside: list[Entry]) -> Table:
    metrics = [m for m in METRICS if any(m.key in entry.metrics for entry in beside)]
    titles = (m.title for m in metrics)
    table = Table("reference", "setting", *titles, "diverged", title=f"{task}: references")
    for entry in beside:
        if entry.failure:
            table.failed(entry.spec)
            continue
        means = (numbers.mean_of(entry.metrics[m.key], m) for m in metrics)
        table.add(entry.spec, entry.setting, *means, numbers.count_of(entry.diverged))
    return table


def _matrix(panel: Panel, title: str, texts: dict[tuple[str, str], str]) -> Table:
    columns = panel.columns
    headers = (f"{columns.option} {value}" for value in columns.values)
    table = Table(panel.rows.option, *headers, title=title)
    for row in panel.rows.values:
        table.add(row, *(texts[row, column] for column in columns.values))
    return table


def _loss(entry: Entry) -> str:
    if entry.failure:
        return "FAILED"
    return numbers.mean_or_diverged(entry.metrics[KEY], entry.diverged, BY_KEY[KEY])


def _meaning(mark: Mark) -> str:
    share = f"% of {mark.over.replace('_', ' ')}" if mark.over else "a run"
    return f"{mark.symbol} {mark.count} ({share})"
