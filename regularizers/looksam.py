"""``looksam``: SAM whose extra gradient is taken every k steps only (Liu et al. 2022, arXiv
2203.02714).

    step divisible by k:  G = g_s = grad L at w + rho u;  keep g_v = g_s - <g_s, u> u
    other steps:          G = g + alpha (||g|| / ||g_v||) g_v

g_v is what SAM adds orthogonally to g, and it changes slowly. Norms are over all parameters; some
versions take them per tensor. Pitfall: g_v is rescaled to the length of g, so where SAM hardly
turns the gradient it is mostly noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import (
    Correction,
    Cost,
    Landscape,
    Params,
    Point,
    Regularizer,
    State,
    fresh,
    register_regularizer,
    restored,
    stored,
)
from lo_framework.regularizers.sam import SAM, SAMConfig
from lo_framework.schema import Positive, Range


@dataclass(frozen=True, kw_only=True)
class LookSAMConfig(SAMConfig):
    """``rho``: radius. ``k``: steps from one SAM gradient to the next. ``alpha``: weight of the
    kept direction.
    """

    k: Annotated[int, Range(low=1, high=1 << 20)] = 5
    alpha: Positive = 0.7


@register_regularizer
class LookSAM(Regularizer):
    """`correction_at` calls `refresh` where it is `due` and `reuse` otherwise."""

    name = "looksam"
    Config = LookSAMConfig
    RANGES: ClassVar = {"rho": (0.01, 0.5), "k": (2, 10), "alpha": (0.1, 1.0)}

    def __init__(self, config: LookSAMConfig) -> None:
        super().__init__(config)
        self.sam = SAM(config)

    @property
    def cost(self) -> Cost:
        """Cost in a loop that evaluates what is due."""
        return Cost(1 + 1 / self.config.k)

    @property
    def unrolled_cost(self) -> Cost:
        """`correction` has no branch, so it always pays 2."""
        return Cost(2)

    def init_state(self, params: Params) -> State:
        return fresh("g_v", params)

    def due(self, step: int | Tensor) -> bool | Tensor:
        """Whether step number ``step``, from 0, takes a new gradient; for a tensor, a boolean
        tensor.
        """
        return step % self.config.k == 0

    def correction_at(
        self, step: int, landscape: Landscape, here: Point, state: State
    ) -> Correction:
        due = self.due(step)
        return self.refresh(landscape, here, state) if due else self.reuse(here, state)

    def refresh(self, landscape: Landscape, here: Point, state: State) -> Correction:
        sharp = self.sam.correction(landscape, here, {}).field  # g_s - g
        kept = vectors.without(vectors.add(here.grad, sharp), here.grad)
        return Correction(sharp, None, {"step": state["step"] + 1, **stored("g_v", kept)})

    def reuse(self, here: Point, state: State) -> Correction:
        kept = vectors.unit(restored("g_v", state))
        field = vectors.scaled(kept, self.config.alpha * vectors.norm(here.grad))
        return Correction(field, None, {**state, "step": state["step"] + 1})

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        new, old = self.refresh(landscape, here, state), self.reuse(here, state)
        due = torch.as_tensor(self.due(state["step"]))
        field = vectors.where(due, new.field, old.field)
        return Correction(field, None, vectors.where(due, new.state, old.state))
