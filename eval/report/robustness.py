"""The folder of a robustness sweep: numbers, CSV, tables and the picture, all from the numbers."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from lo_framework.eval.report import numbers
from lo_framework.eval.report.origin import origin
from lo_framework.eval.report.sweep_picture import draw
from lo_framework.eval.report.table import Table
from lo_framework.eval.running.protocol import BY_KEY, METRICS
from lo_framework.eval.statistics import Array, mean_interval, summarize
from lo_framework.eval.studies.robustness import FILE, Sweep, from_json, to_json
from lo_framework.files.atomic import atomic_write_text

# a step size does well if its mean final loss is at most this many times the first optimizer's best
NEAR = 2.0
TITLES = {".json": "numbers", ".csv": "rows", ".md": "tables", ".png": "picture"}


def save(result: Sweep, folder: str | os.PathLike[str]) -> list[Path]:
    """Numbers first, then what is made from them; returns the files."""
    path = Path(folder)
    atomic_write_text(path / FILE.name, to_json(result))
    return [path / FILE.name, *redraw(result, path)]


def redraw(result: Sweep, folder: Path) -> list[Path]:
    files = [folder / f"robustness{suffix}" for suffix in (".csv", ".md", ".png")]
    atomic_write_text(files[0], rows(result))
    atomic_write_text(files[1], markdown(result))
    if len(result.failures) == len(result.lines):
        return files[:2]
    draw(result, files[2])
    return files


def load(folder: str | os.PathLike[str]) -> Sweep:
    """The sweep saved in a folder; raises UserError."""
    return FILE.load(folder, from_json)


def listing(written: list[Path]) -> str:
    return "\n".join(f"{TITLES[path.suffix]:9}{path}" for path in written)


def rows(result: Sweep) -> str:
    """CSV: a row for each task, optimizer and step size."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in result.lines for name in line.metrics))
    metrics = [metric for metric in METRICS if metric.key in names]
    counts = [
        name for name in names if name not in BY_KEY and not name.startswith(("valid_", "train_"))
    ]
    header = [f"{m.key}_{part}" for m in metrics for part in ("mean", "low", "high", "iqm")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "task",
            "optimizer",
            "lr",
            "seeds",
            "diverged",
            *header,
            *(f"{name}_mean" for name in counts),
        ]
    )
    for line in result.lines:
        for i, lr in enumerate(result.lrs if not line.failure else ()):
            values: list[float] = []
            for metric in metrics:
                if metric.key not in line.metrics:
                    values += [np.nan] * 4
                    continue
                found = summarize(
                    line.metrics[metric.key][i], lower_is_better=metric.lower_is_better
                )
                values += [found.mean.value, found.mean.low, found.mean.high, found.iqm.value]
            values += [
                float(np.mean(line.metrics[n][i])) if n in line.metrics else np.nan for n in counts
            ]
            start = [
                line.task,
                line.optimizer,
                f"{lr:g}",
                len(result.seeds),
                int(line.diverged[i].sum()),
            ]
            writer.writerow([*start, *(f"{x:.6g}" for x in values)])
    return text.getvalue()


def plain(result: Sweep) -> str:
    parts = [
        heading(result),
        *(table.plain() for table in tables(result)),
        "\n".join(notes()),
        *failures(result),
    ]
    return "\n\n".join(parts)


def markdown(result: Sweep) -> str:
    parts = ["# Robustness to the step size at the start", heading(result)]
    parts += [*(table.markdown() for table in tables(result)), *failures(result)]
    parts += ["## How to read this", "\n".join(f"- {line}" for line in notes())]
    return "\n\n".join([*parts, *origin(result.provenance)]) + "\n"


def heading(result: Sweep) -> str:
    what = f"{len(result.lrs)} step sizes from {result.lrs[0]:g} to {result.lrs[-1]:g}, none chosen"
    return f"{result.steps} steps, {numbers.seeds(result.seeds)}, {what}"


def tables(result: Sweep) -> list[Table]:
    """Per task a summary, then final loss and the test metric at every step size."""
    found = []
    for task in result.tasks:
        if all(line.failure for line in result.lines if line.task == task):
            continue
        found.append(_summary(result, task))
        measured = {name for line in result.lines if line.task == task for name in line.metrics}
        test = "test_accuracy" if "test_accuracy" in measured else "test_loss"
        found += [_everywhere(result, task, key) for key in ("final_loss", test) if key in measured]
    return found


def means(result: Sweep, task: str, optimizer: str, metric: str = "final_loss") -> Array | None:
    """``[L]`` means over seeds, infinite where any run diverged; None for a failed line."""
    line = result.line(task, optimizer)
    if line.failure or metric not in line.metrics:
        return None
    worst = BY_KEY[metric].diverged_as
    return np.array([mean_interval(x, diverged_as=worst).value for x in line.metrics[metric]])


def _summary(result: Sweep, task: str) -> Table:
    every = {optimizer: means(result, task, optimizer) for optimizer in result.optimizers}
    # The first one that worked is what the others are measured by.
    first, bound = next((name, NEAR * float(x.min())) for name, x in every.items() if x is not None)
    near_best = f"within {NEAR:g}x of the best of {first}"
    headers = ["best final loss", "at", "worst", "at", "worst / best", near_best, "diverged"]
    table = Table("optimizer", *headers, title=f"{task}: mean final loss over the grid")
    for optimizer, values in every.items():
        if values is None:
            table.add(optimizer, "FAILED", *[""] * 6)
            continue
        least, most = int(values.argmin()), int(values.argmax())
        near = [lr for lr, value in zip(result.lrs, values) if value <= bound]
        span = f"{len(near)} of {len(values)}" + (f" ({near[0]:g} to {near[-1]:g})" if near else "")
        diverged = result.line(task, optimizer).diverged
        table.add(
            optimizer,
            float(values[least]),
            f"{result.lrs[least]:g}",
            float(values[most]),
            f"{result.lrs[most]:g}",
            numbers.ratio(float(values[most] / values[least])),
            span,
            f"{int(diverged.sum())} of {diverged.size}",
        )
    return table


def _everywhere(result: Sweep, task: str, key: str) -> Table:
    metric = BY_KEY[key]
    table = Table("step size", *result.optimizers, title=f"{task}: {metric.title}")
    lines = [result.line(task, optimizer) for optimizer in result.optimizers]
    for i, lr in enumerate(result.lrs):
        cells: list[str | None] = []
        for line in lines:
            if line.failure or key not in line.metrics:
                cells.append(None)
                continue
            bad = int(line.diverged[i].sum())
            estimate = mean_interval(line.metrics[key][i], diverged_as=metric.diverged_as)
            cells.append(
                f"{bad} of {len(result.seeds)} diverged"
                if bad
                else numbers.plus_minus(estimate, metric.percent)
            )
        table.add(f"{lr:g}", *cells)
    return table


def notes() -> list[str]:
    return [
        "final loss: full training split after the last step; ±: half of the 95% interval of the mean (Student's t)",
        "best, worst: of the means on the reported seeds; nothing was tuned, so a best is the best of this grid only",
        "a mean over seeds of which one diverged is infinite",
        "the step size is lr of a fixed-step optimizer, and alpha0 of MetaOptimize",
    ]


def failures(result: Sweep) -> list[str]:
    lines = [f"  {line.task}, {line.optimizer}: {line.failure}" for line in result.failures]
    return ["\n".join(["FAILED", *lines])] if lines else []
