"""What an unroll is scored by: a term for each inner step, comparable across tasks.

``valid`` (default) scores the held-out loss after each update, so that a learned optimizer that memorises gains nothing
by it; ``train`` the minibatch loss before each update. ``train=W`` mixes W parts of the training loss into ``valid``.
``log=W`` adds W times the logarithm of the loss: late in an episode the loss is small, and only its logarithm still
tells a good schedule from a bad one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.inner.step import Losses
from lo_framework.protocols import Task
from optimizees.spec import UserError, build_config, nearest, parse_spec

LOG_FLOOR = 1e-3  # a normalised loss below this is as good as zero


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """``train``: weight of the training loss in [0, 1]; ``log``: weight of the log-loss term (at least 0)."""

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
        return self.config.train < 1

    def score(self, task: Task, losses: Losses) -> Tensor:
        """Score ``[K]`` of one step, about 1 at chance level."""
        terms = [(self.config.train, losses.train), (1 - self.config.train, losses.held)]
        total = torch.zeros_like(losses.train)
        for weight, loss in terms:
            if weight:
                value = task.normalize(loss)
                total = total + weight * value
                if self.config.log:
                    total = total + weight * self.config.log * torch.log(value.clamp_min(0) + LOG_FLOOR)
        return total


def make_objective(spec: str) -> Objective:
    """``valid``, ``train`` or ``valid:train=0.5,log=0.1``."""
    name, options = parse_spec(spec)
    if name not in ("valid", "train"):
        raise UserError(f"unknown objective {name!r}{nearest(name, ('valid', 'train'))}; there are valid, train")
    if name == "train":
        options = {"train": "1", **options}
    return Objective(name=name, config=build_config(ObjectiveConfig, options, owner=f"objective {name}"))
