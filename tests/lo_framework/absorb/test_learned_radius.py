"""Explicit SAM whose radius is a meta-parameter: its meta-gradient against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.episode import tile_theta
from lo_framework.estimators import make_estimator
from lo_framework.estimators.state import UnrollState
from lo_framework.inner.step import Family
from lo_framework.learned.base import Theta
from lo_framework.objectives import make_objective
from tests.lo_framework.small_tasks import (
    TinyNet,
    along,
    copied,
    directions,
    doubled,
    in_step,
    once,
    slope,
)

TASK, LENGTH, NUM = TinyNet(), 4, 2


@pytest.mark.parametrize("gradients", [2, 1])
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_learned_radius_has_the_slope_of_the_score(engine: str, gradients: int) -> None:
    """Also at a truncation's first step, whose parameters do not depend on theta; and in first
    order.
    """
    learned = doubled(f"hyper-adamw:lr=0.02,sam_rho=0.3,sam_gradients={gradients}")
    theta = learned.theta()
    found = {}
    for spec in ("tbptt", "tbptt:second_order=false"):
        family = Family(TASK, learned, engine)
        estimator = make_estimator(
            spec, family, make_objective("valid:train=0.3"), once(LENGTH), NUM
        )
        state = in_step(estimator.init_state(theta, torch.Generator().manual_seed(1)))
        found[spec] = estimator.estimate(theta, copied(state))[0].grad

        def score(at: Theta, estimator: Any = estimator, state: UnrollState = state) -> Tensor:
            begun = copied(state)
            _, sums = estimator.unroller.run(
                estimator.step, tile_theta(at, NUM), begun.carry, begun, range(LENGTH)
            )
            return sums.score.mean() / LENGTH

    for name, direction in directions(theta):
        expected = slope(score, theta, direction)
        assert along(found["tbptt"], direction) == pytest.approx(expected, rel=2e-5, abs=2e-9), name
    assert float(found["tbptt:second_order=false"]["log_rho"]) != 0
