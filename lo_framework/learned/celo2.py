"""``celo2``: the published rule of Celo2 (arXiv 2602.19142), a yardstick beside our own kinds.

    p <- p - step (scale u + weight_decay p)

Of a matrix, ``u`` is what a tiny network gives for the 30 features of each parameter, orthogonal by
Newton-Schulz iterations, and ``scale`` makes its root mean square one. Vectors and embeddings take
AdamW's direction, times ``mult_1d``. A convolution is a matrix of outputs by the rest.

The network's meta-parameters are all that is learned: directions only. The step is the user's. In
meta-training it is fixed; at use it has a warm-up and a cosine, and its size is tuned. A trained
rule gets another step or schedule with ``make_learned("celo2:lr=3e-4,schedule=cosine")`` and
``load_theta(load(path).theta())``, or by a scheduler on the ``lr`` of `Learned`, a multiplier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned import adamw_rule
from lo_framework.learned.base import Clock, LearnedOptimizer, State, register_learned, zeros
from lo_framework.learned.features import (
    factored_moments,
    moment_features,
    second_moment_scale,
)
from lo_framework.learned.mlp import MOMENTUM_39
from lo_framework.learned.network import Weights, applied, truncated
from lo_framework.learned.orthogonal import orthogonalised
from lo_framework.schema import Checked, NotNegative, Positive, Seed, Width

FEATURES = 30
OUTPUTS = 3  # of which the first is used
MOMENTA = len(MOMENTUM_39)
SECOND = 0.95  # decay of the second moment
BETAS = (MOMENTUM_39[0], SECOND)  # of AdamW, whose moments are the network's
ADAMW_EPS = 1e-8
EPS = 1e-9  # of mean squares, where features and directions are normalised
LARGEST, LARGE = 1000.0, 0.1  # what gradients are clipped at, and a feature of them
LEAST = 2  # on its shorter side, for a matrix that orthogonalising changes
WARM_UP = 0.05  # of a run


@dataclass(frozen=True, kw_only=True)
class Celo2Config(Checked):
    """Celo2 as published; ``orthogonal=false,vectors=learned`` is its base.

    Attributes:
        lr: the step; the published one of meta-training.
        schedule: of the step. "cosine" has a linear warm-up of 5%; where the horizon is unknown the
            step is constant.
        weight_decay: decoupled, times the step of matrices for all tensors.
        orthogonal: whether the directions of matrices are.
        vectors: what moves vectors and embeddings, AdamW or the network.
        mult_1d: their step under AdamW over that of matrices.
    """

    lr: Positive = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: NotNegative = 0.0
    orthogonal: bool = True
    vectors: Literal["adamw", "learned"] = "adamw"
    mult_1d: Positive = 20.0
    hidden: Width = 8
    seed: Seed = 0


@register_learned
class Celo2(LearnedOptimizer):
    """Per-parameter MLP ``30 -> hidden -> hidden -> 3``: 347 numbers."""

    kind = "celo2"
    Config = Celo2Config
    config: Celo2Config
    per_param: ClassVar[tuple[str, ...]] = ("momenta", "v", "row", "col", "direction")
    open_ended = True
    keep: Tensor  # [3, 1], 1 - decay of momenta and of factored second moments
    adamw_keep: Tensor  # [2], 1 - betas

    def __init__(self, config: Celo2Config) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        hidden = config.hidden
        self.first = truncated(hidden, FEATURES, FEATURES, generator)
        self.first_bias = zeros(hidden, 1)
        self.second = truncated(hidden, hidden, hidden, generator)
        self.second_bias = zeros(hidden, 1)
        self.last = truncated(OUTPUTS, hidden, hidden, generator)
        self.last_bias = zeros(OUTPUTS, 1)
        constants = {
            "keep": [[1.0 - decay] for decay in MOMENTUM_39],
            "adamw_keep": [1.0 - beta for beta in BETAS],
        }
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def init_state(self, layout: Layout, params: Tensor) -> State:
        rows = {"momenta": MOMENTA, "v": 1, "row": MOMENTA, "col": MOMENTA}
        state = {name: params.new_zeros(n, params.shape[-1]) for name, n in rows.items()}
        return {**state, "direction": torch.zeros_like(params), "step": params.new_zeros(())}

    def by_network(self, layout: Layout, like: Tensor) -> Tensor:
        """One for tensors that the network moves, zero for the others, ``[S]``."""
        flags = layout.is_layer.to(like)
        return flags if self.config.vectors == "adamw" else torch.ones_like(flags)

    def prepare(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> State:
        """Moments and the direction. Its size is measured afterwards: orthogonal directions keep
        theirs, so that normalising first would give the same.
        """
        factored = factored_moments(layout, grads.clamp(-LARGEST, LARGEST), state, self.keep)
        moments = {name: state[name] for name in ("momenta", "v")}
        columns = {"params": params, "grads": grads, **moments, **factored}
        mean_squares = self.means("squares", layout, columns)
        flags = self.by_network(layout, mean_squares)
        channels = torch.cat([second_moment_scale(mean_squares, EPS), flags[None]])
        new = self.each("directed", layout, channels, [self.adamw(state["step"])], columns)
        if self.config.orthogonal:
            u = orthogonalised(layout, new["direction"], torch.ones_like(flags), LEAST)
            new = {**new, "direction": u}
        return {**state, **new, "row": factored["row"], "col": factored["col"]}

    def adamw(self, step: Tensor) -> Tensor:
        """AdamW's channels at a learning rate of one, the same for all tensors, ``[6]``."""
        one, eps = torch.ones_like(step), torch.full_like(step, ADAMW_EPS)
        before = step * torch.log1p(-self.adamw_keep)
        channels, _ = adamw_rule.channels(one, 0.0 * one, self.adamw_keep, before, eps)
        return adamw_rule.stack(channels)

    def features(self, grads: Tensor, columns: State) -> tuple[Tensor, State]:
        """``[FEATURES, n]`` in their published order, not yet normalised, and the moments after
        this gradient.
        """
        m = columns["momenta"] + self.keep * (grads - columns["momenta"])
        v = columns["v"] + (1.0 - SECOND) * (grads * grads - columns["v"])
        made = moment_features(columns["params"], grads, m, v, columns)
        g, p, _, _, _, inverse, by_factor, *rows = made
        more = [g, g.clamp(-LARGE, LARGE), p, m, v, m * inverse, inverse]
        return torch.cat([*more, by_factor, g * inverse, *rows]), {"momenta": m, "v": v}

    def squares(self, shared: tuple[Tensor, ...], columns: State) -> Tensor:
        raw, _ = self.features(columns["grads"].clamp(-LARGEST, LARGEST), columns)
        return raw * raw

    def directed(self, channels: Tensor, shared: tuple[Tensor, ...], columns: State) -> State:
        """The moments after this gradient, and the direction ``[n]`` of whoever moves the
        tensor.
        """
        learned, grads = channels[-1] > 0, columns["grads"]
        grads = torch.where(learned, grads.clamp(-LARGEST, LARGEST), grads)
        raw, new = self.features(grads, columns)
        used = Weights(
            *(self.first, self.first_bias, self.second, self.second_bias),
            *(self.last[:1], self.last_bias[:1]),
        )
        u = applied(raw * channels[:-1], used, self.in_kernel)[0]
        c = adamw_rule.unstack(shared[0])
        adamw = c.step_size * new["momenta"][0] * adamw_rule.inverse_rms(c, new["v"][0])
        return {**new, "direction": torch.where(learned, u, adamw)}

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return (state["direction"] * state["direction"])[None]

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        learned = self.by_network(layout, stats) > 0
        scale = torch.where(learned, second_moment_scale(stats, EPS), self.config.mult_1d)
        return scale, self.step_size(clock).to(stats)[None], {"step": state["step"] + 1}

    @property
    def has_schedule(self) -> bool:
        return self.config.schedule != "constant"

    def quantities(
        self, layout: Layout, channels: Tensor, shared: Tensor, state: State, clock: Clock
    ) -> State:
        """``step_size``: of a direction whose root mean square is one (``scale`` included)."""
        return {"step_size": shared[0].expand(layout.num)}

    def step_size(self, clock: Clock) -> Tensor:
        """The step at this point of a run, 0-d."""
        constant = torch.full_like(clock.progress, self.config.lr)
        if self.config.schedule == "constant":
            return constant
        done = clock.progress
        warm = (done + 1.0 / clock.horizon.clamp_min(1.0)) / WARM_UP
        fall = torch.cos(math.pi * ((done - WARM_UP) / (1.0 - WARM_UP)).clamp_min(0.0))
        planned = constant * warm.clamp_max(1.0) * (0.5 + 0.5 * fall)
        return torch.where(clock.horizon > 0, planned, constant)

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        change = channels[0] * state["direction"] + self.config.weight_decay * params
        return params - shared[0] * change, {name: state[name] for name in self.per_param}
