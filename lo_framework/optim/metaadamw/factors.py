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
        self.encoder = FastEncoder(network)

    def settle(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the network to where the parameters are."""
        self.network.to(device, dtype)
        self.encoder = FastEncoder(self.network)

    def in_force(self, table: ParameterTable, plan: Plan, updates: int) -> LastFactors:
        """The factors of the step after ``updates`` others: the last ones, or new ones, from the
        gradients that the parameters have.
        """
        last = self.last
        due = self.stale or updates % self.attend_every == 0
        if due or last is None or last.active != plan.active:
            grads = [table.here[i].grad for i in plan.active]
            alpha, beta, _ = self(table, plan, grads, updates)
            self.last = last = LastFactors(plan.active, plan.grouping.labels, alpha, beta)
            self.stale = False
        return last

    def __call__(
        self, table: ParameterTable, plan: Plan, grads: Sequence[Tensor | None], updates: int
    ) -> Factors:
        """The factors after ``updates`` updates, of tensors with these gradients; with the graph to
        the network where gradients are enabled.
        """
        network, places = self.network, plan.active
        network.spec.check(plan.grouping)
        params = [table.here[i] for i in places]
        stats = statistics(network, plan.order, params, grads, table.states(places))
        stats = plan.layout.over_shards(stats)
        ages = [table.ages[i] for i in places]
        betas = [table.group(i)["betas"] for i in places]
        state = {
            "step": stats.new_tensor(float(max(ages))),
            "log_power": _log_powers(list(zip(betas, ages)), stats),
        }
        time = stats.new_tensor(self.time(updates))
        tokens = network.tokens(plan.layout, plan.grouping, stats, state, time)
        learning = torch.is_grad_enabled()
        raw = network.raw(network.encode(tokens)) if learning else self.encoder(tokens)
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
        time = now / self.total_steps
        return time if self.variant.published else min(time, 1.0)

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
            alpha, beta = (factors[k].to(self.network.head, copy=True) for k in ("alpha", "beta"))
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


class FastBlock:
    """One block over tokens in rows ``[S, D]``, with views of its weights, transposed where a
    product wants them so; biases and gains of a plain block are None.
    """

    def __init__(self, block: Block) -> None:
        self.heads, self.qkv, self.up = block.heads, block.qkv, block.up
        self.out, self.down = block.out.t(), block.down.t()
        self.up_bias = block.up_bias.view(-1)
        self.qkv_bias: Tensor | None = None
        self.out_bias: Tensor | None = None
        self.down_bias: Tensor | None = None
        self.norms: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * 2
        if block.affine:
            biases = (block.qkv_bias, block.out_bias, block.down_bias)
            self.qkv_bias, self.out_bias, self.down_bias = (x.view(-1) for x in biases)
            self.norms = [(block.gains[i].view(-1), block.shifts[i].view(-1)) for i in range(2)]

    def __call__(self, x: Tensor) -> Tensor:
        (num, width), shape = x.shape, x.shape[1:]
        qkv = F.linear(torch.layer_norm(x, shape, *self.norms[0]), self.qkv, self.qkv_bias)
        heads = qkv.view(1, num, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)  # [1, heads, S, d]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(num, width)
        x = torch.addmm(x, mixed, self.out)
        if self.out_bias is not None:
            x = x.add_(self.out_bias)
        h = F.linear(torch.layer_norm(x, shape, *self.norms[1]), self.up, self.up_bias).relu_()
        x = torch.addmm(x, h, self.down)
        return x if self.down_bias is None else x.add_(self.down_bias)


class FastEncoder:
    """The encoder without derivatives, in few operations: tokens ``[S, D]`` in rows, torch's own
    norms and attention.

    At a step the network sees ten tokens or so, and what its blocks cost is the number of
    operations, not their size. The definition is `learned.encoder.Block`, which can be
    differentiated twice; a test holds them equal. It has views of the network's weights, which
    follow whatever trains them or moves them.
    """

    def __init__(self, network: Attention) -> None:
        self.network = network
        self.published = network.config.encoder == "published"
        self._view()

    def _view(self) -> None:
        self.head = self.network.head.detach()  # held, so that no other memory gets its address
        self.blocks = [FastBlock(block) for block in self.network.blocks]  # type: ignore[arg-type]

    def __call__(self, tokens: Tensor) -> Tensor:
        """``[columns, G]`` to the head's output ``[H, G]``, as
        ``network.raw(network.encode(tokens))``.
        """
        network = self.network
        if network.head.data_ptr() != self.head.data_ptr():
            self._view()  # `Module.to` has put new memory under its parameters
        x = tokens.t()
        if not self.published:
            x = torch.addmm(network.embed_bias.view(-1), x, network.embed.t())
        for block in self.blocks:
            x = block(x)
        if self.published:
            return torch.addmm(network.head_bias, network.head, x.t())
        return network.config.gain * (network.head @ torch.layer_norm(x, x.shape[1:]).t())
