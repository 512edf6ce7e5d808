"""How many steps must a meta-gradient see, to say that a larger radius pays?

    python -m benchmarks.horizon [--quick] [--out results]

Flat regions are come to slowly. At one radius of single-step SAM, what is printed is the derivative
of the score by the logarithm of that radius, for truncations of several lengths: of the loss on
held-out data, which a larger radius raises, and of the gap R - L of each absorbed R, which it may
lower. ``attached`` is the derivative of that gap; without, it leaves out how the direction of R's
own perturbation depends on the weights, as SAM does. Means over whole episodes, with 95% intervals
over seeds. Above 0, training makes the radius smaller. ``needed`` is the strength from which it
grows, none where the gap does not fall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.incentive import LEARNED, PROBLEMS, RATE
from lo_framework.absorb.absorption import make_absorption
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.eval.statistics import mean_interval
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from lo_framework.optimizees import make_tasks

ABSORBED = {
    f"{name}{', attached' * (how != '')}": (name, how)
    for name in ("even_sam:rho=0.5", "sam:rho=0.5")
    for how in ("", "attached=true")
}
RADIUS = 0.1
LOSS = "held-out loss"
SEEN = (25, 50, 100, 200)  # steps


def slope(
    optimizee: str, absorbed: tuple[str, str] | None, seen: int, seed: int, args: Any
) -> float:
    """Of the score of ``args.tasks`` episodes by the logarithm of the radius; ``absorbed``: what,
    and how.
    """
    (task,) = make_tasks(optimizee, "digits")
    learned = make_learned(LEARNED.format(RATE, RADIUS))
    absorption = None if absorbed is None else make_absorption(*absorbed)
    family = Family(task, learned, absorption=absorption)
    truncation = Truncation(unroll_length=seen, episode=(args.steps, args.steps))
    estimator = make_estimator("tbptt", family, make_objective("valid"), truncation, args.tasks)
    theta = learned.theta()
    state = estimator.init_state(theta, torch.Generator().manual_seed(seed))
    state = replace(state, stop=state.horizon)  # whole episodes, from their first step on
    parts = []
    for _ in range(math.ceil(args.steps / seen)):
        estimate, state = estimator.estimate(theta, state)
        parts.append(float(estimate.grad["log_rho"]) / learned.config.gain)
    return sum(parts) * seen / args.steps  # each is over `seen` steps, of which the last may lack


def needed(loss: float, gap: float) -> float | None:
    """The strength from which a larger radius pays, by slopes of the loss and of the gap."""
    return max(0.0, loss) / -gap if gap < 0 else None


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": (10, 200), "tasks": (2, 8), "seeds": (2, 4), "seed": 1}
    args, content = harness.begin("horizon", __doc__, argv, **options)
    content |= {"steps": args.steps, "tasks": args.tasks, "seeds": args.seeds}
    content |= {"learned": LEARNED.format(RATE, RADIUS), "problems": {}}
    seeds, lines = range(args.seed, args.seed + args.seeds), []
    for label, optimizee in PROBLEMS.items():
        by_length = content["problems"].setdefault(label, {})
        for seen in (min(n, args.steps) for n in SEEN):
            if str(seen) in by_length:
                continue  # a short episode is all seen
            scores = {
                what: np.array([slope(optimizee, absorbed, seen, seed, args) for seed in seeds])
                for what, absorbed in {LOSS: None, **ABSORBED}.items()
            }
            loss = scores.pop(LOSS)
            told = {LOSS: loss} | {f"gap of {what}": x - loss for what, x in scores.items()}
            by_length[str(seen)] = {}
            for what, values in told.items():
                each, strength = mean_interval(values), None
                if values is not loss:
                    strength = needed(loss.mean(), values.mean())
                lines.append([label, seen, what, str(each), strength])
                by_length[str(seen)][what] = {
                    "value": each.value,
                    "low": each.low,
                    "high": each.high,
                    "needed": strength,
                }
    harness.print_table(["problem", "steps seen", "slope of", "mean", "needed"], lines)
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
