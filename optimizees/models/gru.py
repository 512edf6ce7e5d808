"""``gru``: a recurrent classifier that reads an image row by row; no default pool has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.initial import layer, linear, uniform
from lo_framework.optimizees.registry import register_model
from lo_framework.optimizees.task import Buffers, Model, Params, Rows
from lo_framework.schema import Checked, Width
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class GRUConfig(Checked):
    """Options of ``gru``.

    Attributes:
        hidden: numbers in the state.
        batch: rows of one batch.
    """

    hidden: Width = 32
    batch: Rows = 64


@register_model("gru", config=GRUConfig, images=True)
class GRU(Model):
    """A gated recurrent unit (Cho et al. 2014) over the rows of an image, and a linear head on its
    last state.

    Parameters, as nn.GRU has them: "cell.weight_ih" [3 H, inputs], "cell.weight_hh" [3 H, H],
    "cell.bias_ih" and "cell.bias_hh" [3 H] (reset, update, new); "head.weight" [C, H], "head.bias".
    """

    def __init__(self, config: GRUConfig, shape: tuple[int, ...], classes: int) -> None:
        if len(shape) != 3:
            raise UserError(f"gru: expected images, not inputs of shape {list(shape)}")
        channels, _, width = shape
        self.inputs, self.hidden, self.classes = channels * width, config.hidden, classes

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Draw as nn.GRU and nn.Linear do."""
        wide = self.hidden
        params = {
            f"cell.{name}": uniform((3 * wide, *rest), wide, generator)
            for name, rest in (
                ("weight_ih", (self.inputs,)),
                ("weight_hh", (wide,)),
                ("bias_ih", ()),
                ("bias_hh", ()),
            )
        }
        return params | layer("head", (self.classes, wide), generator), {}

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        rows = x.transpose(1, 2).flatten(2)  # [B, height, channels * width]
        seen = F.linear(rows, params["cell.weight_ih"], params["cell.bias_ih"])
        state = x.new_zeros(len(x), self.hidden)
        for row in seen.unbind(1):
            kept = F.linear(state, params["cell.weight_hh"], params["cell.bias_hh"])
            (r, z, n), (hr, hz, hn) = row.chunk(3, -1), kept.chunk(3, -1)
            new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
            state = new + torch.sigmoid(z + hz) * (state - new)
        return linear(state, params, "head"), buffers
