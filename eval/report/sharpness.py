"""A sharpness evaluation for people: terminal tables, one self-contained page, and both again from
the numbers.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lo_framework.eval.report import (
    html,
    numbers,
    sharpness_landscapes,
    sharpness_pictures,
    sharpness_tables,
)
from lo_framework.eval.report.sharpness_tables import Sheet
from lo_framework.eval.sharpness.comparison import HIGHER, LOWER, Comparison, compare, pairs
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES
from lo_framework.eval.sharpness.result import FILE, Result, from_json, to_json
from lo_framework.files.atomic import atomic_write_text

PAGE, TABLE = "sharpness.html", "sharpness.csv"

READING = (
    "Equal steps: after the last step. Matched training loss: at the first watched step whose loss on the full "
    "training split is at most the worst optimizer's last one on the same seed; runs that diverged never match and are "
    "counted. Steps are whole, so that a fast optimizer may be a little below the target: see its train loss there.",
    "±: half of the 95% interval of the mean over seeds (Student's t). Differences are paired by seed; their intervals "
    "are not corrected for the number of comparisons, the verdicts are (Holm, over all comparisons of one task at "
    "equal steps or at matched loss).",
    "h(r): how far the loss rises at most within radius r; R1(r): r times the largest gradient norm there. At small r "
    "both mostly measure the gradient norm, that is, how far training has come; h(r) − r‖∇L‖ takes that part away.",
    "Maxima are lower bounds found by gradient ascent; the same sample of training rows for every optimizer, in "
    "evaluation mode.",
    "Sharpness does not predict generalisation by itself: read it beside test accuracy.",
)


def save(result: Result, folder: str | os.PathLike[str]) -> list[Path]:
    """Numbers first, then the page drawn from them; returns the files."""
    path = Path(folder) / FILE.name
    derived = {
        "comparisons": [_json(asdict(c)) for c in compare(result)],
        "failures": result.failures,
    }
    atomic_write_text(path, to_json(result, derived))
    return [path, *redraw(result, Path(folder))]


def redraw(result: Result, folder: Path) -> list[Path]:
    """The page and the table from the numbers."""
    written = {PAGE: page(result), TABLE: csv_of(result)}
    for name, text in written.items():
        atomic_write_text(folder / name, text)
    return [folder / name for name in written]


def csv_of(result: Result) -> str:
    """One row for each run and place: all of its numbers, for other programs."""
    rows: list[dict[str, object]] = []
    for arm in result.arms:
        for run in arm.runs:
            for place in PLACES:
                point = run.point(place)
                if point is None:
                    continue
                step = run.step if place != EQUAL else result.settings["steps"]
                row = {
                    "task": arm.task,
                    "optimizer": arm.optimizer,
                    "seed": run.seed,
                    "place": place,
                    "step": step,
                }
                row |= point["values"]
                for ball, found in point["balls"].items():
                    for key, values in found.items():
                        if key not in ("labels", "radii"):
                            row |= {
                                f"{ball}.{key}({r:g})": x for r, x in zip(found["radii"], values)
                            }
                rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{x:.7g}" if isinstance(x, float) else x for k, x in row.items()} for row in rows
    )
    return out.getvalue()


def load(folder: str | os.PathLike[str]) -> Result:
    """The result saved in a folder; raises UserError."""
    return FILE.load(folder, from_json)


def plain(result: Result) -> str:
    """For a terminal: what was reached, the balls, and what differs."""
    comparisons = compare(result)
    parts = ["\n".join(heading(result))]
    for task in result.tasks:
        for place in PLACES:
            parts.append(sharpness_tables.reached(result, task, place, brief=True).plain())
        parts.append(sharpness_tables.by_radius(result, task, EQUAL).plain())
        for a, b in pairs(result) if _few(result) else ():
            sheet = sharpness_tables.differences(result, comparisons, task, a, b, brief=True)
            parts += [sheet.plain()] if sheet.rows else []
    if comparisons:
        lines = sharpness_tables.verdicts(result, comparisons)
        parts.append("\n".join(textwrap.fill(text, 118, subsequent_indent="  ") for text in lines))
    parts.append(sharpness_tables.costs(result).plain())
    if result.failures:
        parts.append("\n".join(["FAILED", *(f"  {line}" for line in result.failures)]))
    return "\n\n".join(parts)


def _few(result: Result) -> bool:
    """Few enough pairs to show each at once."""
    return len(pairs(result)) <= sharpness_tables.FEW_PAIRS


def listing(written: list[Path]) -> str:
    """Where everything is, a line per file."""
    titles = {".json": "numbers", ".html": "page", ".csv": "table"}
    return "\n".join(f"{titles[path.suffix]:9}{path}" for path in written)


def heading(result: Result) -> list[str]:
    """What was run."""
    s = result.settings
    lines = [
        f"{s['steps']} steps, {numbers.seeds(result.seeds)}, the same for every optimizer; effort {s['effort']}",
        f"radii {', '.join(f'{r:g}' for r in s['radii'])}; probe {s['probe']}",
    ]
    if result.baselines:
        tuned = numbers.seeds(result.tuning_seeds)
        lines.append(
            f"baselines tuned on each task with {tuned}, at their best setting for the final loss"
        )
    diverged = sum(arm.diverged for arm in result.arms)
    runs = sum(len(arm.runs) for arm in result.arms)
    lines.append(f"{diverged} of {runs} runs diverged, {len(result.failures)} failures")
    return lines + [f"{label}: {file}" for label, file in result.files.items()]


def page(result: Result) -> str:
    """The whole report as one HTML document."""
    comparisons = compare(result)
    anchors = {"summary": "Summary", **{_anchor(i): task for i, task in enumerate(result.tasks)}}
    anchors |= {"costs": "Costs", "reading": "How to read this"}
    body = [
        html.heading(1, "Sharpness"),
        html.bullets(heading(result)),
        *_origin(result),
        html.contents(anchors),
    ]
    body += [
        html.heading(2, "Summary", "summary"),
        html.bullets(sharpness_tables.verdicts(result, comparisons)),
    ]
    if not comparisons:
        body.append(html.paragraph("One optimizer alone: nothing to compare."))
    if result.failures:
        body += [html.heading(3, f"{len(result.failures)} failures"), html.bullets(result.failures)]
    for i, task in enumerate(result.tasks):
        body += [html.heading(2, task, _anchor(i)), *_task(result, task, comparisons)]
    body += [html.heading(2, "Costs", "costs"), _sheet(sharpness_tables.costs(result))]
    body += [html.heading(2, "How to read this", "reading"), html.bullets(READING)]
    return html.page("Sharpness", body)


def _task(result: Result, task: str, comparisons: list[Comparison]) -> Iterator[str]:
    for place in PLACES:
        yield html.heading(3, PLACES[place][0].upper() + PLACES[place][1:])
        yield _sheet(sharpness_tables.reached(result, task, place))
        yield _sheet(sharpness_tables.by_radius(result, task, place))
        if variants := sharpness_tables.variants(result, task, place):
            yield html.folded("Other neighbourhoods", _sheet(variants))
    for a, b in pairs(result):
        sheet = _sheet(sharpness_tables.differences(result, comparisons, task, a, b))
        if _few(result):
            yield html.heading(3, f"{a} minus {b}")
            yield sheet
        else:
            yield html.folded(f"{a} minus {b}", sheet)
    if not sharpness_pictures.arms_of(result, task):
        yield html.paragraph("Nothing was measured: no pictures.")
        return
    yield html.heading(3, "Pictures")
    for data, caption in _pictures(result, task):
        yield html.picture(data, caption, f"{task}: {caption.partition('.')[0]}")


def _pictures(result: Result, task: str) -> Iterator[tuple[bytes, str]]:
    """PNG and caption, whatever there is."""
    yield (
        sharpness_pictures.training(result, task),
        "Training loss in evaluation mode, one line per seed. The dots are the points of matched loss; where an "
        "optimizer is at its dot early, the comparison at matched loss looks at it long before its end.",
    )
    yield (
        sharpness_pictures.radii(result, task),
        "Sharpness against the radius. Means over seeds (geometric for h and R1) with 95% intervals at each radius. "
        "Lines of slope 1 are what the gradient alone gives, slope 2 is curvature. The third column takes r‖∇L‖ away; "
        "where that is negative for some run, means are arithmetic and the axis is linear around zero.",
    )
    largest = f"{result.settings['radii'][-1]:g}"
    for key, title in (
        (f"l2.gap@{largest}", f"h({largest})"),
        ("top_eigenvalue", "top Hessian eigenvalue"),
    ):
        if data := sharpness_pictures.scatter(result, task, key, title):
            yield (
                data,
                f"Test accuracy against {title}, a dot per run. Kendall's τ counts all pairs of runs, of different "
                "optimizers too; dots of one seed are not independent, and a correlation across optimizers may come "
                "from anything else in which they differ.",
            )
    yield from sharpness_landscapes.pictures(result, task)
    for field, words in sharpness_pictures.PROBED.items():
        if data := sharpness_pictures.probe(result, task, field):
            yield data, f"Probe with {result.settings['probe']}. {words}"


def _sheet(sheet: Sheet) -> str:
    rows = html.table(sheet.headers, sheet.rows, words=sheet.words, loud=(LOWER, HIGHER))
    return html.paragraph(sheet.title, "note") + rows


def _origin(result: Result) -> Iterator[str]:
    origin = result.provenance
    if command := origin.get("command"):
        yield f"<p>Command: <code>{html.escape(shlex.join(command))}</code></p>"
    versions = ", ".join(f"{name} {x}" for name, x in (origin.get("versions") or {}).items() if x)
    yield html.bullets(
        [
            f"commit {origin.get('commit') or 'unknown'}",
            f"{origin.get('time', 'unknown time')}; {origin.get('platform', '')}",
            f"versions: {versions}",
            f"seeds {', '.join(map(str, result.seeds))}; tuning seeds {', '.join(map(str, result.tuning_seeds))}",
            *sharpness_tables.settings_of(result),
        ]
    )
    level = [
        (key, value if not isinstance(value, dict) else _words(value))
        for key, value in result.settings["level"].items()
    ]
    shown = [
        (key, ", ".join(map(str, value)) or "none" if isinstance(value, list) else value)
        for key, value in level
    ]
    yield html.folded(
        f"What effort {result.settings['effort']} means",
        html.table(("setting", "value"), shown, words=2),
    )


def _words(value: dict[str, Any]) -> str:
    return ", ".join(f"{key} {x}" for key, x in value.items())


def _anchor(i: int) -> str:
    return f"task-{i + 1}"


def _json(value: Any) -> Any:
    """None for what is not finite."""
    if isinstance(value, dict):
        return {key: _json(x) for key, x in value.items()}
    if isinstance(value, float) and value - value != 0:
        return None
    return value
