"""The nine cells for people: one page of tables and pictures, and a row of every number as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nine_cells_verdict import (
    ABSORBED,
    BASELINES,
    CURVATURE,
    GAIN,
    RATIOS,
    REFERENCES,
    TEST,
    Cell,
    load,
    of_kind,
    shown,
    told,
    values,
)
from lo_framework.eval.report.drawing import COLOURS, canvas, outer_labels, png
from lo_framework.eval.report.page import Page, Section, Term, picture, render
from lo_framework.eval.report.table import Table
from lo_framework.eval.sharpness.metrics import EQUAL, MATCHED, PLACES
from lo_framework.files.atomic import atomic_write_bytes, atomic_write_text

COLUMNS = {
    "test_accuracy": "test acc.",
    "test_loss": "test loss",
    "train_loss": "train loss",
    "l2.gap@0.1": "h(.1)",
    "l2.curvature@0.05": "curv. part (.05)",
    CURVATURE: "curv. part (.1)",
    "l2.first_order@0.1": "R1(.1)",
    "l2, relative.gap@0.01 ‖w‖": "h(.01 ‖w‖)",
    "adaptive l2.gap@1": "adaptive h(1)",
    "top_eigenvalue": "λ max",
    "trace": "tr H",
}
WORDS = [
    Term("none", "the plain twin: meta-trained alike, without a regularizer", first=True),
    Term("control", "the plain twin with the meta-compute that SAM would take", first=True),
    Term("h(r)", "the largest rise of the training loss within radius r"),
    Term("curvature part", "h(r) − r‖∇L‖: what the slope does not explain", first=True),
    Term("R1(r)", "r times the largest gradient norm within radius r"),
    Term("adaptive", "a ball in units of each |w|; relative: of ‖w‖"),
    Term("matched", "where the training loss is at most that of the worst of the group's last"),
    Term("a ratio", "mean of the logarithm of run / reference; −0.22 is 20% lower", first=True),
    Term("in brackets", "95%, of meta-seeds, tasks and inner seeds; then each meta-seed's mean"),
]
FOREST = {CURVATURE: "curvature part, r = .1", TEST: "test loss"}
PROBE = {"loss": "at equal loss", "path": "at equal path length"}


def rows_of(cell: Cell, kinds: Sequence[str]) -> Iterator[tuple[str, str, Sequence[Any]]]:
    """Group, arm, and what was kept of it by each meta-seed."""
    for kind in kinds:
        if groups := of_kind(cell, kind):
            yield from ((kind, arm, groups) for arm in groups[0]["arms"])
    if BASELINES in cell:
        group = cell[BASELINES]
        yield from ((BASELINES, arm, [group]) for arm in group["arms"])


def numbers(groups: Sequence[Any], arm: str, place: str, key: str) -> dict[str, Any]:
    """Mean and interval over meta-seeds and seeds."""
    return told(np.array([values(group, arm, place, key) for group in groups]))


def table_csv(cells: Mapping[str, Cell], kinds: Sequence[str]) -> str:
    """Every number that was measured: a row for each problem, place, optimizer and key."""
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["cell", "place", "group", "optimizer", "key", "mean", "low", "high", "n"])
    for name, cell in cells.items():
        for group, arm, groups in rows_of(cell, kinds):
            for place in (EQUAL, MATCHED):
                for key in dict.fromkeys(k for g in groups for k in g["arms"][arm][place]):
                    x = numbers(groups, arm, place, key)
                    if "value" in x:
                        ends = (f"{x[end]:.5g}" for end in ("value", "low", "high"))
                        rows.writerow(
                            [name, place, group, arm, key, *ends, x["of"] - x["left out"]]
                        )
    return stream.getvalue()


def absolute(cell: Cell, kinds: Sequence[str], place: str) -> Table:
    """What every optimizer comes to on a problem."""
    table = Table("group", "optimizer", *COLUMNS.values(), title=PLACES[place], words=2)
    before = ""
    for group, arm, groups in rows_of(cell, kinds):
        if before not in ("", group):
            table.rule()
        before = group
        found = (numbers(groups, arm, place, key).get("value") for key in COLUMNS)
        table.add(group, arm, *found)
    return table


def ratios(content: Mapping[str, Any]) -> Table:
    """Every ratio of one problem, or over all."""
    table = Table("absorbed", "beside", *RATIOS.values(), GAIN, words=2)
    for arm, by_reference in content.items():
        for reference, by_key in by_reference.items():
            table.add(arm, reference, *(shown(by_key[key]) for key in (*RATIOS, GAIN)))
    return table


def transfer(together: Mapping[str, Any]) -> Table:
    """Flatness and accuracy beside the plain twin, by what is new to the optimizer."""
    keys = {**FOREST, GAIN: GAIN}
    table = Table("problems", "absorbed", *keys.values(), words=2)
    for part, content in together.items():
        for arm, by_reference in content.items():
            table.add(part, arm, *(shown(by_reference["none"][key]) for key in keys))
    return table


def verdicts(content: Mapping[str, Any]) -> Table:
    """What holds, problem by problem."""
    names = ("flatter", "lower test loss", "no less accurate")
    table = Table("problem", "absorbed", *names, "accuracy, points beside the explicit", words=2)
    for name, cell in content["cells"].items():
        for arm, verdict in cell["verdicts"].items():
            gain = cell["accuracy"].get(arm)
            words = shown(gain) if gain else "-"
            table.add(name, arm, *(verdict.get(x, "-") for x in names), words)
    return table


def probes(content: Mapping[str, Any]) -> Table:
    """Whether updates point along the correction more than the plain twin's do."""
    table = Table("problem", "absorbed", *PROBE.values(), words=2)
    for name, cell in content["cells"].items():
        for arm, sides in cell["probe"].items():
            table.add(name, arm, *(shown(sides[side]) for side in PROBE))
    return table


def forest(content: Mapping[str, Any]) -> Any:
    """Each problem's ratios to the twin and to the control, with each meta-seed as a point."""
    cells = {name: cell["ratios"] for name, cell in content["cells"].items() if cell["verdicts"]}
    if not cells:
        return None
    panel = (4.6, 0.34 * len(cells) + 1.0)
    figure, grid = canvas(4, 2, panel, (1.6, 0.6), sharey=True)
    places = [(key, reference) for key in FOREST for reference in REFERENCES]
    for axes, (key, reference) in zip(grid, places, strict=True):
        for k, arm in enumerate(ABSORBED):
            for i, by_arm in enumerate(cells.values()):
                x, y = by_arm[arm][reference][key], i + 0.24 * (k - 1)
                if "value" not in x:
                    continue
                ends = [[x["value"] - x["low"]], [x["high"] - x["value"]]]
                style = dict(color=COLOURS[k], markersize=4, linewidth=1.3)
                words = arm if i == 0 else None
                axes.errorbar([x["value"]], [y], xerr=ends, fmt="o", label=words, **style)
                means = [m for m in x["meta_seeds"] if m is not None]
                axes.plot(means, [y] * len(means), "|", color=COLOURS[k], markersize=7)
        axes.axvline(0.0, color="black", linewidth=0.8)
        if key == CURVATURE:
            axes.axvline(math.log(0.8), color="0.5", linewidth=0.8, linestyle=":")
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(cells)), [*cells], fontsize=8)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(f"{FOREST[key]}, beside {reference}", fontsize=10)
    outer_labels(grid, 2, "log ratio; left is lower")
    grid[0].legend(fontsize=8)
    return figure


def summary(content: Mapping[str, Any]) -> list[str]:
    """What came out, in sentences."""
    lines = []
    for arm, target in content["targets"].items():
        lines.append(
            f"{arm}: on {target['flatter and lower test loss']} of {target['measured']} cells a "
            f"curvature part lower by a fifth and a lower test loss hold "
            f"(flatter alone: {target['flatter']}); no less accurate than AdamW with it on "
            f"{target['no less accurate']}; the target is {'met' if target['met'] else 'missed'}"
        )
    return lines


def write(content: Mapping[str, Any], folder: Path, kinds: Sequence[str]) -> None:
    """``nine_cells.html``, ``nine_cells.png`` and ``table.csv`` into ``folder``."""
    cells, figure = load(folder), forest(content)
    caption = "Mean and 95% interval; short lines are meta-seeds; dotted: a fifth lower."
    between = [
        Section("What holds", [verdicts(content), *picture(figure, caption)]),
        Section("Does it transfer?", [transfer(content["together"])]),
        Section("Absorbed, or merely slower?", [probes(content)]),
        *(Section(name, [ratios(x["ratios"])]) for name, x in content["cells"].items()),
    ]
    each = [
        Section(f"{name}: numbers", [absolute(cell, kinds, place) for place in PLACES])
        for name, cell in cells.items()
    ]
    settings = ", ".join(f"{name} {x}" for name, x in content["settings"].items())
    page = Page(
        title="Nine cells: can regularizers be learned?",
        lead=f"{len(cells)} problems, {', '.join(kinds)}",
        summary=summary(content),
        cautions=["Three meta-seeds: an interval over them is wide, and each is printed."],
        failures=[f"{name}: {why}" for name, why in content["failed"].items()],
        command=content["command"],
        origin=[settings, f"commit {content.get('commit')}"],
        words=WORDS,
        sections=[*between, *each],
    )
    atomic_write_text(folder / "nine_cells.html", render(page))
    atomic_write_text(folder / "table.csv", table_csv(cells, kinds))
    if figure is not None:
        atomic_write_bytes(folder / "nine_cells.png", png(figure, 110))
