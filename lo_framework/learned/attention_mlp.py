"""``attention-mlp``, the flagship: the attention over tensors also conditions a tiny per-parameter
network.

The network sees each parameter's gradient and moments on AdamW's own scale (divided by
sqrt(v_hat)), so its inputs are of order one whatever the task, and the tensor's context from the
attention. It returns an additive direction and a log magnitude:

    p <- p - lr / (1 - prod beta1) * (m / (sqrt(v_hat) + eps) * exp(magnitude) + direction)
           - decay * p

so that it can express what AdamW cannot (momenta of averages horizons, sign-like or damped steps,
shrinkage). Output layer zero: it starts as the ``attention`` optimizer that it grew from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned import adamw_rule
from lo_framework.learned.attention import Attention, AttentionConfig
from lo_framework.learned.base import Clock, State, register_learned, zeros
from lo_framework.learned.encoder import matrix
from lo_framework.schema import Width

DECAYS = (0.5, 0.97)  # a fast and a slow momentum beside AdamW's own
FEATURES = 7


@dataclass(frozen=True, kw_only=True)
class AttentionMLPConfig(AttentionConfig):
    """``hidden``: width of the per-parameter network (on held-out problems 16 is no better, and a
    third slower: docs/experiments.md); ``context``: channels it gets from the attention.
    """

    hidden: Width = 8
    context: Width = 4


@register_learned
class AttentionMLP(Attention):
    """attention + per-parameter MLP ``[FEATURES + context] -> hidden -> hidden -> 2``."""

    kind = "attention-mlp"
    Config = AttentionMLPConfig
    per_param = ("m", "v", "momenta")
    config: AttentionMLPConfig
    decays: Tensor

    def __init__(self, config: AttentionMLPConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed + 1)
        self.context_head = matrix(config.context, config.width, generator)
        self.first = matrix(config.hidden, FEATURES + config.context, generator)
        self.first_bias = zeros(config.hidden, 1)
        self.second = matrix(config.hidden, config.hidden, generator)
        self.second_bias = zeros(config.hidden, 1)
        self.last = zeros(2, config.hidden)
        self.register_buffer("decays", torch.tensor(DECAYS), persistent=False)

    def init_state(self, layout: Layout, params: Tensor) -> State:
        momenta = params.new_zeros(len(DECAYS), params.shape[-1])
        return {**super().init_state(layout, params), "momenta": momenta}

    def extra(self, x: Tensor) -> Tensor:
        return self.context_head @ x

    def modulate(
        self, layout: Layout, raw: Tensor, stats: Tensor, state: State, progress: Tensor
    ) -> tuple[Tensor, Tensor]:
        raw, context = super().modulate(layout, raw, stats, state, progress)
        p_rms = torch.sqrt(stats[2] + 1e-12)
        v_rms = torch.sqrt(stats[4] + 1e-24)
        return raw, torch.cat([context, torch.stack([1.0 / (p_rms + 1e-3), 1.0 / (v_rms + 1e-8)])])

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        channels, _, reduced = super().condition(layout, stats, state, loss, clock)
        # The momenta's decays are fixed, so their bias correction is shared by all tensors:
        # [decays].
        return channels, 1.0 / (1.0 - self.decays ** reduced["step"]), reduced

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        c = adamw_rule.unstack(channels)
        m, v = adamw_rule.moments(c, grads, state["m"], state["v"])
        momenta = state["momenta"] + (1.0 - self.decays)[:, None] * (grads - state["momenta"])
        new = {"m": m, "v": v, "momenta": momenta}
        adam, direction, magnitude = self.directions(channels, shared, params, grads, new)
        params = params - c.decay * params - c.step_size * (adam * torch.exp(magnitude) + direction)
        return params, new

    def parts(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> State:
        """``adamw``, the direction of AdamW times the network's factor, and ``network``, the
        direction that the network adds: both are multiplied by the step size.
        """
        adam, direction, magnitude = self.directions(channels, shared, params, grads, state)
        return {"adamw": adam * torch.exp(magnitude), "network": direction}

    def directions(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, Tensor, Tensor]:
        """AdamW's direction, the network's and the log of its factor, ``[n]`` each, from the state
        after this gradient.
        """
        c = adamw_rule.unstack(channels)
        extra = channels[len(adamw_rule.AdamWChannels._fields) :]
        context, p_scale, v_scale = extra[:-2], extra[-2], extra[-1]
        m, v = state["m"], state["v"]
        inverse = adamw_rule.inverse_rms(c, v)
        averages = state["momenta"] * shared[:, None] * inverse
        own = torch.stack(
            [
                grads * inverse,
                m * inverse,
                params * p_scale,
                0.25 * torch.log(v * v_scale * v_scale + 1e-8),
                torch.ones_like(params),
            ]
        )
        features = torch.cat([averages, own]).clamp(-5.0, 5.0)
        # The context is constant within a tensor: it enters as more rows of the same product.
        x = torch.cat([features, context.expand(-1, features.shape[-1])])
        h = torch.relu(self.first @ x + self.first_bias)
        h = torch.relu(self.second @ h + self.second_bias)
        direction, magnitude = (self.last @ h).unbind(0)
        return m * inverse, direction, magnitude
