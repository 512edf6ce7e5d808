"""Objectives: a loss (``valid``, ``train``), or what one step does, in MetaAdamW's three terms
(`terms`).

Losses are normalised as everywhere, so that the terms are comparable across tasks:

* ``gradient``: per tensor of the optimizee, the mean square of the next gradient (after the update,
  on a second training batch) and the cosine between it and the gradient that the optimizer saw;
* ``loss_decrease``: the ratio of the held-out loss after the update to that before it, on one
  batch;
* ``gen_gap``: the distance between training loss (second batch) and held-out loss after the update.
  Alone it asks for no progress at all, and where training is ahead it raises the training loss: it
  is a term beside others;
* ``combined``: all three; a weighting gives the weights of an outer step, so they are constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.episode import NOTHING, After, Losses, Need
from lo_framework.objectives import terms
from lo_framework.objectives.base import OBJECTIVES, Term, constant
from lo_framework.optimizees.task import Task, soft_cap
from lo_framework.schema import Checked, Fraction, NotNegative

FLOOR = 1e-3  # a normalised loss below this is as good as zero: it has no relative decrease


@dataclass(frozen=True, kw_only=True)
class ValidConfig(Checked):
    """``train``: weight of the training loss in [0, 1]; ``log``: weight of the log-loss term (at
    least 0).
    """

    train: Fraction = 0.0
    log: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ValidConfig):
    """The options of ``valid``."""

    train: Fraction = 1.0


@OBJECTIVES.register("train", config=TrainConfig)
@OBJECTIVES.register("valid", config=ValidConfig)
class Level(Term):
    """Training and held-out loss, mixed."""

    is_level = True

    def __init__(self, config: ValidConfig) -> None:
        super().__init__(config)
        self.needs = Need.HELD if config.train < 1 else NOTHING
        self.only_held_out = config.train == 0

    def value(self, task: Task, losses: Losses, pairs: bool) -> Tensor:
        train, log = self.config.train, self.config.log
        total = torch.zeros_like(losses.train)
        for weight, loss in ((train, losses.train), (1 - train, losses.held)):
            if weight:
                value = task.normalize(loss)
                total = total + weight * value
                if log:
                    total = total + weight * log * torch.log(value.clamp_min(0) + FLOOR)
        return total


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


@OBJECTIVES.register("gradient", config=GradientConfig)
class GradientAlignment(Term):
    needs = Need.SLOPE

    def value(self, task: Task, losses: Losses, pairs: bool) -> Tensor:
        after, options = _after(losses), vars(self.config)
        cosines = torch.where(torch.isfinite(after.cosines), after.cosines, -1.0)
        return terms.gradient_alignment(soft_cap(after.squares), cosines, **options)


@OBJECTIVES.register("loss_decrease", config=DecreaseConfig)
class LossDecrease(Term):
    needs = Need.BEFORE
    only_held_out = True

    def value(self, task: Task, losses: Losses, pairs: bool) -> Tensor:
        held = task.normalize(losses.held)
        before = constant(task.normalize(_after(losses).before), pairs)
        value = terms.loss_decrease(held, before, published=self.config.published, tiny=FLOOR)
        return capped(value, losses.held)


@OBJECTIVES.register("gen_gap")
class GeneralizationGap(Term):
    needs = Need.HELD | Need.SECOND

    def value(self, task: Task, losses: Losses, pairs: bool) -> Tensor:
        second = _after(losses).second
        valid = constant(task.normalize(losses.held), pairs)
        value = terms.generalization_gap(task.normalize(second), valid)
        return capped(value, losses.held, second)


@OBJECTIVES.register("combined", config=GradientConfig)
def combined(config: GradientConfig) -> dict[str, Term]:
    """All three terms; ``published`` holds for each of them."""
    kinds: tuple[type[Term], ...] = (GradientAlignment, LossDecrease, GeneralizationGap)
    return {name: kind(config) for name, kind in zip(terms.TERMS, kinds, strict=True)}


def capped(value: Tensor, *losses: Tensor) -> Tensor:
    """Bound ``value [K]`` softly from above; at the bound where a loss is not finite."""
    whole = torch.stack([torch.isfinite(x.detach()) for x in losses]).all(0)
    return soft_cap(torch.where(whole, value, torch.inf))


def _after(losses: Losses) -> After:
    assert isinstance(losses.after, After)
    return losses.after
