"""The report of `eval sharpness`: one self-contained page, a CSV file and tables in a terminal."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.page import Folded, Part, Section, Term, picture
from lo_framework.eval.report.sharpness import landscapes, pictures, tables
from lo_framework.eval.report.sharpness.words import words_of
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import table_of_values
from lo_framework.eval.sharpness.comparison import HIGHER, LOWER, compare, pairs
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES
from lo_framework.eval.sharpness.result import FILE, Result
from lo_framework.eval.sharpness.settings import CHOICES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SharpnessReport(Report[Result]):
    file, title, loud = FILE, "Sharpness", (LOWER, HIGHER)

    def derived(self) -> dict[str, Any]:
        return {
            "comparisons": [asdict(c) for c in compare(self.result)],
            "failures": self.failures(),
        }

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        yield "sharpness.html", self.html()
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
        radii = ", ".join(f"{r:g}" for r in s["radii"])
        lines = [
            f"{s['steps']} steps, {seeds}",
            f"the loss is searched within radii of {radii} around the parameters, with effort "
            f"{s['effort']}",
            f"probe: updates are compared with the correction of {s['probe']}",
        ]
        if result.baselines:
            tuned = (
                f"{numbers.seeds(result.tuning_seeds)}, at their best setting for the "
                f"{CHOICES[s['choose_by']]}"
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

    def words(self) -> list[Term]:
        return words_of(self.result)

    def notes(self) -> list[str]:
        """Say nothing in the terminal: what the words mean is on the page."""
        return []

    def findings(self) -> list[str]:
        lines = tables.verdicts(self.result, compare(self.result), in_words=True)
        return lines or ["One optimizer alone: nothing to compare."]

    def cautions(self) -> list[str]:
        families = Counter((c.task, c.place) for c in compare(self.result))
        seeds = len(self.result.seeds)
        line = numbers.few_seeds(seeds, max(families.values(), default=0))
        own = "What is significant here is so by Student's t, which takes differences to be normal."
        return [f"{line} {own}"] if line else []

    def details(self) -> list[Part]:
        """Return the settings that every number rests on."""
        effort = self.result.settings["effort"]
        parts: list[Part] = [Folded(f"What effort {effort} means", (self._level(),))]
        if settings := tables.settings_of(self.result):
            parts.append(Folded("Settings of the baselines", (settings,)))
        return parts

    def sections(self) -> list[Section]:
        found = [Section(task, [*self._of(task)]) for task in self.result.tasks]
        return [*found, Section("Costs", [tables.costs(self.result)])]

    def _of(self, task: str) -> Iterator[Part]:
        """Yield what was reached at each place, what differs, and the pictures."""
        result, comparisons = self.result, compare(self.result)
        for place, where in PLACES.items():
            yield where.capitalize()
            yield tables.reached(result, task, place)
            yield tables.by_radius(result, task, place)
            if variants := tables.variants(result, task, place):
                yield Folded("Other neighbourhoods", (variants,))
        for a, b in self.pairs:
            table = tables.differences(result, comparisons, task, a, b)
            if self.few:
                yield f"{a} minus {b}"
            yield table if self.few else Folded(table.title, (table,))
        drawn = [part for one in self.pictures(task) for part in picture(*one)]
        yield "Pictures" if drawn else ["Nothing was measured: no pictures."]
        yield from drawn

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return pairs(self.result)

    @property
    def few(self) -> bool:
        """Tell whether there are few enough pairs to show each at once."""
        return len(self.pairs) <= tables.FEW_PAIRS

    def pictures(self, task: str) -> Iterator[tuple[Figure | None, str]]:
        """Yield picture and caption; None of what was not measured."""
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
