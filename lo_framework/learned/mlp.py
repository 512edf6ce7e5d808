"""``mlp``: one small network per parameter, the classical learned optimizer (Metz et al. 2020/2022;
the best-studied baseline).

    p <- p - direction * exp(magnitude * exp_mult) * step_mult

``features=19``: gradient, parameter and six momenta, each over its RMS within the tensor, and
eleven time features; 19-32-32-2. ``features=39``: also second moments, factored (row and column)
second moments and their products with gradient and momentum. The time features are the same for all
parameters, so their part of the first layer is one vector, not a product over N columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.base import LEARNED, Clock, LearnedOptimizer, State, zeros
from lo_framework.learned.features import (
    FEATURE_VERSION,
    TIME_SCALES,
    FeatureVersion,
    factored_moments,
    moment_features,
    second_moment_scale,
    time_embedding,
)
from lo_framework.learned.network import Weights, applied, truncated
from lo_framework.schema import Checked, Positive, Seed, Width

MOMENTUM_19 = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
MOMENTUM_39 = (0.9, 0.99, 0.999)
SECOND_39 = 0.999
FACTORED_39 = (0.9, 0.99, 0.999)


@dataclass(frozen=True, kw_only=True)
class MLPConfig(Checked):
    """``exp_mult`` and ``step_mult`` make the random start usable, with steps near 1e-3."""

    features: Literal[19, 39] = 19
    hidden: Width = 32
    exp_mult: Positive = 1e-3
    step_mult: Positive = 1e-3
    seed: Seed = 0
    # Not in the text of the config, which old training states are known by.
    feature_version: FeatureVersion = field(default=FEATURE_VERSION, repr=False)


class MLP(LearnedOptimizer):
    """Per-parameter MLP ``features -> hidden -> hidden -> (direction, magnitude)``."""

    kind = "mlp"
    Config = MLPConfig
    config: MLPConfig
    per_param: ClassVar[tuple[str, ...]] = ("momenta", "v", "row", "col", "factor")
    open_ended = True
    has_schedule = False
    decays: Tensor

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        hidden = config.hidden

        inputs, times = config.features, len(TIME_SCALES)
        self.first = truncated(hidden, inputs - times, inputs, generator)
        self.first_time = truncated(hidden, times, inputs, generator)
        self.first_bias = zeros(hidden)
        self.second = truncated(hidden, hidden, hidden, generator)
        self.second_bias = zeros(hidden, 1)
        self.last = truncated(2, hidden, hidden, generator)
        self.last_bias = zeros(2, 1)
        self.register_buffer("decays", torch.tensor(MOMENTUM_19)[:, None], persistent=False)
        self.rows = {"momenta": len(MOMENTUM_19)}  # of each tensor of the state

    def init_state(self, layout: Layout, params: Tensor) -> State:
        rows = {
            name: params.new_zeros(count, params.shape[-1]) for name, count in self.rows.items()
        }
        return {"step": params.new_zeros(()), **rows}

    def advance(self, params: Tensor, grads: Tensor, state: State) -> tuple[Tensor, State]:
        """Unnormalised features ``[F, n]`` and the new per-parameter state."""
        momenta = torch.lerp(state["momenta"], grads, 1 - self.decays)
        return torch.cat([grads[None], params[None], momenta]), {"momenta": momenta}

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        raw, _ = self.advance(params, grads, state)
        return raw * raw

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        bias = self.first_bias + self.first_time @ time_embedding(state["step"])
        return second_moment_scale(stats), bias, {"step": state["step"] + 1}

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        raw, new = self.advance(params, grads, state)
        return params - self.network_step(raw * channels, shared), new

    def network_step(self, x: Tensor, bias: Tensor) -> Tensor:
        """The step to subtract, ``[n]``, from normalised features ``[F, n]``."""
        weights = Weights(
            self.first, bias[:, None], self.second, self.second_bias, self.last, self.last_bias
        )
        direction, magnitude = applied(x, weights, self.in_kernel).unbind(0)
        return direction * torch.exp(magnitude * self.config.exp_mult) * self.config.step_mult

    def forward(
        self,
        layout: Layout,
        params: Tensor,
        grads: Tensor,
        state: State,
        loss: Tensor | None,
        clock: Clock,
    ) -> tuple[Tensor, State]:
        """The three phases with the features computed once, not in ``measure`` and again in
        ``update``.
        """
        if self.kernels is not None:
            return super().forward(layout, params, grads, state, loss, clock)
        state = self.prepare(layout, params, grads, state)
        raw, new = self.advance(params, grads, state)
        channels, bias, reduced = self.condition(layout, layout.mean(raw * raw), state, loss, clock)
        return params - self.network_step(raw * layout.expand(channels), bias), {**reduced, **new}


class WideMLP(MLP):
    """The 39 features of Adafac-MLP: 28 per parameter and the eleven of time. Built by
    ``mlp:features=39``.

    Rows are means over the largest axis of a tensor, columns over the second largest. Feature
    version 1 had them the other way round, divided the rows of a tensor of three or more axes by
    their mean over all of it, and gave a vector's gradient another eps.
    """

    per_param = (*MLP.per_param, "grad_factor")

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.published = config.feature_version > 1
        self.prepared = ("row", "col", "factor", *("grad_factor",) * self.published)
        self.rows = {"momenta": len(MOMENTUM_39), "v": 1}
        self.rows |= dict.fromkeys(self.prepared, len(FACTORED_39))
        start = torch.tensor([*MOMENTUM_39, SECOND_39, *FACTORED_39])
        # decay = 1 - exp(10 (log(1 - start) / 10 + delta))
        self.decay_delta = zeros(len(start))
        self.register_buffer("log_keep", torch.log1p(-start), persistent=False)

    def keeps(self) -> tuple[Tensor, ...]:
        """1 - decay of momenta ``[3, 1]``, second moment ``[1, 1]`` and factored second moments
        ``[3, 1]``.
        """
        keep = torch.exp(self.get_buffer("log_keep") + 10.0 * self.decay_delta).clamp_max(1.0)
        return keep[:, None].split([len(MOMENTUM_39), 1, len(FACTORED_39)])

    def prepare(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> State:
        factored = factored_moments(layout, grads, state, self.keeps()[2], self.published)
        return {**state, **factored}

    def advance(self, params: Tensor, grads: Tensor, state: State) -> tuple[Tensor, State]:
        keep_m, keep_v, _ = self.keeps()
        m = state["momenta"] + keep_m * (grads - state["momenta"])
        v = state["v"] + keep_v * (grads * grads - state["v"])
        prepared = {name: state[name] for name in self.prepared}
        raw = torch.cat(moment_features(params, grads, m, v, prepared))
        return raw, {"momenta": m, "v": v, **prepared}


@LEARNED.register("mlp", config=MLPConfig)
def make_mlp(config: MLPConfig) -> MLP:
    """The rule with as many features as ``config`` says."""
    return (WideMLP if config.features == 39 else MLP)(config)
