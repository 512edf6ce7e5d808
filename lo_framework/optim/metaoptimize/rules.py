"""Update rules: how gradients become directions ``u``, of weights (`BASES`) and of log step sizes
(`METAS`), and the limits of step sizes.

Weights move by ``-alpha (u + kappa w)``; log step sizes ``beta [m]`` by ``-meta_lr u``, with the
meta-gradients ``z [m]`` as gradients. Pure functions on tensors of any shape, under vmap and
forward-mode differentiation too. ``hessian_free`` has the same arithmetic in place, and a test
holds the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lo_framework.errors import UserError, number, numbers, shown
from lo_framework.optim.fused import one_minus_power

State = dict[str, Tensor]
Number = float | Tensor
Betas = Sequence[float]

# Keeps the derivative of sqrt finite at an exactly zero second moment; far below any eps.
TINY = 1e-30
# z is proportional to alpha, which may be 1e-10: an eps of the usual size would stop small step
# sizes from growing.
META_EPS = 1e-15
MAX_CHANGE = math.log(2.0)  # a meta step at most halves or doubles a step size


class Numbers(NamedTuple):
    """The numbers of one step of a rule; ``step`` counts from 1, ``scale`` multiplies the
    direction.
    """

    betas: Betas
    eps: float
    step: int | Tensor
    kappa: float = 0.0  # weight decay
    gamma: float = 1.0
    scale: Number = 1.0


@dataclass(frozen=True)
class Rule:
    """One rule.

    ``betas`` are rho (momentum) and lambda (second moment), for lion (c, rho). ``low`` and ``high``
    bound the step size alpha of a base by default.
    """

    name: str
    betas: tuple[float, ...] = ()
    state: tuple[str, ...] = ()
    eps: float = 0.0
    low: float = 1e-10
    high: float = math.inf

    @property
    def betas_key(self) -> str:
        """Key of ``betas`` in parameter groups. Schedulers that cycle momentum write to the first
        of ``betas``, so what is no momentum is called otherwise.
        """
        return "betas" if "m" in self.state else "decays"

    def checked_betas(
        self, given: float | Betas | None, argument: str, place: str = ""
    ) -> tuple[float, ...]:
        """``given``, or the usual ones for None.

        Raises:
            UserError: not as many as the rule has, or no numbers in [0, 1); the line begins with
                the ``place``.
        """
        if given is None:
            return self.betas
        is_list = isinstance(given, Sequence) and not isinstance(given, str | bytes)
        given = cast("Betas", given if is_list else (given,))
        found = [number(beta) for beta in given]
        betas = tuple(beta for beta in found if beta is not None)
        owner = f'{place}{"meta" if argument == "meta_betas" else "base"} "{self.name}"'
        if len(betas) < len(found):
            raise UserError(f"{owner} has {len(self.betas)} {argument}, not {shown(given)}")
        if len(betas) != len(self.betas):
            raise UserError(f"{owner} has {len(self.betas)} {argument}, got {len(betas)}")
        if not all(0.0 <= b < 1.0 for b in betas):
            raise UserError(f"{place}{argument} must be in [0, 1), got {betas}")
        return betas

    def direction(self, g: Tensor, state: State, n: Numbers) -> tuple[Tensor, State]:
        """``scale u`` and the new state."""

        def averaged(name: str, beta: float, new: Tensor) -> Tensor:
            return state[name] + (1.0 - beta) * (new - state[name])

        betas = n.betas
        match self.name:
            case "sgd":
                return n.scale * g, {}
            case "sgdm":
                m = averaged("m", betas[0], g)
                return n.scale * m, {"m": m}
            case "rmsprop":
                v = averaged("v", betas[0], g * g)
                rms = (v / one_minus_power(betas[0], n.step) + n.eps).sqrt()
                return n.scale * g / rms, {"v": v}
            case "adamw" | "adam":
                m, v = averaged("m", betas[0], g), averaged("v", betas[1], g * g)
                correction1, correction2 = (one_minus_power(beta, n.step) for beta in betas)
                rms = (v / correction2 + TINY).sqrt()
                return n.scale * (m / correction1) / (rms + n.eps), {"m": m, "v": v}
            case "lion":
                u = torch.sign(betas[0] * state["m"] + (1.0 - betas[0]) * g)
                return n.scale * u, {"m": averaged("m", betas[1], g)}
        return torch.zeros_like(g), {}  # fixed


# The bounds are far from anything useful on both sides: they stop what has gone wrong and nothing
# else.
BASES = {
    "sgd": Rule("sgd", high=10.0),
    "sgdm": Rule("sgdm", (0.9,), ("m",), high=10.0),
    "rmsprop": Rule("rmsprop", (0.999,), ("v",), 1e-10, high=0.1),
    "adamw": Rule("adamw", (0.9, 0.999), ("m", "v"), 1e-8, high=0.1),
    "lion": Rule("lion", (0.9, 0.99), ("m",), high=0.03),
}

METAS = {
    "fixed": Rule("fixed"),
    "sgd": BASES["sgd"],
    "rmsprop": replace(BASES["rmsprop"], eps=META_EPS * META_EPS),
    "adam": replace(BASES["adamw"], name="adam", eps=META_EPS),
    "lion": BASES["lion"],
}


def hessian_free(
    w: Tensor, u: Tensor, h: Tensor, alpha: Number, kappa: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Weights and trace ``h`` after one step, with the gradients taken as given; ``h`` is the
    derivative of ``w`` by a shift of all past log step sizes.
    """
    dw = -alpha * (u + kappa * w)
    return w + dw, gamma * (1.0 - kappa * alpha) * h + dw


class Limits(NamedTuple):
    """``low <= beta <= high``, and no meta step changes it by more than ``max_change``; infinite:
    no limit.
    """

    low: float
    high: float
    max_change: float

    def bounded(self, old: Tensor, new: Tensor) -> Tensor:
        """``new``, or the nearest value within the limits."""
        if self.max_change < math.inf:
            new = old + (new - old).clamp(-self.max_change, self.max_change)
        return new.clamp(self.low, self.high)


def limits_of(
    base: Rule,
    alpha0: float,
    beta_bounds: Sequence[float] | None = None,
    max_change: float = MAX_CHANGE,
) -> Limits:
    """The limits that ``beta_bounds`` asks for: (low, high) of the log step size, None for wide
    ones of the base.

    Raises:
        UserError: they are not bounds, or ``alpha0`` is not positive or not within them.
    """
    if not 0 < (number(alpha0) or 0.0) < math.inf:
        raise UserError(f"alpha0 is a step size: it must be positive, got {shown(alpha0)}")
    if not (number(max_change) or 0.0) > 0:
        raise UserError(f"max_change must be positive (inf for no cap), got {max_change}")
    wide = (math.log(base.low), math.log(base.high))
    bounds = wide if beta_bounds is None else numbers(beta_bounds)
    if bounds is None or len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise UserError(
            "beta_bounds must be (low, high) of the log step size with low < high, or None, "
            f"got {shown(beta_bounds)}"
        )
    low, high = bounds
    slack = 1e-9 * max(1.0, *(abs(x) for x in (low, high) if math.isfinite(x)), 0.0)
    # The logarithm of a bound given as a step size rounds.
    if not low - slack <= math.log(alpha0) <= high + slack:
        raise UserError(
            f"alpha0={alpha0:g} is outside the bounds {math.exp(low):.3g} to {math.exp(high):.3g} "
            "of the step size: choose another alpha0, or beta_bounds=(low, high) of its logarithm"
        )
    return Limits(low, high, max_change)


def fresh(meta: Rule, beta: Tensor) -> State:
    """The meta state at the start, for blocks at ``beta``; ``count`` holds the updates made."""
    return {"beta": beta, **{name: torch.zeros_like(beta) for name in ("count", *meta.state)}}


def meta_update(meta: Rule, state: State, z: Tensor, lr: Number, betas: Betas) -> State:
    """Log step sizes and moments after ``z``, without limits; the ``count`` in ``state`` includes
    this update.
    """
    change, new = meta.direction(z, state, Numbers(betas, meta.eps, state["count"], scale=lr))
    return {**new, "beta": state["beta"] - change}


def meta_step(
    meta: Rule,
    state: State,
    z: Tensor,
    lr: Number,
    betas: Betas,
    limits: Limits,
    active: Tensor | None = None,
) -> tuple[State, Tensor]:
    """The state after ``z``, and where ``z`` was not finite.

    Such blocks stand still, as do those that are not ``active`` (none of their parameters had a
    gradient).
    """
    count = state["count"] + 1
    new = meta_update(meta, {**state, "count": count}, z, lr, betas)
    taken = torch.isfinite(z) & torch.isfinite(new["beta"])
    new = {**new, "beta": limits.bounded(state["beta"], new["beta"]), "count": count}
    bad = ~taken
    if active is not None:
        taken, bad = taken & active, bad & active
    return {name: torch.where(taken, new[name], old) for name, old in state.items()}, bad
