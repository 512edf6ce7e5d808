"""Does it pay, in the score of meta-training, to go where the loss is flat?

    python -m benchmarks.incentive [--quick] [--out results]

A learned optimizer that absorbs a regularizer is scored by L + strength (R - L), step by step. Here
AdamW is scored so, by two settings that make it flat: its learning rate, and the radius of
single-step SAM. What is printed is the loss on held-out data and, for several R, the gap R - L on
training batches, each the mean over an episode. ``needed`` is the least strength at which the
setting with the least held-out loss is not the best any more: where no setting has a smaller gap,
no strength can teach an optimizer to be flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
ABSORBED = ("sam:rho=0.05", "sam:rho=0.2", "sam:rho=0.5", "even_sam:rho=0.5")
LEARNED = "hyper-adamw:sam_gradients=1,lr={},sam_rho={}"
RATE, RADIUS = 0.03, 0.01  # where the other is what changes
SETTINGS = {
    **{f"radius {x:g}": (RATE, x) for x in (RADIUS, 0.1, 0.2, 0.3, 0.5)},
    **{f"rate {x:g}": (x, RADIUS) for x in (0.003, 0.01, RATE, 0.1, 0.2)},
}


@torch.no_grad()
def loss_and_gap(optimizee: str, setting: str, absorbed: str, args: Any) -> tuple[float, float]:
    """Held-out loss and gap, both normalized as in the score of meta-training (1 is the loss of a
    guess); means over an episode of ``args.steps`` and ``args.tasks`` runs.
    """
    (task,) = make_tasks(optimizee, "digits")
    learned = make_learned(LEARNED.format(*SETTINGS[setting]))
    family = Family(task, learned, absorption=make_absorption(absorbed))
    truncation = Truncation(unroll_length=args.steps, episode=(args.steps, args.steps))
    unroller = Unroller(family, make_objective("valid"), truncation, args.tasks)
    generator = torch.Generator().manual_seed(args.seed)
    state, theta = unroller.init(generator), tile_theta(learned.theta(), args.tasks)
    step, carry, sums = family.step(Need.HELD), state.carry, torch.zeros(2)
    for t in range(args.steps):
        draw, _ = unroller.draw(state, t)
        carry, losses = step(theta, carry, draw)
        held = task.normalize(losses.held)  # as the penalty is
        sums += torch.stack([held.mean(), losses.penalty.mean()])
    mean, gap = (sums / args.steps).tolist()
    return mean, gap


def needed(losses_and_gaps: Iterable[tuple[float, float]]) -> float | None:
    """The least strength with which another setting than that of the least held-out loss has the
    best score; None where none has a smaller gap.
    """
    (held, gap), *others = sorted(losses_and_gaps)
    return min(((h - held) / (gap - g) for h, g in others if g < gap), default=None)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": (5, 200), "tasks": (2, 64), "seed": 1}
    args, content = harness.begin("incentive", __doc__, argv, **options)
    content |= {"steps": args.steps, "tasks": args.tasks, "learned": LEARNED, "problems": {}}
    for kind in ("radius", "rate"):
        settings, lines = [name for name in SETTINGS if name.startswith(kind)], []
        for label, optimizee in PROBLEMS.items():
            by_absorbed = content["problems"].setdefault(label, {}).setdefault(kind, {})
            for absorbed in ABSORBED:
                pairs = {x: loss_and_gap(optimizee, x, absorbed, args) for x in settings}
                strength = needed(pairs.values())
                numbers = {x: {"held": held, "gap": gap} for x, (held, gap) in pairs.items()}
                by_absorbed[absorbed] = {"needed": strength, "settings": numbers}
                gaps = (f"{gap:.4f}" for _, gap in pairs.values())
                lines.append([label, absorbed, *gaps, "never" if strength is None else strength])
            losses = (f"{held:.3f}" for held, _ in pairs.values())
            lines.append([label, "held-out loss", *losses, ""])
        harness.print_table(["problem", "gap of", *settings, "needed"], lines)
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
