"""Objectives about what one step does: MetaAdamW's three terms (`terms`), alone or weighted
together.

Of every inner step, with losses normalised as everywhere, so that they are comparable across tasks:

* ``gradient``: per tensor of the optimizee, the mean square of the next gradient (after the update,
  on a second training batch) and the cosine between it and the gradient that the optimizer saw;
* ``loss_decrease``: the held-out loss after the update in parts of that before it, on one batch;
* ``gen_gap``: the distance between training loss (second batch) and held-out loss after the update.
  Alone it asks for no progress at all, and where training is ahead it raises the training loss: it
  is a term beside the others;
* ``combined``: all three; the weights of an outer step are given from outside (`weighted`), so they
  are constants.

What is a constant under back-propagation (the loss before, the held-out side of the gap) is, under
antithetic perturbations, the mean of the two twins': so every estimator follows the same direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lo_framework.objectives import terms
from lo_framework.optimizees.task import soft_cap
from lo_framework.protocols import Task
from lo_framework.regularizers.base import HVP_COST

if TYPE_CHECKING:
    from lo_framework.inner.step import Losses

FLOOR = 1e-3  # a normalised loss below this is as good as zero: it has no relative decrease
FORWARD_COST = 1 / 3  # of a gradient evaluation


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """``flatness``, ``direction``: weights of the mean square and of ``1 - cos``. ``published``:
    the paper's ``-cos``.
    """

    flatness: float = 0.5
    direction: float = 0.5
    published: bool = False

    def __post_init__(self) -> None:
        weights = (self.flatness, self.direction)
        if not all(0 <= w < float("inf") for w in weights) or not any(weights):
            raise ValueError("flatness and direction must be finite, not negative and not both 0")


@dataclass(frozen=True, kw_only=True)
class DecreaseConfig:
    """``published``: the paper's difference instead of the ratio."""

    published: bool = False


@dataclass(frozen=True, kw_only=True)
class GapConfig:
    """There is nothing to set."""


@dataclass(frozen=True, kw_only=True)
class CombinedConfig(GradientConfig):
    """As for ``gradient``; ``published`` holds for all terms."""


CONFIGS: dict[str, type] = {
    "gradient": GradientConfig,
    "loss_decrease": DecreaseConfig,
    "gen_gap": GapConfig,
    "combined": CombinedConfig,
}


@dataclass(frozen=True, kw_only=True)
class StepObjective:
    """One of the terms by its name, or ``combined``; ``weights``: of the terms in `needs`."""

    name: str
    config: GradientConfig
    weights: tuple[float, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return terms.TERMS if self.name == "combined" else (self.name,)

    @property
    def held_out(self) -> bool:
        return self.needs != ("gradient",)

    @property
    def only_held_out(self) -> bool:
        return self.needs == ("loss_decrease",)

    def cost(self, *, unrolled: bool) -> float:
        """As :meth:`Objective.cost <lo_framework.objectives.levels.Objective.cost>`."""
        total = float(self.held_out) + FORWARD_COST * ("loss_decrease" in self.needs)
        total += float("gradient" in self.needs or "gen_gap" in self.needs)
        return total + HVP_COST * ("gradient" in self.needs and unrolled)

    def weighted(self, weights: tuple[float, ...]) -> StepObjective:
        """The same with other weights."""
        if len(weights) != len(self.needs):
            raise ValueError(f"{len(self.needs)} weights expected, found {len(weights)}")
        return replace(self, weights=weights)

    def terms(self, task: Task, losses: Losses, pairs: bool = False) -> dict[str, Tensor]:
        """The terms ``[K]`` of one step by name; at their worst where a task diverged."""
        after = losses.after
        assert after is not None
        found, published = {}, self.config.published
        if "gradient" in self.needs:
            cosines = torch.where(torch.isfinite(after.cosines), after.cosines, -1.0)
            found["gradient"] = terms.gradient_alignment(
                soft_cap(after.squares),
                cosines,
                self.config.flatness,
                self.config.direction,
                published=published,
            )
        if "loss_decrease" in self.needs:
            held, before = (
                task.normalize(losses.held),
                _constant(task.normalize(after.before), pairs),
            )
            value = terms.loss_decrease(held, before, published=published, tiny=FLOOR)
            found["loss_decrease"] = _capped(value, losses.held)
        if "gen_gap" in self.needs:
            valid = _constant(task.normalize(losses.held), pairs)
            value = terms.generalization_gap(task.normalize(after.second), valid)
            found["gen_gap"] = _capped(value, losses.held, after.second)
        return found

    def score(self, task: Task, losses: Losses) -> Tensor:
        """The weighted sum ``[K]`` of the terms."""
        return self.measure(task, losses)[0]

    def measure(
        self, task: Task, losses: Losses, pairs: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The score ``[K]``, the terms and ``level``, the normalised training loss, which tells who
        diverged.
        """
        found = self.terms(task, losses, pairs)
        score = torch.zeros_like(losses.train)
        for weight, value in zip(self.weights, found.values(), strict=True):
            score = score + weight * value
        known = {**found, "level": task.normalize(losses.train)}
        return score, {name: value.detach() for name, value in known.items()}


def make_step_objective(name: str, config: object) -> StepObjective:
    """With every weight 1. ``config``: of the type that `CONFIGS` has for ``name``."""
    given = {
        field: getattr(config, field)
        for field in GradientConfig.__dataclass_fields__
        if hasattr(config, field)
    }
    objective = StepObjective(name=name, config=GradientConfig(**given), weights=())
    return replace(objective, weights=(1.0,) * len(objective.needs))


def _constant(x: Tensor, pairs: bool) -> Tensor:
    """``x [K]`` without gradient: detached, or the mean of antithetic twins."""
    x = x.detach()
    if not pairs:
        return x
    mean = (x[: len(x) // 2] + x[len(x) // 2 :]) / 2
    return torch.cat([mean, mean])


def _capped(value: Tensor, *losses: Tensor) -> Tensor:
    """``value [K]`` with a soft upper bound, and at the bound where a loss is not finite."""
    whole = torch.stack([torch.isfinite(x.detach()) for x in losses]).all(0)
    return soft_cap(torch.where(whole, value, torch.inf))
