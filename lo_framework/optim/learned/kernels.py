"""Fast paths of the AdamW family on a CPU: what ``host`` runs in place of a rule's ``measure`` and
``apply``.

The rules in ``lo_framework.learned`` are the reference, and a test holds these equal to them. They
are pure and differentiable; here the same arithmetic is done in place, in AdamW's own fused loop or
in scratch memory that stays in cache. Each kernel works on one float32 tensor at a time, flat, with
its hyper-parameters as plain numbers: on an accelerator that would wait for the device, so there
the rules themselves run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lo_framework.learned.adamw_rule import AdamWChannels
from lo_framework.learned.attention import Attention
from lo_framework.learned.attention_mlp import DECAYS, FEATURES, AttentionMLP
from lo_framework.learned.base import LearnedOptimizer, State
from lo_framework.learned.features import TOKEN_STATS
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.optim.fused import HAS_FUSED, fused_adamw, long_ago

HYPER = len(AdamWChannels._fields)


class AdamWKernel:
    """``hyper-adamw`` and ``attention``: torch's fused AdamW loop, with the bias corrections folded
    in.
    """

    small: ClassVar[bool] = True  # worth a call for each small tensor

    def __init__(self) -> None:
        self.clock = long_ago(torch.device("cpu"))

    def apply(
        self,
        params: Tensor,
        grads: Tensor,
        state: State,
        column: Tensor,
        numbers: Sequence[float],
        shared: Tensor,
        multiplier: float,
    ) -> None:
        """One tensor ``[n]``; ``column [C]`` are its channels, ``numbers`` the same as floats."""
        step_size, decay, keep1, keep2, unbias2, eps = numbers[:HYPER]
        root = math.sqrt(unbias2)
        lr = multiplier * step_size / root
        fused_adamw(
            [params],
            [grads],
            [state["m"]],
            [state["v"]],
            self.clock,
            lr=lr,
            betas=(1.0 - keep1, 1.0 - keep2),
            weight_decay=multiplier * decay / lr,
            eps=eps / root,
        )


class Scratch:
    """Memory for one chunk of the network's input, layers and output ``[rows, n]``, all ones, and
    its parts by name; the last rows of ``x`` and ``h`` stay 1: their weights are biases.
    """

    def __init__(self, memory: Tensor, hidden: int) -> None:
        self.memory, self.hidden, num = memory, hidden, len(DECAYS)
        self.x, self.h, self.k, self.out, rest = memory.split([FEATURES, hidden + 1, hidden, 2, 2])
        self.inverse, self.adam = rest.unbind(0)
        self.features, self.layer = self.x[:-1], self.h[:-1]
        self.by_momenta = self.x[:num]
        self.by_grad, self.by_m, self.by_param, self.by_v = self.x[num : num + 4].unbind(0)
        self.direction, self.magnitude = self.out.unbind(0)

    def narrow(self, n: int) -> Scratch:
        """Views of the first ``n`` columns."""
        return self if n == self.memory.shape[1] else Scratch(self.memory[:, :n], self.hidden)


class AttentionMLPKernel:
    """``attention-mlp``: features, network and update in scratch memory; constants of a tensor
    enter as one bias.
    """

    chunk: ClassVar[int] = 16384
    small: ClassVar[bool] = (
        False  # some thirty operations: small tensors are better off side by side
    )

    def __init__(self, learned: AttentionMLP) -> None:
        rows = FEATURES - 1
        self.by_feature = learned.first[:, :rows]
        self.by_context = learned.first[:, FEATURES:]
        self.constant = learned.first[:, rows] + learned.first_bias[:, 0]  # the last feature is 1
        self.second = torch.cat([learned.second, learned.second_bias], 1)
        self.last = learned.last.detach()
        self.follow = torch.tensor([[1.0 - decay] for decay in DECAYS], device="cpu")
        hidden = learned.config.hidden
        memory = torch.ones(FEATURES + 2 * hidden + 5, self.chunk, device="cpu")
        self.scratch = Scratch(memory.float(), hidden)

    def apply(
        self,
        params: Tensor,
        grads: Tensor,
        state: State,
        column: Tensor,
        numbers: Sequence[float],
        shared: Tensor,
        multiplier: float,
    ) -> None:
        """One tensor ``[n]``, chunk by chunk."""
        bias = self.constant + self.by_context @ column[HYPER:-2]
        first = torch.cat([self.by_feature, bias[:, None]], 1)
        step_size, decay, keep1, keep2, unbias2, eps = numbers[:HYPER]
        p_scale, v_scale = numbers[-2:]
        for begin in range(0, params.shape[0], self.chunk):
            part = slice(begin, begin + self.chunk)
            p, g = params[part], grads[part]
            m, v, momenta = (state[name][..., part] for name in ("m", "v", "momenta"))
            s = self.scratch.narrow(p.shape[0])
            m.lerp_(g, keep1)
            v.mul_(1.0 - keep2).addcmul_(g, g, value=keep2)
            momenta.lerp_(g.expand_as(momenta), self.follow)
            torch.mul(v, unbias2, out=s.inverse).sqrt_().add_(eps).reciprocal_()
            torch.mul(m, s.inverse, out=s.adam)

            torch.mul(momenta, s.inverse, out=s.by_momenta).mul_(shared[:, None])
            torch.mul(g, s.inverse, out=s.by_grad)
            s.by_m.copy_(s.adam)
            torch.mul(p, p_scale, out=s.by_param)
            torch.mul(v, v_scale * v_scale, out=s.by_v).add_(1e-8).log_().mul_(0.25)
            s.features.clamp_(-5.0, 5.0)

            torch.mm(first, s.x, out=s.layer).relu_()
            torch.mm(self.second, s.h, out=s.k).relu_()
            torch.mm(self.last, s.k, out=s.out)
            step = s.magnitude.exp_().mul_(s.adam).add_(s.direction)
            p.mul_(1.0 - multiplier * decay).add_(step, alpha=-multiplier * step_size)


Kernel = AdamWKernel | AttentionMLPKernel


def kernel_for(learned: LearnedOptimizer) -> Kernel | None:
    """The fast path of exactly this class, with its frozen weights; None where there is none."""
    if isinstance(learned, Attention) and learned.spec.stats != TOKEN_STATS:
        return None  # it measures more than `attention_sums`
    if type(learned) is AttentionMLP:
        return AttentionMLPKernel(learned)
    if type(learned) in (HyperAdamW, Attention) and HAS_FUSED:
        return AdamWKernel()
    return None


def ordinary(numbers: Sequence[float]) -> bool:
    """Whether a kernel can work with these channels: it divides by the step size; extremes are left
    to the rule.
    """
    return 0.0 < numbers[0] < math.inf and numbers[4] < math.inf


def attention_sums(params: Tensor, grads: Tensor, state: State) -> list[Tensor]:
    """Sums over a chunk of what ``Attention.measure`` measures, without writing the products to
    memory.
    """
    m = state["m"]
    pairs = [(grads, grads), (m, m), (params, params), (grads, m)]
    return [*(torch.dot(a, b) for a, b in pairs), state["v"].sum()]
