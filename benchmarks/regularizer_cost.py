"""What absorbing a regularizer costs in meta-training: time, memory and gradient evaluations of an
inner step.

    python -m benchmarks.regularizer_cost [--quick] [--out results]

One truncation of the flagship (`attention-mlp`, second-order TBPTT, held-out objective, 8 tasks,
one thread) without and with each regularizer, in turn, round after round (``harness``); ratios are
taken within a round. Memory is measured in processes of their own (``memory``). The counted column
is what the regularizer adds to a step, in gradient evaluations, next to the plain step's 5 (its
gradient, the held-out loss, the Hessian-vector product of the pull-back).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, memory
from benchmarks.harness import Contender
from lo_framework.absorb.absorption import make_absorption
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from lo_framework.optimizees.pool import make_tasks

UNROLL, FOREVER = 10, 10**6
ROWS = (
    ("none", ""),
    ("sam", ""),
    ("sam", "attached=true"),
    ("sam", "batch=independent"),
    ("sam", "when=end"),
    ("asam", ""),
    ("gsam", ""),
    ("gsam:space=params", ""),
    ("gam:exact=false", ""),
    ("gam", ""),
    ("looksam", ""),
    ("fsam", ""),
    ("gradient_norm", ""),
    ("hessian_trace", ""),
    ("weight_decay", ""),
    ("label_noise", ""),
    ("sam+gam", ""),
)


def label(row: tuple[str, str]) -> str:
    return " ".join(part for part in row if part)


def estimate(
    row: tuple[str, str], spec: str, optimizee: str, learned: str, tasks: int, engine: str
) -> Callable[[], Any]:
    """One truncation, from the same start at every call."""
    rule = make_learned(learned)
    absorption = None if row[0] == "none" else make_absorption(*row)
    family = Family(make_tasks(optimizee, "digits")[0], rule, engine, absorption)
    truncation = Truncation(unroll_length=UNROLL, episode=(FOREVER, FOREVER))
    estimator = make_estimator(spec, family, make_objective("valid"), truncation, tasks)
    theta = rule.theta()
    state = estimator.init_state(theta, torch.Generator().manual_seed(0))
    state = replace(state, stop=state.horizon.clone())
    return lambda: estimator.estimate(theta, state)


def counted(row: tuple[str, str]) -> float:
    """Extra gradient evaluations of an inner step."""
    if row[0] == "none" or "when=end" in row[1]:
        return 0.0
    absorption = make_absorption(*row)
    return absorption.regularizer.cost.total - (0.0 if absorption.independent else 1.0)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--optimizees", default="mlp,cnn")
    parser.add_argument("--learned", default="attention-mlp")
    parser.add_argument("--estimator", default="tbptt")
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = ROWS[:2] if args.quick else ROWS
    fixed = {"learned": args.learned, "tasks": args.tasks, "engine": args.engine}
    content = harness.environment("benchmarks.regularizer_cost") | fixed
    content |= {"estimator": args.estimator, "unroll_length": UNROLL, "optimizees": {}}
    for optimizee in args.optimizees.split(","):
        steps = args.tasks * UNROLL
        contenders = [
            Contender(label(row), estimate(row, args.estimator, optimizee, **fixed), steps)
            for row in rows
        ]
        harness.interleave(contenders, 2 if args.quick else args.rounds)
        point = fixed | {
            "spec": args.estimator,
            "steps": UNROLL,
            "optimizee": optimizee,
            "objective": "valid",
        }
        peaks = [memory.child(**point, regularizer=name, absorb=options) for name, options in rows]
        found = []
        for row, contender, peak in zip(rows, contenders, peaks):
            slower = 1 / contender.ratio(contenders[0])[1]
            found.append(
                {
                    "regularizer": label(row),
                    "extra_gradients": counted(row),
                    "steps_per_second": contender.best,
                    "time_ratio": slower,
                    "mebibytes": peak / 2**20,
                    "memory_ratio": peak / peaks[0],
                }
            )
        header = [
            f"{optimizee}, {args.estimator}",
            "extra grads",
            "steps/s",
            "time",
            "MiB",
            "memory",
        ]
        harness.print_table(header, [list(f.values()) for f in found])
        content["optimizees"][optimizee] = found
    stem = "regularizer_cost_quick" if args.quick else "regularizer_cost"
    harness.save(args.out / f"{stem}.json", content)
    return content


if __name__ == "__main__":
    main()
