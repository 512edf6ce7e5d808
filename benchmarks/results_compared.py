"""Tables of `lo-eval compare` for the documents: an overview, and every arm with its costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lo_framework.eval.baselines import setting_label
from lo_framework.eval.report.numbers import mean_of
from lo_framework.eval.running.protocol import BY_KEY
from lo_framework.eval.studies.comparison import BETTER, WORSE, Comparison, compare, matched_steps
from lo_framework.eval.studies.result import FILE, Arm

OWN_METRICS = ("test_accuracy", "test_perplexity", "test_mae")
Rows = Iterator[tuple[Any, ...]]


def compared(content: Any) -> Rows:
    """Every arm of a comparison, and what its step costs beside the reference's."""
    heads = "problem", "optimizer", "setting", "final loss", "test loss", "test metric"
    yield *heads, "ratio of test losses", "verdict", "steps to AdamW's loss", "time", "memory"
    result = FILE.read(json.dumps(content))
    pairs = {(c.task, c.learned): c for c in compare(result) if c.metric == "test_loss"}
    for task in result.tasks:
        steps, base = matched_steps(result, task), result.arm(task, result.baselines[0])
        for label in (*result.baselines, *result.learned):
            arm, pair = result.arm(task, label), pairs.get((task, label))
            if arm.failure:
                yield task, label, "FAILED", *[""] * 8
                continue
            numbers = [means(arm, key) for key in ("final_loss", "test_loss")]
            own = [means(arm, key) for key in OWN_METRICS if key in arm.chosen]
            verdict = ("1", "") if pair is None else (f"{pair.ratio:.3g}", pair.verdict)
            costs = [times(arm, base, name) for name in ("seconds", "bytes")]
            setting = setting_label(arm.runs[0].setting) if arm.runs[0].setting else "as it is"
            yield task, label, setting, *numbers, *own[:1], *verdict, steps.get(label), *costs


def overview(content: Any) -> Rows:
    """Every arm's ratio of test losses to the reference's; what is significant is said."""
    result = FILE.read(json.dumps(content))
    yield "ratio of test losses", *result.tasks
    pairs = {(c.task, c.learned): c for c in compare(result) if c.metric == "test_loss"}
    for label in (*result.baselines, *result.learned):
        told = [pairs.get((task, label)) for task in result.tasks]
        ratios = [None if c is None else marked(c) for c in told]
        yield label, *(["1"] * len(told) if label == result.baselines[0] else ratios)


def marked(c: Comparison) -> str:
    """The ratio, with the verdict where it is one and more than rounding."""
    ratio = f"{c.ratio:.3f}"
    return f"{ratio} {c.verdict}" if c.verdict in (BETTER, WORSE) and ratio != "1.000" else ratio


def beside(parts: Sequence[Sequence[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """One table of several whose first columns are alike."""
    return [
        (alike[0][0], *(x for row in alike for x in row[1:])) for alike in zip(*parts, strict=True)
    ]


def means(arm: Arm, key: str) -> str:
    """Mean over seeds and half of its interval."""
    values = arm.values(key)
    return "-" if values is None else mean_of(values, BY_KEY[key])


def times(arm: Arm, base: Arm, name: str) -> str:
    """A cost in parts of the reference's."""
    own, other = (None if each.cost is None else getattr(each.cost, name) for each in (arm, base))
    return f"{own / other:.2f}x" if own and other else "-"
