"""The nine cells for people: one page of tables and pictures, and a row of every number as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lever import CURVATURE
from benchmarks.nine_cells_verdict import (
    ABSORBED,
    GAIN,
    LEAST_SEEDS,
    RATIOS,
    REFERENCES,
    TEST,
    Cell,
    Groups,
    load,
    shown,
    told,
    values,
)
from benchmarks.other_steps import FACTORS
from lo_framework.eval.report.drawing import COLOURS, canvas, outer_labels, png
from lo_framework.eval.report.page import Page, Section, Term, picture, render
from lo_framework.eval.report.table import Table
from lo_framework.eval.sharpness.metrics import EQUAL, MATCHED, PLACES
from lo_framework.eval.statistics import Estimate
from lo_framework.files.atomic import atomic_write_bytes, atomic_write_text
from lo_framework.learned import load_optimizer

RADII = ("0.001", "0.005", "0.05", "0.1")
COLUMNS = {
    "test_accuracy": "test acc.",
    "test_loss": "test loss",
    "train_loss": "train loss",
    **{f"l2.gap@{r}": f"h({r})" for r in RADII},
    **{f"l2.curvature@{r}": f"curvature part ({r})" for r in RADII},
    **{f"l2.first_order@{r}": f"R1({r})" for r in RADII[2:]},
    **{f"l2, relative.gap@{r} ‖w‖": f"h({r} ‖w‖)" for r in ("0.01", "0.05")},
    **{f"adaptive l2.gap@{r}": f"adaptive h({r})" for r in ("0.25", "1")},
    "top_eigenvalue": "λ max",
    "trace": "tr H",
}
WORDS = [
    Term("none", "the plain twin: meta-trained alike, without a regularizer", first=True),
    Term("control", "the plain twin with the meta-compute that the regularizer takes", first=True),
    *(
        Term(name, f"the plain twin with all steps multiplied by {factor:g}, not learned")
        for name, factor in FACTORS.items()
    ),
    Term("null", "plain twins of other meta-seeds beside that of the first"),
    Term("h(r)", "the largest rise of the training loss within radius r"),
    Term("curvature part", "h(r) − r‖∇L‖: what the slope does not explain", first=True),
    Term("R1(r)", "r times the largest gradient norm within radius r"),
    Term("adaptive", "a ball in units of each |w|; relative: of ‖w‖"),
    Term("matched", "where the training loss is at most that of the worst of the group's last"),
    Term("a ratio", "mean of the logarithm of run / reference; −0.22 is 20% lower", first=True),
    Term("in brackets", "95%, of meta-seeds, tasks and inner seeds; then each meta-seed's mean"),
    Term(
        "the probe", "cosine of update and correction, both without their part along the gradient"
    ),
]
CAUTIONS = [
    "An interval over three meta-seeds is nearly their range; over one, it knows of no other.",
    "All cells are of the same few optimizers, so cells that hold are no independent events.",
]
FOREST = {CURVATURE: "curvature part, r = .1", TEST: "test loss"}
PROBE = {"loss": "at equal loss", "path": "at equal path length"}
RESAMPLES = 400  # of the many intervals of plain numbers


def rows_of(cell: Cell) -> Iterator[tuple[str, str, Groups]]:
    """Group (of all meta-seeds), arm, and what was kept of it by each meta-seed."""
    by_name: dict[str, dict[int, Any]] = {}
    for name, group in cell.items():
        start, _, seed = name.rpartition("-")
        if seed.isdecimal():
            by_name.setdefault(start, {})[int(seed)] = group
        else:
            by_name[name] = {0: group}
    for name, groups in by_name.items():
        yield from ((name, arm, groups) for arm in next(iter(groups.values()))["arms"])


def numbers(groups: Groups, arm: str, place: str, key: str) -> dict[str, Any]:
    """Mean and interval over meta-seeds and seeds."""
    rows = np.array([values(group, arm, place, key) for group in groups.values()])
    return told(rows, resamples=RESAMPLES)


def table_csv(cells: Mapping[str, Cell]) -> str:
    """Every number that was measured: a row for each problem, place, optimizer and key."""
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["cell", "place", "group", "optimizer", "key", "mean", "low", "high", "n"])
    for name, cell in cells.items():
        for group, arm, groups in rows_of(cell):
            for place in (EQUAL, MATCHED):
                arms = [g["arms"].get(arm, {}).get(place, {}) for g in groups.values()]
                for key in dict.fromkeys(key for each in arms for key in each):
                    x = numbers(groups, arm, place, key)
                    if "value" in x:
                        ends = (f"{x[end]:.5g}" for end in ("value", "low", "high"))
                        count = x["of"] - x["left out"]
                        rows.writerow([name, place, group, arm, key, *ends, count])
    return stream.getvalue()


def absolute(cell: Cell, place: str) -> Table:
    """What every optimizer comes to on a problem."""
    table = Table("group", "optimizer", *COLUMNS.values(), title=PLACES[place], words=2)
    before = ""
    for group, arm, groups in rows_of(cell):
        if before not in ("", group):
            table.rule()
        before = group
        found = [numbers(groups, arm, place, key) for key in COLUMNS]
        table.add(group, arm, *(interval(x) for x in found))
    return table


def interval(x: Mapping[str, Any]) -> str:
    if "value" not in x:
        return "-"
    return str(Estimate(value=x["value"], low=x["low"], high=x["high"], n=x["of"]))


def ratios(content: Mapping[str, Any], place: str) -> Table:
    """Every ratio of one problem, or over all."""
    table = Table("absorbed", "beside", *RATIOS.values(), GAIN, title=PLACES[place], words=2)
    for arm, by_reference in content.items():
        for name, by_place in by_reference.items():
            table.add(arm, name, *(shown(x) for x in (*by_place[place].values(), by_place[GAIN])))
    return table


def transfer(together: Mapping[str, Any]) -> Table:
    """Flatness and accuracy beside the plain twin, by what is new to the optimizer."""
    table = Table("problems", "absorbed", "count", *FOREST.values(), GAIN, words=2)
    for part, content in together.items():
        for arm, by_reference in content.items():
            found = by_reference["none"]
            each = [*(found[MATCHED][key] for key in FOREST), found[GAIN]]
            table.add(part, arm, found[GAIN]["cells"], *map(shown, each))
    return table


def verdicts(content: Mapping[str, Any]) -> Table:
    """What holds, problem by problem; a cell that failed is told here."""
    names = ("flatter", "lower test loss", "no less accurate")
    table = Table("problem", "absorbed", *names, words=2)
    for name, cell in content["cells"].items():
        for arm, verdict in cell["verdicts"].items():
            table.add(name, arm, *(verdict.get(x, "-") for x in names))
    for name in content["failed"]:
        cell, _, group = name.partition(", ")
        table.add(cell, group, "FAILED", "", "")
    return table


def accuracies(content: Mapping[str, Any]) -> Table:
    """Points beside AdamW with SAM, which evaluates two gradients a step; 90% intervals."""
    table = Table("problem", "absorbed - explicit", "points [90%]", words=2)
    for name, cell in content["cells"].items():
        for pair, won in cell["accuracy"].items():
            table.add(name, pair, shown(won))
    return table


def probes(content: Mapping[str, Any]) -> Table:
    """Whether updates point along the correction more than the plain twin's (AdamW's) do."""
    table = Table("problem", "optimizer", *PROBE.values(), words=2)
    for name, cell in content["cells"].items():
        for label, sides in cell["probe"].items():
            table.add(name, label, *(shown(sides[side]) for side in PROBE))
    return table


def trained(folder: Path) -> Table:
    """Which step of each meta-training was kept; a score of 1 is AdamW's with one rate."""
    table = Table("optimizer", "outer steps", "kept from step", "score", words=1)
    for path in sorted((folder / "optimizers").glob("*.safetensors")):
        summary = load_optimizer(path).summary
        table.add(path.stem, *(summary.get(x) for x in ("steps", "found_at_step", "score")))
    return table


def forest(content: Mapping[str, Any]) -> Any:
    """Each problem's ratios to the twin and to the control, with each meta-seed as a line."""
    cells = {name: cell["ratios"] for name, cell in content["cells"].items() if cell["verdicts"]}
    if not cells:
        return None
    panel = (4.6, 0.34 * len(cells) + 1.0)
    figure, grid = canvas(4, 2, panel, (1.6, 0.6), sharey=True)
    places = [(key, reference) for key in FOREST for reference in REFERENCES]
    for axes, (key, reference) in zip(grid, places, strict=True):
        labelled = set()
        for k, arm in enumerate(ABSORBED):
            for i, by_arm in enumerate(cells.values()):
                x = by_arm[arm][reference][MATCHED][key] if arm in by_arm else {}
                if "value" not in x:
                    continue
                y = i + 0.8 * ((k + 0.5) / len(ABSORBED) - 0.5)
                words = None if arm in labelled else arm
                labelled.add(arm)
                ends = [[x["value"] - x["low"]], [x["high"] - x["value"]]]
                style = dict(color=COLOURS[k], markersize=4, linewidth=1.3)
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
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, ncols=len(names), loc="outside upper center")
    return figure


def summary(content: Mapping[str, Any]) -> list[str]:
    """What came out, in sentences."""
    lines = []
    for name, by_arm in content["targets"].items():
        measured = {arm: target for arm, target in by_arm.items() if target["measured"]}
        lines += [f"{name}, {arm}: {outcome(target)}" for arm, target in measured.items()]
        if missing := [arm for arm in by_arm if arm not in measured]:
            lines.append(f"{name}, not measured yet: {', '.join(missing)}")
    return lines


def outcome(target: Mapping[str, Any]) -> str:
    """What came out of one target."""
    seeds, verdict = target["meta_seeds"], "met" if target["met"] else "missed"
    if seeds < LEAST_SEEDS:
        verdict = f"not decided: {seeds} of {LEAST_SEEDS} meta-seeds"
    return (
        f"on {target['flatter and lower test loss']} of {target['measured']} cells a curvature "
        "part lower by a fifth and a lower test loss hold "
        f"(flatter alone: {target['flatter']}); no less accurate than AdamW with SAM on "
        f"{target['no less accurate']}; the target is {verdict}"
    )


def write(content: Mapping[str, Any], folder: Path) -> None:
    """``nine_cells.html``, ``nine_cells.png`` and ``table.csv`` into ``folder``."""
    cells, figure = load(folder), forest(content)
    caption = "Mean and 95% interval; short lines are meta-seeds; dotted: a fifth lower."
    inside = [
        f"{name}, {group}: {line}"
        for name, cell in cells.items()
        for group, kept in cell.items()
        for line in kept["failures"]
    ]
    page = Page(
        title="Nine cells: can regularizers be learned?",
        lead=f"{len(cells)} problems",
        summary=summary(content),
        cautions=CAUTIONS,
        failures=[*(f"{name}: {why}" for name, why in content["failed"].items()), *inside],
        command=content["command"],
        origin=[
            ", ".join(f"{name} {x}" for name, x in content["settings"].items()),
            f"commit {content.get('commit')}",
        ],
        words=WORDS,
        sections=[
            Section("What holds", [verdicts(content), *picture(figure, caption)]),
            Section("Does it transfer?", [transfer(content["together"])]),
            Section("Accuracy beside explicit SAM", [accuracies(content)]),
            Section("Absorbed, or merely slower?", [probes(content)]),
            Section("What was trained", [trained(folder)]),
            *(
                Section(name, [ratios(x["ratios"], place) for place in (MATCHED, EQUAL)])
                for name, x in content["cells"].items()
            ),
            *(
                Section(f"{name}: numbers", [absolute(cell, place) for place in PLACES])
                for name, cell in cells.items()
            ),
        ],
    )
    atomic_write_text(folder / "nine_cells.html", render(page))
    atomic_write_text(folder / "table.csv", table_csv(cells))
    if figure is not None:
        atomic_write_bytes(folder / "nine_cells.png", png(figure, 110))
