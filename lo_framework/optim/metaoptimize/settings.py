"""The settings of MetaOptimize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from lo_framework.errors import UserError, choose, number, shown, whole
from lo_framework.optim.blocks import Spec
from lo_framework.optim.metaoptimize.rules import BASES, MAX_CHANGE, METAS, Limits, Rule, limits_of

TRACES = ("hessian-free", "l", "2x2", "full")
PRODUCTS = ("joint", "per-block")


@dataclass(frozen=True, kw_only=True)
class MetaOptimizeConfig:
    """The settings of `MetaOptimize` beside its step sizes.

    Raises:
        UserError: an unknown name, a number that cannot be, or a combination that there is not.
    """

    base: Literal["sgd", "sgdm", "rmsprop", "adamw", "lion"] = "adamw"
    """How weights move."""

    meta: Literal["fixed", "sgd", "rmsprop", "adam", "lion"] = "lion"
    """How log step sizes move."""

    blocks: Spec = "scalar"
    """Parameters that share a step size: "scalar" (all), "group", "tensor", "node" (row of a
    tensor), "weight", or a dict of names to a regular expression (searched in parameter names), a
    list of parameter names, or None (all others).
    """

    gamma: float = 1.0
    """Discount of the future: 1 looks at the whole past, 0 at the last step only."""

    meta_every: int = 1
    """A meta step is made in every so many steps; the trace is carried on in all."""

    weight_decay: float = 0.1
    """Decoupled weight decay, times the step size."""

    trace: Literal["hessian-free", "l", "2x2", "full"] = "hessian-free"
    """How the past is followed: "l" and "2x2" with exact Hessian-vector products, for which
    ``step`` needs a closure; "full" for sgd by sgd.
    """

    products: Literal["joint", "per-block"] = "joint"
    """Hessian-vector products of exact traces: one for all blocks, or one each (at most 64)."""

    betas: tuple[float, ...] | None = None
    """Of the base: rho for sgdm, lambda for rmsprop, (rho, lambda) for adamw, (c, rho) for lion."""

    meta_betas: tuple[float, ...] | None = None
    """The same of the meta."""

    beta_bounds: tuple[float, ...] | None = None
    """(low, high) of the log step size; None: wide ones of the base."""

    max_change: float = MAX_CHANGE
    """The cap on the change of a log step size in one meta step; inf for no cap."""

    eps: float | None = None
    """Of rmsprop (inside the root) and adamw (outside); None: 1e-10 and 1e-8."""

    def __post_init__(self) -> None:
        choose("base", self.base, BASES)
        choose("meta", self.meta, METAS)
        choose("trace", self.trace, TRACES)
        choose("products", self.products, PRODUCTS)
        gamma = number(self.gamma)
        if gamma is None or not 0 <= gamma <= 1:
            raise UserError(f"gamma must be in [0, 1], got {shown(self.gamma)}")
        whole("meta_every", self.meta_every)
        if self.trace in ("l", "2x2") and self.base == "rmsprop":
            raise UserError(
                f'trace "{self.trace}" is for the bases sgd, sgdm, adamw and lion; base "rmsprop" '
                'has "hessian-free"'
            )
        of_sgd = (self.base, self.meta, self.blocks) == ("sgd", "sgd", "scalar")
        if self.trace == "full" and not of_sgd:
            raise UserError('trace "full" is for base "sgd", meta "sgd" and blocks "scalar" only')

    @property
    def base_rule(self) -> Rule:
        return BASES[self.base]

    @property
    def meta_rule(self) -> Rule:
        return METAS[self.meta]

    def limits(self, alpha0: float) -> Limits:
        """The limits of log step sizes that start at ``alpha0``; raises UserError."""
        return limits_of(self.base_rule, alpha0, self.beta_bounds, self.max_change)


@dataclass
class Settings:
    """Settings that may change during a training, and are saved with it."""

    meta_lr: float
    gamma: float
    meta_every: int
    meta_betas: tuple[float, ...]
    limits: Limits

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "meta_betas": list(self.meta_betas), "limits": list(self.limits)}

    @staticmethod
    def loaded(saved: dict[str, Any]) -> Settings:
        low, high, change = saved["limits"]  # older files have None for no limit
        limits = Limits(
            -math.inf if low is None else low,
            math.inf if high is None else high,
            math.inf if change is None else change,
        )
        return Settings(**{**saved, "meta_betas": tuple(saved["meta_betas"]), "limits": limits})
