"""``lstm``: the coordinate-wise recurrent optimizer (Andrychowicz et al. 2016; the L2O-DM
baseline).

One small LSTM is shared by all parameters, each with its own hidden state; the gradient enters as
log size and sign, and the step is ``scale`` times the output. The cell is written from linear
operations because the library's has no batching rule under vmap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lo_framework.layout import Layout
from lo_framework.learned.base import Clock, LearnedOptimizer, State, register_learned, zeros
from lo_framework.learned.features import FEATURE_VERSION, FeatureVersion, log_and_sign
from lo_framework.schema import Checked, Layers, Positive, Seed, Width


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(Checked):
    """Two layers of 20 and steps of .01 times the output, as in the published baseline."""

    hidden: Width = 20
    layers: Layers = 2
    scale: Positive = 0.01
    seed: Seed = 0
    feature_version: FeatureVersion = field(default=FEATURE_VERSION, repr=False)


class Cell(nn.Module):
    """One LSTM cell over columns: ``x [I, n]``, ``h, c [H, n]``."""

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight = nn.Parameter(
            (torch.rand(4 * hidden, inputs + hidden, generator=generator) * 2 - 1) * bound
        )
        self.bias = zeros(4 * hidden, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.weight @ torch.cat([x, h]) + self.bias).chunk(4)
        c = torch.sigmoid(f + 1.0) * c + torch.sigmoid(i) * torch.tanh(
            g
        )  # forget gate open at the start
        return torch.sigmoid(o) * torch.tanh(c), c


@register_learned
class LSTM(LearnedOptimizer):
    """Coordinate-wise LSTM optimizer."""

    kind = "lstm"
    Config = LSTMConfig
    config: LSTMConfig
    per_param = ("h", "c")
    open_ended = True
    has_schedule = False

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        widths = [2] + [config.hidden] * (config.layers - 1)
        self.cells = nn.ModuleList(Cell(width, config.hidden, generator) for width in widths)
        self.last = nn.Parameter(
            torch.randn(1, config.hidden, generator=generator) * config.hidden**-0.5
        )
        self.last_bias = zeros()

    def init_state(self, layout: Layout, params: Tensor) -> State:
        start = params.new_zeros(self.config.layers, self.config.hidden, params.shape[-1])
        return {"step": params.new_zeros(()), "h": start, "c": start.clone()}

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        return stats, clock.progress[None], {"step": state["step"] + 1}

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        x, hs, cs = log_and_sign(grads, version=self.config.feature_version), [], []
        for layer, cell in enumerate(self.cells):
            x, c = cell(x, state["h"][layer], state["c"][layer])
            hs.append(x)
            cs.append(c)
        step = (self.last @ x)[0] + self.last_bias
        return params + self.config.scale * step, {"h": torch.stack(hs), "c": torch.stack(cs)}
