"""The report of `eval sharpness`: one self-contained page, a CSV file and tables in a terminal."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lo_framework.eval.report import html, numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.sharpness import landscapes, pictures, tables
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import table_of_values
from lo_framework.eval.sharpness.comparison import HIGHER, LOWER, Comparison, compare, pairs
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES
from lo_framework.eval.sharpness.result import FILE, Result

LOUD = (LOWER, HIGHER)
READING = (
    "Equal steps: after the last step. Matched training loss: at the first watched step "
    "whose loss on the full training split is at most the worst optimizer's last one on the "
    "same seed; runs that diverged never match and are counted. Steps are whole, so that a "
    "fast optimizer may be a little below the target: see its train loss there.",
    "±: half of the 95% interval of the mean over seeds (Student's t). Differences are "
    "paired by seed; their intervals are not corrected for the number of comparisons, the "
    "verdicts are (Holm, over all comparisons of one task at equal steps or at matched "
    "loss).",
    "h(r): how far the loss rises at most within radius r; R1(r): r times the largest "
    "gradient norm there. At small r both mostly measure the gradient norm, that is, how "
    "far training has come; h(r) − r‖∇L‖ takes that part away.",
    "Maxima are lower bounds found by gradient ascent; the same sample of training rows for "
    "every optimizer, in evaluation mode.",
    "Sharpness does not predict generalisation by itself: read it beside test accuracy.",
)


class SharpnessReport(Report[Result]):
    file, title = FILE, "Sharpness"

    def derived(self) -> dict[str, Any]:
        return {
            "comparisons": [asdict(c) for c in compare(self.result)],
            "failures": self.failures(),
        }

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        yield "sharpness.html", self.page()
        yield "sharpness.csv", self.csv()

    def csv(self) -> str:
        """Return a row for each run and place: all of its numbers, for other programs."""
        rows: list[dict[str, object]] = []
        for arm in self.result.arms:
            for run in arm.runs:
                for place in PLACES:
                    point = run.point(place)
                    if point is None:
                        continue
                    step = run.step if place != EQUAL else self.result.settings["steps"]
                    row = dict(task=arm.task, optimizer=arm.optimizer, seed=run.seed)
                    row |= {"place": place, "step": step, **point["values"]}
                    for ball, columns in point["balls"].items():
                        for key, values in columns.items():
                            if key in ("labels", "radii"):
                                continue
                            at = zip(columns["radii"], values)
                            row |= {f"{ball}.{key}({r:g})": value for r, value in at}
                    rows.append(row)
        names = list(dict.fromkeys(name for row in rows for name in row))
        return table_of_values(names, [[row.get(name) for name in names] for row in rows], 7)

    def heading(self) -> list[str]:
        result, s = self.result, self.result.settings
        seeds = f"{numbers.seeds(result.seeds)}, the same for every optimizer"
        lines = [
            f"{s['steps']} steps, {seeds}; effort {s['effort']}",
            f"radii {', '.join(f'{r:g}' for r in s['radii'])}; probe {s['probe']}",
        ]
        if result.baselines:
            tuned = (
                f"{numbers.seeds(result.tuning_seeds)}, at their best setting for the final loss"
            )
            lines.append(f"baselines tuned on each task with {tuned}")
        diverged = sum(arm.diverged for arm in result.arms)
        runs = sum(len(arm.runs) for arm in result.arms)
        lines.append(f"{diverged} of {runs} runs diverged, {len(result.failures)} failures")
        return lines + [f"{label}: {file}" for label, file in result.files.items()]

    def tables(self) -> list[Table]:
        """Return what fits a terminal: what was reached, the balls, and what differs."""
        result, comparisons, shown = self.result, compare(self.result), []
        for task in result.tasks:
            shown += [tables.reached(result, task, place, brief=True) for place in PLACES]
            shown.append(tables.by_radius(result, task, EQUAL))
            for a, b in pairs(result) if self._few else ():
                table = tables.differences(result, comparisons, task, a, b, brief=True)
                shown += [table] if table else []
        return [*shown, tables.costs(result)]

    def summary(self) -> list[str]:
        """Say what differs, each verdict in lines that fit a terminal."""
        verdicts = tables.verdicts(self.result, compare(self.result))
        return [
            line for text in verdicts for line in textwrap.wrap(text, 118, subsequent_indent="  ")
        ]

    def failures(self) -> list[str]:
        return self.result.failures

    def worked(self) -> bool:
        return self.result.worked

    def page(self) -> str:
        """Return the whole report as one HTML document."""
        result, comparisons = self.result, compare(self.result)
        anchors = {f"task-{i + 1}": task for i, task in enumerate(result.tasks)}
        rest = {"costs": "Costs", "reading": "How to read this"}
        body = [
            html.heading(1, "Sharpness"),
            html.bullets(self.heading()),
            *self._provenance(),
            html.contents({"summary": "Summary", **anchors, **rest}),
            html.heading(2, "Summary", "summary"),
            html.bullets(tables.verdicts(result, comparisons)),
        ]
        if not comparisons:
            body.append(html.paragraph("One optimizer alone: nothing to compare."))
        if failed := self.failures():
            body += [html.heading(3, f"{len(failed)} failures"), html.bullets(failed)]
        for anchor, task in anchors.items():
            body += [html.heading(2, task, anchor), *self._task(task, comparisons)]
        body += [html.heading(2, "Costs", "costs"), tables.costs(result).html()]
        body += [html.heading(2, "How to read this", "reading"), html.bullets(READING)]
        return html.page("Sharpness", body)

    @property
    def _few(self) -> bool:
        """Tell whether there are few enough pairs to show each at once."""
        return len(pairs(self.result)) <= tables.FEW_PAIRS

    def _task(self, task: str, comparisons: list[Comparison]) -> Iterator[str]:
        result = self.result
        for place, words in PLACES.items():
            yield html.heading(3, words[0].upper() + words[1:])
            yield tables.reached(result, task, place).html()
            yield tables.by_radius(result, task, place).html()
            if variants := tables.variants(result, task, place):
                yield html.folded("Other neighbourhoods", variants.html())
        for a, b in pairs(result):
            table = tables.differences(result, comparisons, task, a, b).html(LOUD)
            if self._few:
                yield html.heading(3, f"{a} minus {b}")
                yield table
            else:
                yield html.folded(f"{a} minus {b}", table)
        if not pictures.arms_of(result, task):
            yield html.paragraph("Nothing was measured: no pictures.")
            return
        yield html.heading(3, "Pictures")
        for data, caption in self._pictures(task):
            yield html.picture(data, caption, f"{task}: {caption.partition('.')[0]}")

    def _pictures(self, task: str) -> Iterator[tuple[bytes, str]]:
        """Yield PNG and caption, whatever there is."""
        result, settings = self.result, self.result.settings
        yield (
            pictures.training(result, task),
            "Training loss in evaluation mode, one line per seed. The dots are the points of "
            "matched loss; where an optimizer is at its dot early, the comparison at matched loss "
            "looks at it long before its end.",
        )
        yield (
            pictures.radii(result, task),
            "Sharpness against the radius. Means over seeds (geometric for h and R1) with 95% "
            "intervals at each radius. Lines of slope 1 are what the gradient alone gives, slope 2 "
            "is curvature. The third column takes r‖∇L‖ away; where that is negative for some run, "
            "means are arithmetic and the axis is linear around zero.",
        )
        largest = f"{settings['radii'][-1]:g}"
        for key, title in (
            (f"l2.gap@{largest}", f"h({largest})"),
            ("top_eigenvalue", "top Hessian eigenvalue"),
        ):
            if data := pictures.scatter(result, task, key, title):
                yield (
                    data,
                    f"Test accuracy against {title}, a dot per run. Kendall's τ counts all pairs "
                    "of runs, of different optimizers too; dots of one seed are not independent, "
                    "and a correlation across optimizers may come from anything else in which they "
                    "differ.",
                )
        yield from landscapes.pictures(result, task)
        for field, words in pictures.PROBED.items():
            if data := pictures.probe(result, task, field):
                yield data, f"Probe with {settings['probe']}. {words}"

    def _provenance(self) -> Iterator[str]:
        result, source = self.result, self.result.provenance
        settings = result.settings
        if command := source.get("command"):
            yield f"<p>Command: <code>{html.escape(shlex.join(map(str, command)))}</code></p>"
        versions = (source.get("versions") or {}).items()
        tuning = ", ".join(map(str, result.tuning_seeds))
        yield html.bullets(
            [
                f"commit {source.get('commit') or 'unknown'}",
                f"{source.get('time', 'unknown time')}; {source.get('platform', '')}",
                f"versions: {', '.join(f'{name} {x}' for name, x in versions if x)}",
                f"seeds {', '.join(map(str, result.seeds))}; tuning seeds {tuning}",
                *tables.settings_of(result),
            ]
        )
        level = Table("setting", "value", words=2)
        for key, value in settings["level"].items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {x}" for name, x in value.items())
            elif isinstance(value, list):
                value = ", ".join(map(str, value)) or "none"
            level.add(key, value)
        yield html.folded(f"What effort {settings['effort']} means", level.html())
