"""Does it pay, in the score of meta-training, to go where the loss is flat?

    python -m benchmarks.incentive [--quick] [--out results]

A learned optimizer that absorbs a regularizer is scored by L + strength (R - L), step by step. Here
AdamW with single-step SAM is scored so, over radii that it may take: it is as flat as one that
absorbs well. What is printed is the loss on held-out data and, for several R, the gap R - L on
training batches, each the mean over an episode. Where the gap does not fall with the radius, no
strength can teach an optimizer to be flat; where it does, ``needed`` is the least strength at which
the best of these radii is not the smallest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import harness
from lo_framework.absorb.absorption import make_absorption
from lo_framework.episode import Need, tile_theta
from lo_framework.estimators import Truncation
from lo_framework.estimators.truncation import Unroller
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from lo_framework.optimizees import make_tasks

PROBLEMS = {"mlp on digits": "mlp", "mlp-relu on digits": "mlp-relu"}
RADII = (0.01, 0.1, 0.2, 0.3, 0.5)
ABSORBED = ("sam:rho=0.05", "sam:rho=0.5", "even_sam:rho=0.5")
LEARNED = "hyper-adamw:lr=0.03,sam_gradients=1,sam_rho="


@torch.no_grad()
def followed(optimizee: str, radius: float, absorbed: str, args: Any) -> tuple[float, float]:
    """Held-out loss and gap, means over an episode of ``args.steps`` and ``args.tasks`` runs."""
    (task,), learned = make_tasks(optimizee, "digits"), make_learned(f"{LEARNED}{radius}")
    family = Family(task, learned, absorption=make_absorption(absorbed))
    truncation = Truncation(unroll_length=args.steps, episode=(args.steps, args.steps))
    unroller = Unroller(family, make_objective("valid"), truncation, args.tasks)
    generator = torch.Generator().manual_seed(args.seed)
    state, theta = unroller.init(generator), tile_theta(learned.theta(), args.tasks)
    step, carry, sums = family.step(Need.HELD), state.carry, torch.zeros(2)
    for t in range(args.steps):
        draw, _ = unroller.draw(state, t)
        carry, losses = step(theta, carry, draw)
        sums += torch.stack([losses.held.mean(), losses.penalty.mean()])
    held, gap = (sums / args.steps).tolist()
    return held, gap


def needed(by_radius: Mapping[float, tuple[float, float]]) -> float | None:
    """The least strength with which a larger radius than the smallest has the best score; None
    where none has.
    """
    (held, gap), *others = (by_radius[radius] for radius in sorted(by_radius))
    return min((max(h - held, 0.0) / (gap - g) for h, g in others if g < gap), default=None)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": (5, 200), "tasks": (2, 64), "seed": 1}
    args, content = harness.begin("incentive", __doc__, argv, **options)
    content |= {"steps": args.steps, "tasks": args.tasks, "learned": LEARNED, "problems": {}}
    rows = []
    for label, optimizee in PROBLEMS.items():
        of_problem: dict[str, Any] = {}
        for absorbed in ABSORBED:
            by_radius = {radius: followed(optimizee, radius, absorbed, args) for radius in RADII}
            of_problem[absorbed] = {
                "needed": needed(by_radius),
                "radii": {
                    f"{radius:g}": {"held": held, "gap": gap}
                    for radius, (held, gap) in by_radius.items()
                },
            }
            gaps = (f"{gap:.4f}" for _, gap in by_radius.values())
            strength = of_problem[absorbed]["needed"]
            rows.append([label, absorbed, *gaps, strength or "never"])
        content["problems"][label] = of_problem
        losses = (f"{held:.3f}" for held, _ in by_radius.values())
        rows.append([label, "held-out loss", *losses, ""])
    harness.print_table(["problem", "gap of", *map(str, RADII), "needed"], rows)
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
