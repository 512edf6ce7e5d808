"""A user's plugin of three things: a term of the objective, a weighting, and an estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lo_framework.episode import Losses, Need, tile_theta
from lo_framework.estimators import ESTIMATORS, MetaGradient
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.truncation import Unroller
from lo_framework.learned.base import Theta
from lo_framework.objectives import OBJECTIVES, WEIGHTINGS, Term, Weighting
from lo_framework.optimizees.task import Task
from lo_framework.registry import NoOptions


@dataclass(frozen=True, kw_only=True)
class OverfitConfig:
    power: float = 1.0


@OBJECTIVES.register("overfit", config=OverfitConfig)
class Overfit(Term):
    """How far the held-out loss lies above that on a second training batch, both after the step."""

    needs = Need.HELD | Need.SECOND

    def value(self, task: Task, losses: Losses, pairs: bool) -> Tensor:
        assert losses.after
        gap = task.normalize(losses.held) - task.normalize(losses.after.second)
        return gap.clamp_min(0) ** self.config.power


@WEIGHTINGS.register("last_heavy")
class LastHeavy(Weighting):
    """Weight 1, and for the last term the number of outer steps so far."""

    learns = True

    def __init__(
        self, config: NoOptions, terms: Sequence[str], priorities: Sequence[float]
    ) -> None:
        self.num, self.steps = len(terms), torch.zeros(())

    def weights(self) -> tuple[float, ...]:
        return (*(1.0,) * (self.num - 1), float(self.steps))

    def learn(self, values: Tensor, lr: float | None = None) -> None:
        assert len(values) == self.num
        self.steps = self.steps + 1

    def dump(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.steps = tensors["steps"]


@dataclass(frozen=True, kw_only=True)
class SPSAConfig:
    sigma: float = 0.01


@ESTIMATORS.register("spsa", config=SPSAConfig)
class SPSA:
    """One pair of random signs for all tasks together."""

    def __init__(self, config: SPSAConfig, unroller: Unroller) -> None:
        self.config, self.unroller = config, unroller
        self.step = unroller.family.step(unroller.objective.needs)

    def init_state(self, theta: Theta, generator: torch.Generator) -> UnrollState:
        return replace(self.unroller.init(generator), extra={"calls": torch.zeros(())})

    @torch.no_grad()
    def estimate(self, theta: Theta, state: UnrollState) -> tuple[MetaGradient, UnrollState]:
        unroller, length = self.unroller, self.unroller.truncation.unroll_length
        state, _ = unroller.restart_finished(state)
        signs = {
            n: torch.randint(2, x.shape, generator=state.generator) * 2.0 - 1
            for n, x in theta.items()
        }
        data, scores = state.generator.get_state(), []
        for side in (1, -1):  # both sides see the same data
            state.generator.set_state(data)
            moved = {n: x + side * self.config.sigma * signs[n] for n, x in theta.items()}
            tiled = tile_theta(moved, unroller.num)
            carry, sums = unroller.run(self.step, tiled, state.carry, state, range(length))
            scores.append(sums.score.mean() / length)
        slope = (scores[0] - scores[1]) / (2 * self.config.sigma)
        metrics = unroller.summary(state, sums)
        new = replace(unroller.advance(state, carry), extra={"calls": state.extra["calls"] + 1})
        return MetaGradient({n: slope * s for n, s in signs.items()}, metrics), new
