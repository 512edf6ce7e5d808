"""The best multiple of a learned step over widths and depths: does a rule find its own step size?

    python -m benchmarks.step_scales --learned FILE [--quick] [--out results]

Every problem is trained with the learned step times each of `SCALES` and with AdamW tuned over its
grid, on the same seeds. A rule that is right has its best multiple near 1 everywhere; where the
mean loss is as good over several multiples, the nearest to 1 counts. Required: at most a factor 2
away from 1. A problem on which tuned AdamW stays above half of its first loss cannot be trained by
what is compared here: it is marked and left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from lo_framework.eval.api import evaluate
from lo_framework.eval.statistics import mean

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
AS_GOOD = 1.02  # mean losses within this factor are the same
RESIDUAL = "mlp-relu:norm=layer,residual=1,hidden={0},layers={1}"
WIDTHS, DEPTHS = (32, 64, 128, 256, 512, 1024, 2048), (2, 3, 4, 6, 8, 12)
QUICK = 3  # sizes of each curve


def problems(quick: bool) -> dict[str, list[tuple[int, str]]]:
    """Per curve, its sizes with their optimizees. The widest layers stand alone: two of 2048 have
    four million parameters.
    """
    widths, depths = (WIDTHS[:QUICK], DEPTHS[:QUICK]) if quick else (WIDTHS, DEPTHS)
    square = [width for width in widths if width <= 512]
    return {
        "relu, one hidden layer, width": [(w, f"mlp-relu:hidden={w}") for w in widths],
        "relu, two hidden layers, width": [(w, f"mlp-relu:hidden={w}x{w}") for w in square],
        "residual + LayerNorm, width": [(w, RESIDUAL.format(w, 3)) for w in square],
        "relu, matrices": [(d, f"mlp-relu:hidden=64,layers={d - 1}") for d in depths],
        "residual + LayerNorm, matrices": [(d, RESIDUAL.format(64, d - 1)) for d in depths],
    }


def measure(optimizee: str, args: Any) -> dict[str, Any]:
    """Mean losses of every multiple and of tuned AdamW, and the best multiple."""
    result = evaluate(
        optimizee,
        {"learned": args.learned},
        baselines=["adamw"],
        steps=args.steps,
        seeds=args.seeds,
        tuning_seeds=args.seeds,
        step_scales=",".join(map(str, SCALES)),
        workers=args.workers,
    )
    tuned = next(arm for arm in result.arms if arm.learned and arm.tuned)
    scores = {
        next(iter(t["setting"].values())): float(mean(t["scores"]["mean_loss"]))
        for t in tuned.tuned
    }
    least = min(scores.values())
    best = min((s for s in scores if scores[s] <= AS_GOOD * least), key=lambda s: abs(math.log(s)))
    adamw = next(arm for arm in result.arms if not arm.learned)
    run, by_mean = adamw.of("final_loss"), adamw.of("mean_loss")
    assert run is not None and by_mean is not None
    first, last = run.curves[:, 0].mean(), run.curves[:, -1].mean()
    return {
        "optimizee": optimizee,
        "mean_loss": scores,
        "best": best,
        "adamw_mean_loss": float(mean(by_mean.metrics["mean_loss"])),
        "trainable": bool(last <= first / 2),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults: dict[str, Any] = {"learned": None, "steps": (20, 100), "seeds": (1, 3), "workers": 1}
    args, content = harness.begin("step_scales", __doc__, argv, **defaults)
    content |= {"steps": args.steps, "seeds": args.seeds, "curves": {}}
    for label, sizes in problems(args.quick).items():
        rows = [{"size": size} | measure(optimizee, args) for size, optimizee in sizes]
        content["curves"][label] = rows
        header = (label, *(f"x{scale:g}" for scale in SCALES), "AdamW", "best")
        harness.print_table(
            header,
            [
                (
                    r["size"],
                    *r["mean_loss"].values(),
                    r["adamw_mean_loss"],
                    f"x{r['best']:g}" if r["trainable"] else "untrainable",
                )
                for r in rows
            ],
        )
    kept = [row for rows in content["curves"].values() for row in rows if row["trainable"]]
    farthest = max(max(row["best"], 1 / row["best"]) for row in kept)
    content["kept"] = harness.within("farthest best multiple", farthest, 2.0)
    lines = {
        label: [(row["size"], row["best"]) for row in rows if row["trainable"]]
        for label, rows in content["curves"].items()
    }
    panels = {
        what: {
            "lines": {label: points for label, points in lines.items() if label.endswith(what)},
            "xlabel": what,
            "ylim": (SCALES[0] / 1.2, SCALES[-1] * 1.2),
        }
        for what in ("width", "matrices")
    }
    harness.save(
        args,
        content,
        best_multiple_over_width=panels["width"],
        best_multiple_over_depth=panels["matrices"],
    )
    return content


if __name__ == "__main__":
    main()
