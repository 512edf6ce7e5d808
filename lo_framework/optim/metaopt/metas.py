"""Meta update rules: how the meta-gradients ``z [m]`` move the log step sizes ``beta [m]``.

Pure functions on dictionaries of tensors with one value a block: ``beta``, ``count`` (updates made,
for the bias corrections) and moments. Blocks do not see each other, so any shape will do, under
vmap and forward-mode too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.optim.fused import one_minus_power
from lo_framework.optim.metaopt.bases import TINY, Number, State
from lo_framework.optim.metaopt.bounds import Limits
from lo_framework.spec import UserError, nearest

# z is proportional to alpha, which may be 1e-10: an eps of the usual size would stop small step
# sizes from growing.
EPS = 1e-15


@dataclass(frozen=True)
class Meta:
    """One rule.

    ``update(state, z, lr, betas)`` gives what changes; its ``count`` includes this update.
    ``betas`` are momentum and second moment; for rmsprop the latter alone, for lion those of the
    sign and of the momentum.
    """

    name: str
    betas: tuple[float, ...]
    state: tuple[str, ...]
    update: Callable[[State, Tensor, Number, Sequence[float]], State]


def _fixed(s: State, z: Tensor, lr: Number, betas: Sequence[float]) -> State:
    return {"beta": s["beta"]}


def _sgd(s: State, z: Tensor, lr: Number, betas: Sequence[float]) -> State:
    return {"beta": s["beta"] - lr * z}


def _rmsprop(s: State, z: Tensor, lr: Number, betas: Sequence[float]) -> State:
    v = s["v"] + (1.0 - betas[0]) * (z * z - s["v"])
    return {
        "beta": s["beta"] - lr * z / (v / one_minus_power(betas[0], s["count"]) + EPS * EPS).sqrt(),
        "v": v,
    }


def _adam(s: State, z: Tensor, lr: Number, betas: Sequence[float]) -> State:
    m = s["m"] + (1.0 - betas[0]) * (z - s["m"])
    v = s["v"] + (1.0 - betas[1]) * (z * z - s["v"])
    rms = (v / one_minus_power(betas[1], s["count"]) + TINY).sqrt()
    return {
        "beta": s["beta"] - lr * (m / one_minus_power(betas[0], s["count"])) / (rms + EPS),
        "m": m,
        "v": v,
    }


def _lion(s: State, z: Tensor, lr: Number, betas: Sequence[float]) -> State:
    c, rho = betas
    beta = s["beta"] - lr * torch.sign(c * s["m"] + (1.0 - c) * z)
    return {"beta": beta, "m": s["m"] + (1.0 - rho) * (z - s["m"])}


METAS: dict[str, Meta] = {
    meta.name: meta
    for meta in (
        Meta("fixed", (), (), _fixed),
        Meta("sgd", (), (), _sgd),
        Meta("rmsprop", (0.999,), ("v",), _rmsprop),
        Meta("adam", (0.9, 0.999), ("m", "v"), _adam),
        Meta("lion", (0.9, 0.99), ("m",), _lion),
    )
}


def find_meta(name: str) -> Meta:
    if name not in METAS:
        raise UserError(
            f'unknown meta "{name}"{nearest(str(name), METAS)}; known: {", ".join(METAS)}'
        )
    return METAS[name]


def fresh(meta: Meta, beta: Tensor) -> State:
    """The state at the start, for blocks at ``beta``."""
    return {"beta": beta, **{name: torch.zeros_like(beta) for name in ("count", *meta.state)}}


def meta_step(
    meta: Meta,
    state: State,
    z: Tensor,
    lr: Number,
    betas: Sequence[float],
    limits: Limits,
    active: Tensor | None = None,
) -> tuple[State, Tensor]:
    """The state after ``z``, and where ``z`` was not finite.

    Such blocks stand still, as do those that are not ``active`` (none of their parameters had a
    gradient).
    """
    count = state["count"] + 1
    new = meta.update({**state, "count": count}, z, lr, betas)
    usable = torch.isfinite(z) & torch.isfinite(new["beta"])
    new = {**new, "beta": limits.bounded(state["beta"], new["beta"]), "count": count}
    bad = ~usable if active is None else ~usable & active
    taken = usable if active is None else usable & active
    return {name: torch.where(taken, new[name], old) for name, old in state.items()}, bad
