"""From gradients and moments to the factors of every group: statistics, tokens, network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.learned.attention import Attention
from lo_framework.learned.encoder import Block
from lo_framework.optim.metaadamw.groups import Plan
from lo_framework.optim.metaadamw.parameters import ParameterTable
from lo_framework.optim.metaadamw.published import Variant
from lo_framework.optim.metaadamw.statistics import statistics


class Factors(NamedTuple):
    alpha: Tensor  # [G]
    beta: Tensor  # [G]
    lambdas: Tensor  # [2, G]: weights of flatness and direction in the gradient term


class LastFactors(NamedTuple):
    """The factors of the last step: of which tensors, and by group."""

    active: tuple[int, ...]
    labels: tuple[str, ...]
    alpha: Tensor
    beta: Tensor


class FactorRule:
    """The network at work.

    Attributes:
        total_steps: what time refers to; None: time saturates.
        attend_every: how many steps one answer serves.
        last: the answer in force.
        stale: whether it must not be used again: network or groups are others now.
    """

    def __init__(
        self, network: Attention, variant: Variant, total_steps: int | None, attend_every: int
    ) -> None:
        self.network, self.variant = network, variant
        self.total_steps, self.attend_every = total_steps, attend_every
        self.last: LastFactors | None = None
        self.stale = False

    def is_due(self, plan: Plan, updates: int) -> bool:
        """Whether the step after ``updates`` others needs a new answer."""
        last = self.last
        other = self.stale or last is None or last.active != plan.active
        return other or updates % self.attend_every == 0

    def renew(self, table: ParameterTable, plan: Plan, updates: int) -> None:
        """Answer anew, from the gradients that the parameters have."""
        grads = [table.params[i].grad for i in plan.active]
        alpha, beta, _ = self(table, plan, grads, updates)
        self.last, self.stale = LastFactors(plan.active, plan.grouping.labels, alpha, beta), False

    def __call__(
        self, table: ParameterTable, plan: Plan, grads: Sequence[Tensor | None], updates: int
    ) -> Factors:
        """The factors after ``updates`` updates, of tensors with these gradients; with the graph to
        the network where gradients are enabled.
        """
        network, places = self.network, plan.active
        network.spec.check(plan.grouping)
        params = [table.params[i] for i in places]
        stats = statistics(network, plan.order, params, grads, table.states(places))
        ages = [table.ages[i] for i in places]
        betas = [table.group(i)["betas"] for i in places]
        state = {
            "step": stats.new_tensor(float(max(ages))),
            "log_power": _log_powers(list(zip(betas, ages)), stats),
        }
        time = stats.new_tensor(self.time(updates))
        tokens = network.tokens(plan.layout, plan.grouping, stats, state, time)
        learning = torch.is_grad_enabled()
        raw = network.raw(network.encode(tokens)) if learning else encode_fast(network, tokens)
        alpha, beta = network.factors(raw)
        if not learning:  # an overflow in one tensor is AdamW's trouble with that one, not with all
            alpha, beta = alpha.nan_to_num(1.0), beta.nan_to_num(1.0)
        if self.variant.learned_lambdas:
            return Factors(alpha, beta, torch.sigmoid(raw[2:4]))
        return Factors(alpha, beta, torch.full((2, plan.grouping.num), 0.5).to(alpha))

    def time(self, updates: int) -> float:
        """The time feature: as published, the update that is being made counts, and time goes on
        after ``total_steps``.
        """
        now = updates + self.variant.published
        if not self.total_steps:
            return math.tanh(now / 2000)
        return (
            now / self.total_steps if self.variant.published else min(now / self.total_steps, 1.0)
        )

    def state_dict(self) -> dict[str, Any]:
        factors = None
        if self.last is not None:
            active, _, alpha, beta = self.last
            factors = {"active": list(active), "alpha": alpha, "beta": beta}
        return {"factors": factors, "stale": self.stale, "network": self.network.theta()}

    def load_state_dict(self, saved: dict[str, Any], plan: Plan | None) -> None:
        """``plan``: of the saved factors' tensors, None where there are none."""
        self.stale, self.last, factors = saved["stale"], None, saved["factors"]
        if plan is not None:
            alpha, beta = (
                factors[name].to(self.network.head, copy=True) for name in ("alpha", "beta")
            )
            self.last = LastFactors(plan.active, plan.grouping.labels, alpha, beta)
        self.network.load_theta(saved["network"])


def _log_powers(kinds: Sequence[tuple[tuple[float, float], int]], like: Tensor) -> Tensor:
    """``[2, S]``: logarithms of the betas' powers, from the betas and the age of each tensor."""
    # one column for all: nearly always, and then cheaper
    columns = kinds[:1] if all(kind == kinds[0] for kind in kinds) else kinds
    rows = [[_log_power(betas[k], t) for betas, t in columns] for k in range(2)]
    return like.new_tensor(rows).expand(2, len(kinds))


def _log_power(beta: float, t: int) -> float:
    return t * math.log(beta) if beta > 0 else -math.inf if t else 0.0


def encode_fast(network: Attention, tokens: Tensor) -> Tensor:
    """``network.raw(network.encode(tokens))`` without derivatives, in few operations: tokens in
    rows, torch's own norms and attention.

    At a step the network sees ten tokens or so, and what its blocks cost is the number of
    operations, not their size. The definition is `learned.encoder.Block`, which can be
    differentiated twice; a test holds them equal.
    """
    x, published = tokens.t(), network.config.encoder == "published"
    if not published:
        x = torch.addmm(network.embed_bias.view(-1), x, network.embed.t())
    for block in network.blocks:
        x = _block_fast(block, x)  # type: ignore[arg-type]
    if published:
        return torch.addmm(network.head_bias, network.head, x.t())
    return network.config.gain * (network.head @ torch.layer_norm(x, x.shape[1:]).t())


def _block_fast(block: Block, x: Tensor) -> Tensor:
    """A block of tokens ``[S, D]``."""
    # an attribute of a module takes as long to find as a product does
    w: dict[str, Any] = block._parameters
    num, width = x.shape
    shape = x.shape[1:]
    gains: Any = (None, None)
    shifts = gains
    qkv_bias = out_bias = down_bias = None
    if block.affine:
        gains, shifts = w["gains"].squeeze(-1), w["shifts"].squeeze(-1)
        qkv_bias, out_bias = w["qkv_bias"].view(-1), w["out_bias"].view(-1)
        down_bias = w["down_bias"].view(-1)
    qkv = F.linear(torch.layer_norm(x, shape, gains[0], shifts[0]), w["qkv"], qkv_bias)
    heads = qkv.view(1, num, 3, block.heads, width // block.heads).permute(2, 0, 3, 1, 4)
    q, k, v = heads.unbind(0)  # [1, heads, S, d]
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(num, width)
    x = torch.addmm(x, mixed, w["out"].t())
    if out_bias is not None:
        x = x.add_(out_bias)
    h = torch.layer_norm(x, shape, gains[1], shifts[1])
    h = F.linear(h, w["up"], w["up_bias"].view(-1)).relu_()
    x = torch.addmm(x, h, w["down"].t())
    return x if down_bias is None else x.add_(down_bias)
