"""From gradients and moments to the factors of every group: statistics, tokens, network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.learned.attention import Attention
from lo_framework.optim.metaadam.differences import Differences
from lo_framework.optim.metaadam.inference import Inference
from lo_framework.optim.metaadam.plan import Plan
from lo_framework.optim.metaadam.statistics import statistics


class Factors(NamedTuple):
    alpha: Tensor  # [G]
    beta: Tensor  # [G]
    lambdas: Tensor  # [2, G]: weights of flatness and direction in the gradient term


class Seen(NamedTuple):
    """The tensors of a plan, in its order; ``ages``: updates that their moments know of."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor | None]
    states: Sequence[dict[str, Tensor]]
    ages: Sequence[int]
    betas: Sequence[tuple[float, float]]


class Attending:
    """The network at work; ``total_steps``: what time refers to, None for a time that saturates."""

    def __init__(
        self, network: Attention, differences: Differences, total_steps: int | None
    ) -> None:
        self.network, self.differences, self.total_steps = network, differences, total_steps
        self.inference = Inference(network)

    def settle(self, device: torch.device, dtype: torch.dtype) -> None:
        self.network.to(device, dtype)
        self.inference = Inference(self.network)

    def __call__(self, plan: Plan, seen: Seen, updates: int) -> Factors:
        """With the graph to the network where gradients are enabled; ``updates``: those before this
        one.
        """
        network = self.network
        network.spec.check(plan.grouping)
        stats = statistics(network, plan.order, seen.params, seen.grads, seen.states)
        state = {
            "step": stats.new_tensor(float(max(seen.ages))),
            "log_power": _log_powers(seen, stats),
        }
        tokens = network.tokens(
            plan.layout, plan.grouping, stats, state, stats.new_tensor(self.time(updates))
        )
        raw = (
            network.raw(network.encode(tokens))
            if torch.is_grad_enabled()
            else self.inference(tokens)
        )
        alpha, beta = network.factors(raw)
        if (
            not torch.is_grad_enabled()
        ):  # an overflow in one tensor is AdamW's trouble with that one, not with all
            alpha, beta = alpha.nan_to_num(1.0), beta.nan_to_num(1.0)
        if self.differences.learned_lambdas:
            return Factors(alpha, beta, torch.sigmoid(raw[2:4]))
        return Factors(alpha, beta, torch.full((2, plan.grouping.num), 0.5).to(alpha))

    def time(self, updates: int) -> float:
        """As published, the update that is being made counts, and time goes on after
        ``total_steps``.
        """
        published = self.differences.network == "published"
        now = updates + published
        if not self.total_steps:
            return math.tanh(now / 2000)
        return now / self.total_steps if published else min(now / self.total_steps, 1.0)


def _log_powers(seen: Seen, like: Tensor) -> Tensor:
    """``[2, S]``: logarithms of the betas' powers."""
    kinds = list(zip(seen.betas, seen.ages))
    alike = all(
        kind == kinds[0] for kind in kinds
    )  # one column for all: nearly always, and then cheaper
    rows = [
        [_log_power(betas[k], t) for betas, t in (kinds[:1] if alike else kinds)] for k in range(2)
    ]
    return like.new_tensor(rows).expand(2, len(kinds))


def _log_power(beta: float, t: int) -> float:
    return t * math.log(beta) if beta > 0 else -math.inf if t else 0.0
