"""Muon for the matrices and convolutions of hidden layers, AdamW for all else, as torch has them.

A convolution is a matrix of outputs by the rest. A direction that is orthogonal has the size of
AdamW's (``match_rms_adamw``), so that one learning rate serves both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.eval.baselines.hand_designed import AdamW, AdamWConfig
from lo_framework.eval.baselines.registry import grid_of, register_baseline
from lo_framework.layout import Layout, Slot
from lo_framework.learned.adamw_rule import AdamWChannels, unstack
from lo_framework.learned.base import State
from lo_framework.learned.orthogonal import newton_schulz
from lo_framework.roles import LAYERS
from lo_framework.spec import UserError

RMS = 0.2  # about that of AdamW's updates


@dataclass(frozen=True, kw_only=True)
class MuonConfig(AdamWConfig):
    """torch.optim.Muon's settings beside AdamW's, whose decay holds for both."""

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 <= self.momentum < 1.0 and 1 <= self.ns_steps < 100):
            raise UserError(
                "muon: momentum must be in [0, 1) and ns_steps in 1 to 99, "
                f"got {self.momentum} and {self.ns_steps}"
            )


def is_hidden(slot: Slot) -> bool:
    """Whether Muon updates the tensor."""
    return slot.role in LAYERS and slot.position == "hidden"


@register_baseline("muon", grid_of("adamw"))
class Muon(AdamW):
    """Jordan 2024, "Muon: an optimizer for hidden layers in neural networks", with the rates of
    Liu et al. 2025, "Muon is scalable for LLM training".

    The first moment is Muon's momentum where Muon updates. torch iterates in bfloat16, this in the
    parameters' own precision.
    """

    kind = "muon"
    Config = MuonConfig
    config: MuonConfig
    passing = ("direction",)

    def prepare(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> State:
        c = self.config
        momentum = torch.lerp(state["m"], grads, 1.0 - c.momentum)
        ahead = torch.lerp(grads, momentum, c.momentum) if c.nesterov else momentum
        parts = [
            matched(part.reshape(slot.shape[0], -1), c.ns_steps).reshape(-1)
            if is_hidden(slot)
            else torch.zeros_like(part)
            for slot, part in zip(layout.slots, ahead.split(layout.sizes, dim=-1), strict=True)
        ]
        return {**state, "direction": torch.cat(parts)}

    def channels(self, layout: Layout, stats: Tensor) -> Tensor:
        return stats.new_tensor([[float(is_hidden(slot)) for slot in layout.slots]])

    def shared(self, lr: Tensor, step: Tensor) -> Tensor:
        return torch.cat([super().shared(lr, step), lr[None]])

    def adamw_channels(self, channels: Tensor, shared: Tensor) -> AdamWChannels:
        c = unstack(shared)
        return c._replace(keep1=torch.where(channels[0] > 0, 1.0 - self.config.momentum, c.keep1))

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        updated, new = super().update(channels, shared, params, grads, state)
        lr = shared[-1]
        orthogonal = params * (1.0 - lr * self.config.weight_decay) - lr * state["direction"]
        return torch.where(channels[0] > 0, orthogonal, updated), new


def matched(x: Tensor, ns_steps: int) -> Tensor:
    """The matrix ``x`` with its singular values near one, and then of RMS `RMS`."""
    return RMS * math.sqrt(max(x.shape)) * newton_schulz(x, ns_steps)
