"""The folder of a transfer evaluation: what is in it, and how it is made again from its numbers."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lo_framework.eval.report import transfer
from lo_framework.eval.report.curves import Curve, Panel, draw_curves
from lo_framework.eval.report.forest import draw_forest
from lo_framework.eval.running.protocol import smoothing_width
from lo_framework.eval.studies.comparison import aggregate, compare, matched_steps
from lo_framework.eval.studies.result import FILE, Result, from_json, to_json
from lo_framework.files.atomic import atomic_write_text, reason
from lo_framework.spec import UserError

PANELS = 6  # more tasks than this also get a figure each


def prepare(folder: str | os.PathLike[str]) -> Path:
    """The folder, made and known to be writable, before hours are spent on what goes into it.

    Raises:
        UserError: it cannot be made or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {str(path)!r}: {reason(error)}; expected a folder that can be written"
        ) from None
    if not os.access(path, os.W_OK):
        raise UserError(f"--out {str(path)!r} cannot be written")
    return path


def save(result: Result, folder: str | os.PathLike[str]) -> list[Path]:
    """Numbers first, then what is drawn from them; returns the files."""
    path = Path(folder)
    matched = {task: matched_steps(result, task) for task in result.tasks}
    derived = {
        "comparisons": [asdict(c) for c in compare(result)],
        "aggregates": [asdict(a) for a in aggregate(result)],
        "steps_to_reference": {
            task: {label: asdict(s) for label, s in found.items()}
            for task, found in matched.items()
        },
    }
    atomic_write_text(path / FILE.name, to_json(result, derived))
    return [path / FILE.name, *redraw(result, path)]


def redraw(result: Result, folder: Path) -> list[Path]:
    """Table and curves from the numbers."""
    files = [folder / "transfer.md"]
    atomic_write_text(files[0], transfer.markdown(result))
    found = panels(result)
    if not found:
        return files
    if (
        len(result.optimizers) > transfer.MANY
        and draw_forest(result, folder / "arms.png") is not None
    ):
        return [*files, folder / "arms.png"]
    title = f"{result.steps} steps; baselines at their best setting for the mean loss"
    figures = {"curves.png": found}
    if len(found) > PANELS:
        figures |= {
            f"curves-{re.sub('[^A-Za-z0-9.]+', '-', panel.title)}.png": [panel] for panel in found
        }
    smooth = smoothing_width(result.steps)
    for name, shown in figures.items():
        draw_curves(
            shown, folder / name, title=title, ylabel="training loss (minibatch)", smooth=smooth
        )
        files.append(folder / name)
    return files


def listing(written: list[Path]) -> str:
    """Where everything is, a line per kind of file."""
    titles = {".json": "numbers", ".md": "tables", ".png": "picture"}
    return "\n".join(f"{titles.get(path.suffix, ''):9}{path}" for path in written)


def panels(result: Result) -> list[Panel]:
    """One per task: training loss of every optimizer, of baselines at the setting with the best
    mean loss.
    """
    found = []
    steps = np.arange(result.steps)
    for task in result.tasks:
        # Learned ones last, so that they are drawn on top.
        arms = [
            result.arm(task, label) for label in dict.fromkeys(result.baselines + result.learned)
        ]
        shown = [(arm.optimizer, arm.of("mean_loss")) for arm in arms]
        curves = [
            Curve(label=label, steps=steps, values=runs.curves)
            for label, runs in shown
            if runs is not None
        ]
        if curves:
            found.append(Panel(title=task, curves=curves))
    return found


def load(folder: str | os.PathLike[str]) -> Result:
    """The result saved in a folder; raises UserError."""
    return FILE.load(folder, from_json)
