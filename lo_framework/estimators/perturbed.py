"""``es`` and ``pes``: antithetic Gaussian perturbations of theta, one pair per task.

    ES:   grad = mean_k  eps_k (L(theta + eps_k) - L(theta - eps_k)) / (2 sigma^2)
    PES:  with xi_k, the sum of a task's perturbations since its episode began, in place of eps_k

(Salimans et al. 2017; Vicol et al. 2021.) Both members of a pair see the same initial parameters,
data and dropout. No derivative of anything is needed, and constant memory.

ES is unbiased for the smoothed objective when one truncation is a whole episode; biased towards
short horizons otherwise. After a truncation both members of a pair go on from the positive one's
state. PES is unbiased also on truncations shorter than the episode: each pair keeps its own state
from truncation to truncation, and the loss difference is credited to all its perturbations since
the episode began. Its variance grows with the number of truncations in an episode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lo_framework.estimators.base import ESTIMATORS, MetaGradient
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.truncation import Unroller
from lo_framework.learned.base import Theta
from lo_framework.schema import Checked, Positive
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class PerturbedConfig(Checked):
    """``sigma``: standard deviation of the perturbation of every meta-parameter."""

    sigma: Positive = 0.01


class Perturbed:
    """Common engine; ``persistent`` is what tells PES from ES."""

    persistent: ClassVar[bool]

    def __init__(self, config: PerturbedConfig, unroller: Unroller) -> None:
        self.config, self.unroller = config, replace(unroller, copies=2)
        self.step = unroller.family.step(unroller.objective.needs, pairs=True)
        parameters = [*unroller.family.learned.parameters()]
        self.constant: Tensor | None = None  # what is not trained is not perturbed
        if not all(p.requires_grad for p in parameters):
            flags = [torch.full((p.numel(),), not p.requires_grad) for p in parameters]
            self.constant = torch.cat(flags)

    def init_state(self, theta: Theta, generator: torch.Generator) -> UnrollState:
        state = self.unroller.init(generator)
        size = sum(x.numel() for x in theta.values())
        if not size:
            raise UserError("the learned optimizer has no meta-parameters")
        return replace(
            state, extra={"xi": torch.zeros(self.unroller.num, size)} if self.persistent else {}
        )

    @torch.no_grad()
    def estimate(self, theta: Theta, state: UnrollState) -> tuple[MetaGradient, UnrollState]:
        """One truncation of every pair. Nothing is kept of a step but its carry, so memory does not
        grow with steps.
        """
        unroller, num = self.unroller, self.unroller.num
        state, restarted = unroller.restart_finished(state)
        size = sum(x.numel() for x in theta.values())
        eps = self.config.sigma * torch.randn(num, size, generator=state.generator)
        if self.constant is not None:
            eps = torch.where(self.constant, 0.0, eps)
        pairs, steps = antithetic_pairs(theta, eps), range(unroller.truncation.unroll_length)
        carry, sums = unroller.run(self.step, pairs, state.carry, state, steps)
        xi = eps
        if self.persistent:
            xi = torch.where(restarted[:, None], 0.0, state.extra["xi"]) + eps
        grad = unflatten_theta(theta, self._slope(sums.score + sums.penalty, xi))
        plain = unflatten_theta(theta, self._slope(sums.score, xi)) if unroller.alpha else None
        metrics = {
            **unroller.summary(state, sums),
            "nonfinite": float((~carry.alive).float().mean()),
        }
        if not self.persistent:  # both members of the next pair start from the positive one's state
            carry = tree_map(lambda x: torch.cat([x[:num], x[:num]]), carry)
        new = replace(unroller.advance(state, carry), extra={"xi": xi} if self.persistent else {})
        return MetaGradient(grad, metrics, plain), new

    def _slope(self, total: Tensor, xi: Tensor) -> Tensor:
        """Meta-gradient ``[P]`` from summed scores ``[2K]`` and the perturbations ``[K, P]`` that
        made them.
        """
        positive, negative = (total / self.unroller.truncation.unroll_length).cpu().chunk(2)
        weight = (positive - negative) / (2 * self.config.sigma**2)
        # Scores are capped per step, so they are finite even where a task diverged; a user's
        # `normalize` may not be.
        weight = torch.where(torch.isfinite(weight), weight, 0.0)
        return (weight[:, None] * xi).mean(0)


@ESTIMATORS.register("es", config=PerturbedConfig)
class ES(Perturbed):
    persistent = False


@ESTIMATORS.register("pes", config=PerturbedConfig)
class PES(Perturbed):
    persistent = True


def antithetic_pairs(theta: Theta, eps: Tensor) -> Theta:
    """theta + eps_k for k < K, then theta - eps_k: every tensor ``[2K, ...]``."""
    parts = unflatten_theta(theta, eps)
    return {name: torch.cat([x + parts[name], x - parts[name]]) for name, x in theta.items()}


def unflatten_theta(theta: Theta, flat: Tensor) -> Theta:
    """Vectors ``[..., P]`` in theta's names and shapes ``[..., *shape]``."""
    parts = flat.split([x.numel() for x in theta.values()], dim=-1)
    return {
        name: part.reshape((*flat.shape[:-1], *x.shape)).to(x)
        for (name, x), part in zip(theta.items(), parts, strict=True)
    }
