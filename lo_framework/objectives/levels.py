"""Objectives that are losses: ``valid`` and ``train``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.episode import NOTHING, Losses, Need
from lo_framework.objectives.base import OBJECTIVES, Term
from lo_framework.optimizees.task import Task
from lo_framework.schema import Checked, Fraction, NotNegative

LOG_FLOOR = 1e-3  # a normalised loss below this is as good as zero


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
                    total = total + weight * log * torch.log(value.clamp_min(0) + LOG_FLOOR)
        return total
