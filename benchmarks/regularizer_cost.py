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

from benchmarks import harness, memory
from benchmarks.harness import Contender, Estimation
from lo_framework.absorb.absorption import make_absorption

UNROLL = 10
ROWS = (  # a regularizer and its options as absorbed
    "none",
    "sam",
    "sam attached=true",
    "sam batch=independent",
    "sam when=end",
    "asam",
    "gsam",
    "gsam:space=params",
    "gam:exact=false",
    "gam",
    "looksam",
    "fsam",
    "gradient_norm",
    "hessian_trace",
    "weight_decay",
    "label_noise",
    "sam+gam",
)


def counted(row: str) -> float:
    """Extra gradient evaluations of an inner step."""
    if row == "none" or "when=end" in row:
        return 0.0
    name, _, options = row.partition(" ")
    absorption = make_absorption(name, options)
    return absorption.regularizer.cost.total - (0.0 if absorption.independent else 1.0)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    fixed: dict[str, Any] = {"learned": "attention-mlp", "tasks": 8, "engine": "eager"}
    defaults = fixed | {"estimator": "tbptt", "optimizees": "mlp,cnn", "rounds": (2, 5)}
    args, content = harness.begin("regularizer_cost", __doc__, argv, **defaults)
    fixed = {name: getattr(args, name) for name in fixed}
    content |= fixed | {"estimator": args.estimator, "unroll_length": UNROLL, "optimizees": {}}
    point = fixed | {"spec": args.estimator, "steps": UNROLL, "objective": "valid"}
    rows = ROWS[:2] if args.quick else ROWS
    for optimizee in args.optimizees.split(","):
        points = [
            point | {"optimizee": optimizee, "regularizer": name, "absorb": options}
            for name, _, options in (row.partition(" ") for row in rows)
        ]
        contenders = [
            Contender(row, Estimation(**point), args.tasks * UNROLL)
            for row, point in zip(rows, points)
        ]
        harness.interleave(contenders, args.rounds)
        peaks = [memory.child(**point) for point in points]
        report = [
            {
                "regularizer": row,
                "extra_gradients": counted(row),
                "steps_per_second": contender.best,
                "time_ratio": 1 / contender.ratio(contenders[0])[1],
                "mebibytes": peak / 2**20,
                "memory_ratio": peak / peaks[0],
            }
            for row, contender, peak in zip(rows, contenders, peaks)
        ]
        header = f"{optimizee}, {args.estimator}|extra grads|steps/s|time|MiB|memory".split("|")
        harness.print_table(header, [[*row.values()] for row in report])
        content["optimizees"][optimizee] = report
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
