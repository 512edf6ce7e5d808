"""The report of `eval sharpness`: one self-contained page, a CSV file and tables in a terminal."""

from __future__ import annotations

import shlex
import textwrap
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lo_framework.errors import visible
from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.sharpness import landscapes, pictures, tables
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import table_of_values
from lo_framework.eval.sharpness.comparison import HIGHER, LOWER, compare, pairs
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES
from lo_framework.eval.sharpness.result import FILE, Result
from lo_framework.optional import require

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
            for a, b in self.pairs if self.few else ():
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
        """Return the whole report as one HTML document; pictures are in it."""
        require("jinja2")
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            # Every value passes here before it is escaped; what a macro made has done so already.
            finalize=lambda value: value if hasattr(value, "__html__") else visible(value),
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        environment.filters["base64"] = lambda data: b64encode(data).decode("ascii")
        result = self.result
        return environment.get_template("page.html").render(
            report=self,
            result=result,
            comparisons=compare(result),
            tables=tables,
            places=PLACES,
            loud=(LOWER, HIGHER),
            reading=READING,
            command=shlex.join(map(str, result.provenance.get("command") or ())),
            origin=self._origin_of_numbers(),
            level=self._level(),
        )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return pairs(self.result)

    @property
    def few(self) -> bool:
        """Tell whether there are few enough pairs to show each at once."""
        return len(self.pairs) <= tables.FEW_PAIRS

    def pictures(self, task: str) -> Iterator[tuple[bytes | None, str]]:
        """Yield PNG and caption; None of what was not measured."""
        result, settings = self.result, self.result.settings
        if not pictures.arms_of(result, task):
            return
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
            yield (
                pictures.scatter(result, task, key, title),
                f"Test accuracy against {title}, a dot per run. Kendall's τ counts all pairs of "
                "runs, of different optimizers too; dots of one seed are not independent, and a "
                "correlation across optimizers may come from anything else in which they differ.",
            )
        yield from landscapes.pictures(result, task)
        for field, words in pictures.PROBED.items():
            yield pictures.probe(result, task, field), f"Probe with {settings['probe']}. {words}"

    def _origin_of_numbers(self) -> list[str]:
        result, source = self.result, self.result.provenance
        versions = (source.get("versions") or {}).items()
        return [
            f"commit {source.get('commit') or 'unknown'}",
            f"{source.get('time', 'unknown time')}; {source.get('platform', '')}",
            f"versions: {', '.join(f'{name} {x}' for name, x in versions if x)}",
            f"seeds {', '.join(map(str, result.seeds))}; "
            f"tuning seeds {', '.join(map(str, result.tuning_seeds))}",
            *tables.settings_of(result),
        ]

    def _level(self) -> Table:
        """Say what the effort means."""
        table = Table("setting", "value", words=2)
        for key, value in self.result.settings["level"].items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {x}" for name, x in value.items())
            elif isinstance(value, list):
                value = ", ".join(map(str, value)) or "none"
            table.add(key, value)
        return table
