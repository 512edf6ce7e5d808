"""Objectives that are losses: ``valid`` and ``train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lo_framework.protocols import Task

if TYPE_CHECKING:  # the inner step uses the terms of this package
    from lo_framework.inner.step import Losses

LOG_FLOOR = 1e-3  # a normalised loss below this is as good as zero


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """``train``: weight of the training loss in [0, 1]; ``log``: weight of the log-loss term (at
    least 0).
    """

    train: float = 0.0
    log: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.train <= 1 or not self.log >= 0:
            raise ValueError("train must be in [0, 1] and log at least 0")


@dataclass(frozen=True, kw_only=True)
class Objective:
    name: str
    config: ObjectiveConfig

    @property
    def held_out(self) -> bool:
        """A held-out batch is drawn, and its loss taken after each update."""
        return self.config.train < 1

    @property
    def only_held_out(self) -> bool:
        """No training data enter, so that a radius may be learned on it."""
        return self.config.train == 0

    @property
    def needs(self) -> tuple[str, ...]:
        """The terms for which the inner step has to look at the point after the update."""
        return ()

    def cost(self, *, unrolled: bool) -> float:
        """Gradient evaluations of one inner step beside its own gradient; ``unrolled``: a graph is
        kept (TBPTT).
        """
        return float(self.held_out)

    def score(self, task: Task, losses: Losses) -> Tensor:
        """Score ``[K]`` of one step, about 1 at chance level."""
        terms = [(self.config.train, losses.train), (1 - self.config.train, losses.held)]
        total = torch.zeros_like(losses.train)
        for weight, loss in terms:
            if weight:
                value = task.normalize(loss)
                total = total + weight * value
                if self.config.log:
                    total = total + weight * self.config.log * torch.log(
                        value.clamp_min(0) + LOG_FLOOR
                    )
        return total

    def measure(
        self, task: Task, losses: Losses, pairs: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The score ``[K]`` and what else is to be reported of the step, by name ``[K]``, without a
        graph.

        ``pairs``: the second half of the K tasks are the antithetic twins of the first.
        """
        return self.score(task, losses), {}
