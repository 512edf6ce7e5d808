"""Tables of what can be flat (ratios by seed, what is missing, and the step of the match) and of
what a meta-gradient must see.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.results_flat import COLUMNS, TRAINED, ceiling, horizon


def run(optimizer: str, place: str, seed: int, x: float) -> dict[str, Any]:
    numbers = dict.fromkeys((*COLUMNS, "train_loss"), f"{x:g}")
    where = {"task": "mlp", "optimizer": optimizer, "place": place, "seed": str(seed)}
    return {**where, "step": str(10 * seed), **numbers}


def test_ratios_are_of_pairs_and_what_is_missing_is_counted() -> None:
    content = [
        run(name, place, seed, seed * factor)
        for name, factors in (("adamw", (1.0, 1.0)), ("sam", (0.5, 2.0)))
        for place, factor in zip(("matched", "equal"), factors)
        for seed in (1, 2, 3, 4)
    ]
    content.remove(run("sam", "matched", 4, 2.0))  # it never came so far
    content[4 + 4]["l2.curvature(0.1)"] = "-1"  # of seed 1: no logarithm
    head, reference, sam = map(list, ceiling(content))
    assert head[-1] == TRAINED and reference[2:] == ["25", *[""] * (len(COLUMNS) + 1)]
    assert sam[2] == "20"  # of the three seeds that came so far
    half, twice = f"{math.log(0.5):.2g}"[:4], f"{math.log(2.0):.2g}"
    curvature, *others, trained = sam[3:]
    assert curvature.startswith(half) and curvature.endswith("(2 of 4 left out)")
    assert all(x.startswith(half) and x.endswith("(1 of 4 left out)") for x in others)
    assert trained.startswith(twice) and "left out" not in trained


def test_slopes_stand_by_the_steps_that_are_seen_and_with_the_strength_that_is_needed() -> None:
    at = {"value": -0.02, "low": -0.03, "high": -0.01}
    by_length = {
        "25": {"held-out loss": {**at, "needed": None}},
        "200": {"held-out loss": {**at, "needed": 1.08}},
    }
    head, row = horizon({"seeds": 4, "problems": {"mlp": by_length}})
    assert head[2:] == ("25 steps", "200 steps")
    assert row == (
        "mlp",
        "held-out loss",
        *["-0.020 [-0.030, -0.010]" + x for x in ("", "; from 1.1")],
    )
