"""The radius of an absorbed regularizer, learned on held-out loss by evolution strategies across
outer phases.

A radius cannot be learned on the training objective: the best one there is 0. Here the outer loop
is what is perturbed: from one state, two branches of it run for a phase, with the radii ``rho
exp(+-sigma eps)``; each is scored by the held-out loss that its optimizer reaches on the validation
seeds, the difference moves log rho, and the run goes on in the better branch. That takes twice the
outer steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lo_framework.meta_train.config import RadiusConfig

_STREAM = 0x4AD1


class Radius:
    """The search's state."""

    def __init__(self, config: RadiusConfig, rho: float, seed: int) -> None:
        self.config, self.log_rho = config, math.log(rho)
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + _STREAM) % 2**63)

    @property
    def rho(self) -> float:
        return math.exp(self.log_rho)

    def pair(self) -> tuple[float, tuple[float, float]]:
        """A perturbation and the two radii that it makes."""
        eps = float(torch.randn((), generator=self.generator, dtype=torch.float64))
        shift = self.config.sigma * eps
        return eps, (math.exp(self.log_rho + shift), math.exp(self.log_rho - shift))

    def learn(self, eps: float, losses: Sequence[float]) -> None:
        """One ES step from the log held-out losses of the two branches."""
        sigma = self.config.sigma
        step = -self.config.lr * eps * (losses[0] - losses[1]) / (2 * sigma)
        if math.isfinite(step):
            self.log_rho += min(max(step, -sigma), sigma)

    def dump(self) -> dict[str, Tensor]:
        return {
            "log_rho": torch.tensor(self.log_rho, dtype=torch.float64),
            "generator": self.generator.get_state(),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.log_rho = float(tensors["log_rho"])
        self.generator.set_state(tensors["generator"].clone())
