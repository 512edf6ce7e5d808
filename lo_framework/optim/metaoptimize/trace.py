"""Exact traces: how the weights depend on the log step sizes, Hessian and all, carried forward step
by step.

The transition of y (the meta state) and x (weights and base state) is differentiated by forward
mode through the very rules that make the step, so every base and meta has its exact trace. What
enters a step is ``gamma`` times the tangents after the last one, plus ``(1 - gamma)`` of a fresh
shift of beta; the Hessian's part of Y thus gets a gamma of its own.

Columns: ``joint`` follows one shift of all betas together (C = 1), ``per-block`` one of each block
(C = m).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from lo_framework.optim.metaoptimize.rules import Number, Numbers, Rule, State, advance, meta_update

MAX_COLUMNS = 64  # one Hessian-vector product and one more copy of the parameters each


def load_forward_mode() -> None:
    """Let torch load what its forward mode needs, without the deprecation warnings that it causes
    in torch itself.
    """
    with warnings.catch_warnings(), dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        make_dual(torch.zeros(1, device="cpu"), torch.zeros(1, device="cpu"))


def unit_shifts(columns: int, blocks: int, beta: Tensor) -> Tensor:
    """d beta by the shifts of the columns, ``[C, m]``."""
    return (
        torch.eye(blocks).to(beta) if columns > 1 or blocks == 1 else torch.ones(1, blocks).to(beta)
    )


def fresh_tangents(meta: Rule, shifts: Tensor) -> State:
    """Y at the start: as if past shifts had persisted, ``[C, m]`` for beta and each moment."""
    return {"beta": shifts, **{name: torch.zeros_like(shifts) for name in meta.state}}


def injected(tangents: State, shifts: Tensor, gamma: float) -> Tensor:
    """The change of today's beta that the next step sees, ``[C, m]``."""
    return gamma * tangents["beta"] + (1.0 - gamma) * shifts


def base_tangents(
    base: Rule,
    w: Tensor,
    g: Tensor,
    state: State,
    beta: Tensor,
    lr: Number,
    n: Numbers,
    tangents: Sequence[tuple[Tensor, Tensor, State, Tensor]],
) -> tuple[Tensor, State, list[tuple[Tensor, State]]]:
    """Weights and state after one step, and their new tangents for every column.

    ``tangents``: of w, g, state and beta (shaped as ``beta``: 0-d, or one per element).
    """

    columns = []
    for dw, dg, dstate, dbeta in tangents:
        with dual_level():
            alpha = lr * make_dual(beta, dbeta).exp().to(w.dtype)
            duals = {name: make_dual(x, dstate[name]) for name, x in state.items()}
            moved, new = advance(base, make_dual(w, dw), make_dual(g, dg), duals, alpha, n)
            new_w, new_dw = _parted(moved)
            parted = {name: _parted(x) for name, x in new.items()}
        columns.append((new_dw, {name: tangent for name, (_, tangent) in parted.items()}))
    return new_w, {name: primal for name, (primal, _) in parted.items()}, columns


def meta_tangents(
    meta: Rule,
    state: State,
    z: Tensor,
    lr: Number,
    betas: Sequence[float],
    shift: Tensor,
    tangents: State,
    dz: Tensor,
    gamma: float,
) -> State:
    """Y after the meta step, ``[C, m]``: ``shift`` is what `injected` gives, ``dz`` each column's
    change of z.

    Bounds and caps are not differentiated: a step size at its bound must keep a trace, or it could
    never leave.
    """
    count, columns = state["count"] + 1, []
    for c in range(shift.shape[0]):
        with dual_level():
            dual = {name: make_dual(state[name], gamma * tangents[name][c]) for name in meta.state}
            dual["beta"] = make_dual(state["beta"], shift[c])
            new = meta_update(meta, {**dual, "count": count}, make_dual(z, dz[c]), lr, betas)
            columns.append({name: _parted(new[name])[1] for name in tangents})
    return {name: torch.stack([column[name] for column in columns]) for name in tangents}


def _parted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent of a dual number."""
    primal, tangent = unpack_dual(x)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


def full_step(
    w: Tensor,
    g: Tensor,
    h: Tensor,
    q: Tensor,
    ch: Tensor,
    third: Tensor,
    cq: Tensor,
    alpha: Number,
    shift: Number,
    n: Numbers,
) -> tuple[Tensor, Tensor, Tensor]:
    """SGD's weights w, trace h and second trace q after a step of the 3x3 form.

    ``g`` is the gradient, ``ch`` and ``cq`` are the Hessian C times h and q, ``third`` is d(C h)/dw
    times h, ``shift`` the change of today's log step size that this step sees.
    """
    kappa, gamma = n.kappa, n.gamma
    # Weight decay is a quadratic added to the loss.
    g, ch, cq = g + kappa * w, ch + kappa * h, cq + kappa * q
    new_q = -shift * alpha * (gamma * ch + shift * g) - gamma * alpha * (gamma * third + shift * ch)
    new_q = new_q + gamma * gamma * (q - alpha * cq)
    return w - alpha * g, gamma * (h - alpha * ch) - shift * alpha * g, new_q
