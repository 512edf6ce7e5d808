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

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import harness, memory
from benchmarks.harness import Contender
from lo_framework.absorb.absorption import make_absorption

UNROLL = 10
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


def counted(row: tuple[str, str]) -> float:
    """Extra gradient evaluations of an inner step."""
    if row[0] == "none" or "when=end" in row[1]:
        return 0.0
    absorption = make_absorption(*row)
    return absorption.regularizer.cost.total - (0.0 if absorption.independent else 1.0)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = harness.parser(__doc__)
    parser.add_argument("--optimizees", default="mlp,cnn")
    parser.add_argument("--learned", default="attention-mlp")
    parser.add_argument("--estimator", default="tbptt")
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--tasks", type=int, default=8)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = ROWS[:2] if args.quick else ROWS
    fixed = {"learned": args.learned, "tasks": args.tasks, "engine": args.engine}
    content = harness.environment("benchmarks.regularizer_cost") | fixed
    content |= {"estimator": args.estimator, "unroll_length": UNROLL, "optimizees": {}}
    for optimizee in args.optimizees.split(","):
        steps = args.tasks * UNROLL
        point = fixed | {"spec": args.estimator, "steps": UNROLL, "optimizee": optimizee}
        point["objective"] = "valid"
        points = [point | {"regularizer": name, "absorb": options} for name, options in rows]
        contenders = [
            Contender(label(row), memory.truncation(**point), steps)
            for row, point in zip(rows, points)
        ]
        harness.interleave(contenders, args.rounds or (2 if args.quick else 5))
        peaks = [memory.child(**point) for point in points]
        report = []
        for row, contender, peak in zip(rows, contenders, peaks):
            slower = 1 / contender.ratio(contenders[0])[1]
            report.append(
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
        harness.print_table(header, [list(f.values()) for f in report])
        content["optimizees"][optimizee] = report
    harness.save("regularizer_cost", args, content)
    return content


if __name__ == "__main__":
    main()
