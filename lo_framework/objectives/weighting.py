"""How the terms of a meta-objective are weighted: fixed, or by homoscedastic uncertainty with
priorities (HUW).

HUW (Kendall et al. 2018; with priorities p: MetaAdamW, arXiv 2605.04055) learns one number s_i =
log sigma_i^2 per term:

    total = sum_i [ 1/2 exp(-s_i) L_i + 1/2 p_i s_i ]
    d total / d s_i = 1/2 (p_i - exp(-s_i) L_i)

so that at rest exp(-s_i) = p_i / L_i: every term counts in relation to its own size, a higher
priority for more. As published this has no minimum once a term is negative (s_i falls without end),
and a term that reaches 0 gets all the weight. Here L_i counts as 0 in the slope where it is
negative and s_i stays in [-bound, bound]; ``bound=None`` is the published form. The slope is known
in closed form, so whoever learns s needs no graph, and within one outer step the weights are
constants: every estimator can use them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lo_framework.objectives.terms import TERMS
from lo_framework.registry import NoOptions, Registry
from lo_framework.schema import Checked, Positive, Range
from lo_framework.spec import UserError


class Weighting:
    """How the terms of an objective are weighted in the next outer step, by constants.

    ``dump`` and ``load`` carry what is learned through a kill; a weighting that learns nothing
    needs `weights` alone.
    """

    learns: ClassVar[bool] = False

    def weights(self) -> tuple[float, ...]:
        """One weight per term."""
        raise NotImplementedError

    def total(self, values: Tensor) -> Tensor:
        """The weighted sum of the terms ``values [n]``."""
        return sum(w * v for w, v in zip(self.weights(), values.unbind(), strict=True))  # type: ignore[return-value]

    def learn(self, values: Tensor, lr: float | None = None) -> None:
        """Learn from the terms ``values [n]`` of the outer step that is over."""

    def dump(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`dump` gave."""


WEIGHTINGS: Registry[Weighting] = Registry("weighting")


class FixedWeights(Weighting):
    """Constant weights."""

    def __init__(self, weights: Sequence[float] = (1.0,) * len(TERMS)) -> None:
        self._weights = tuple(float(w) for w in weights)

    def weights(self) -> tuple[float, ...]:
        return self._weights


class HUW(Weighting):
    """Homoscedastic uncertainty weighting: ``s [n]`` starts at 0, which is a weight of 1/2 each.

    ``lr``: of :meth:`learn` where that is given none.
    """

    learns = True

    def __init__(
        self,
        priorities: Sequence[float] = (1.0,) * len(TERMS),
        bound: float | None = 3.0,
        lr: float = 0.05,
    ) -> None:
        self.priorities = torch.tensor([float(p) for p in priorities], dtype=torch.float64)
        self.bound, self.lr = bound, lr
        # On the host, in double precision, wherever the terms are.
        self.s = torch.zeros_like(self.priorities)

    def weights(self) -> tuple[float, ...]:
        """The weights ``1/2 exp(-s_i)``."""
        return tuple((0.5 * torch.exp(-self.s)).tolist())

    def total(self, values: Tensor) -> Tensor:
        """The weighted sum of the terms ``values [n]``, with the constant ``1/2 sum_i p_i s_i``."""
        return super().total(values) + 0.5 * float((self.priorities * self.s).sum())

    def slope(self, values: Tensor) -> Tensor:
        """The step's direction uphill, ``[n]``, at the terms ``values [n]``; 0 for a term that is
        not finite.
        """
        values = values.detach().to("cpu", torch.float64)
        if self.bound is not None:
            values = values.clamp_min(0.0)
        slope = 0.5 * (self.priorities - torch.exp(-self.s) * values)
        return torch.where(torch.isfinite(slope), slope, 0.0)

    def learn(self, values: Tensor, lr: float | None = None) -> None:
        """One plain gradient step on s from the terms ``values [n]``."""
        s = self.s - (self.lr if lr is None else lr) * self.slope(values)
        self.s = s if self.bound is None else s.clamp(-self.bound, self.bound)

    def dump(self) -> dict[str, Tensor]:
        return {"s": self.s.clone()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        s = tensors["s"]
        if s.shape != self.s.shape:
            raise ValueError(f"s has shape {tuple(s.shape)}, not {tuple(self.s.shape)}")
        self.s = s.detach().to("cpu", torch.float64, copy=True)


@dataclass(frozen=True, kw_only=True)
class FixedConfig:
    """``weights``: one per term, as ``1x0.3x0.3`` (default: all 1)."""

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= w < math.inf for w in self.weights) or (
            self.weights and not any(self.weights)
        ):
            raise ValueError("weights must be finite, not negative and not all 0")


@dataclass(frozen=True, kw_only=True)
class HUWConfig(Checked):
    """``lr``: step of s; ``bound``: largest |s| (none: the published form, without bounds)."""

    lr: Positive = 0.05
    bound: Annotated[float, Range(low=0, high=20, open_low=True)] | None = 3.0


@WEIGHTINGS.register("sum")
@WEIGHTINGS.register("fixed", config=FixedConfig)
def _fixed(
    config: FixedConfig | NoOptions, terms: Sequence[str], priorities: Sequence[float]
) -> Weighting:
    weights = getattr(config, "weights", ()) or (1.0,) * len(terms)
    if len(weights) != len(terms):
        raise UserError(
            f"weights must be {len(terms)} numbers, for {', '.join(terms)}, not {len(weights)}"
        )
    return FixedWeights(weights)


@WEIGHTINGS.register("huw", config=HUWConfig, priorities=True)
def _huw(config: HUWConfig, terms: Sequence[str], priorities: Sequence[float]) -> Weighting:
    return HUW(priorities, config.bound, config.lr)


def make_weighting(
    spec: str, priorities: Sequence[float] | None = None, terms: Sequence[str] = TERMS
) -> Weighting:
    """Build ``sum``, ``fixed:weights=1x0.3x0.3`` or ``huw:lr=0.05,bound=3`` of ``terms``;
    ``priorities`` (default all 1) are for a weighting that was registered with ``priorities=True``.

    Raises:
        UserError: an unknown name or option, a wrong number of weights or priorities, an impossible
            value.
    """
    entry, config = WEIGHTINGS.parse(str(spec))
    if priorities is not None and not entry.facts.get("priorities"):
        takers = [name for name, each in WEIGHTINGS.items() if each.facts.get("priorities")]
        raise UserError(
            f"priorities are for the weighting {' or '.join(takers)}, "
            f"as in --weighting {takers[0]}, not for {entry.name!r}"
        )
    given = (1.0,) * len(terms) if priorities is None else _checked(priorities, terms)
    return entry.build(config, terms, given)


def parse_priorities(text: str, terms: Sequence[str] = TERMS) -> tuple[float, ...]:
    """The numbers of ``"2,5,1"``, one for each of ``terms``; raises UserError."""
    try:
        priorities = [float(piece) for piece in text.split(",")]
    except ValueError:
        raise UserError(
            f"priorities {text!r}: expected numbers, as 2,5,1, for {', '.join(terms)}"
        ) from None
    return _checked(priorities, terms)


def _checked(priorities: Sequence[float], terms: Sequence[str]) -> tuple[float, ...]:
    if len(priorities) != len(terms):
        raise UserError(
            f"there must be {len(terms)} priorities, for {', '.join(terms)}, not {len(priorities)}"
        )
    for p in priorities:
        if not 0 < p < math.inf:
            raise UserError(f"priorities must be positive and finite, not {p:g}")
    return tuple(float(p) for p in priorities)
