"""Exact traces: how the weights depend on the log step sizes, Hessian and all, carried forward step
by step.

The transition of y (the meta state) and x (weights and base state) is differentiated by forward
mode through the very rules that make the step, so every base and meta has its exact trace. What
enters a step is ``gamma`` times the tangents after the last one, plus ``(1 - gamma)`` of a fresh
shift of beta; the Hessian's part of Y thus gets a gamma of its own.

Columns: ``joint`` follows one shift of all betas together (C = 1), ``per-block`` one of each block
(C = m). State beside the base's own: ``h [C, n]``, ``h_m`` and ``h_v`` (tangents of the moments),
``q`` for the 3x3 form; and Y, the tangents of the meta state.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from lo_framework.errors import UserError
from lo_framework.optim.metaoptimize.derivatives import product
from lo_framework.optim.metaoptimize.rules import Number, Numbers, Rule, State, meta_update
from lo_framework.optim.metaoptimize.settings import Settings
from lo_framework.optim.metaoptimize.store import Plan, Work, compute_dtype

MAX_COLUMNS = 64  # one Hessian-vector product and one more copy of the parameters each


class ExactTrace:
    """The tangents of one optimizer.

    Attributes:
        columns: C, shifts of beta that are followed.
        tangents: Y, ``[C, m]`` each.
    """

    def __init__(self, kind: str, products: str, base: Rule, meta: Rule, beta: Tensor) -> None:
        self.kind, self.products, self.base, self.meta = kind, products, base, meta
        # torch loads what its forward mode needs, with deprecation warnings that are its own.
        with warnings.catch_warnings(), dual_level():
            warnings.simplefilter("ignore", DeprecationWarning)
            make_dual(torch.zeros(1, device="cpu"), torch.zeros(1, device="cpu"))
        self.start(beta)

    def start(self, beta: Tensor) -> None:
        """Set Y as in the beginning: as if past shifts had persisted.

        Raises:
            UserError: more blocks than can be followed one by one.
        """
        blocks = beta.shape[0]
        self.columns = self.columns_for(blocks)
        shifts = torch.eye(blocks) if self.columns == blocks else torch.ones(1, blocks)
        self._shifts = shifts.to(beta)  # d beta by the shift of each column, [C, m]
        zeros = {name: torch.zeros_like(self._shifts) for name in self.meta.state}
        self.tangents = {"beta": self._shifts.clone(), **zeros}

    def columns_for(self, blocks: int) -> int:
        if self.products == "joint":
            return 1
        if blocks > MAX_COLUMNS:
            raise UserError(
                'products "per-block" makes one Hessian-vector product per block and step: '
                f'{blocks} blocks are more than {MAX_COLUMNS}; use "joint" or fewer blocks'
            )
        return blocks

    def grow(self, beta: Tensor) -> None:
        """Blocks were added at the end."""
        old, columns = self.tangents, self.columns
        self.start(beta)
        for name, x in old.items():
            self.tangents[name][:columns, : x.shape[1]] = x

    def state_names(self) -> tuple[str, ...]:
        """Names of the per-parameter state with one row per column."""
        return ("h", "q") if self.kind == "full" else ("h", *(f"h_{k}" for k in self.base.state))

    def step(
        self,
        plan: Plan,
        works: Iterable[Work],
        graph: Sequence[Tensor | None],
        beta: Tensor,
        gamma: float,
    ) -> tuple[Tensor, Tensor]:
        """Update parameters and state; gives the meta-gradients ``[m]`` of before and their
        tangents ``[C, m]``.
        """
        leaves = [p for run in plan.runs for p in run.tensors]
        grads: list[Any] = [graph[i] for run in plan.runs for i in run.members]
        h = self._columns(plan, "h")
        if self.kind == "full":
            ch = product(grads, leaves, h[0], create_graph=True)
            third = product(ch, leaves, h[0])
            cq = product(grads, leaves, self._columns(plan, "q")[0])
            lists = [[x.detach() for x in ch], third, cq]
        else:
            lists = [product(grads, leaves, v) for v in h]
        of_runs = [iter(row) for row in lists]
        z, dz = torch.zeros_like(beta), torch.zeros_like(self._shifts)
        shift = self._injected(gamma)
        for run, weights, all_grads, lr, n in works:
            dtype, device = compute_dtype(run.pack.dtype), run.pack.device
            rows = [
                torch.cat([x.reshape(-1) for x in islice(row, len(run.members))]) for row in of_runs
            ]
            products = torch.stack(rows).to(dtype)
            for piece, state in zip(run.pieces, run.states):
                w, g = weights[piece.part].to(dtype), all_grads[piece.part].to(dtype)
                p, h_piece = products[:, piece.part], state["h"]
                if self.columns == 1:
                    piece.add_sums(h_piece[0] * g, z)
                    extra = g * state["q"][0] if self.kind == "full" else 0.0
                    piece.add_sums(h_piece[0] * p[0] + extra, dz[0])
                else:
                    z += (h_piece @ g).to(z)
                    dz += (p @ h_piece.T).to(dz)
                own_beta = piece.spread(beta.to(device), beta.dtype)
                own_shift = piece.spread(shift.to(device), beta.dtype)
                new_w = self._move(w, g, p, state, own_beta, own_shift, lr, n)
                weights[piece.part].copy_(new_w)
        return z, gamma * dz

    def carry(
        self, before: State, taken: Tensor, z: Tensor, dz: Tensor, settings: Settings
    ) -> None:
        """Set Y to what it is after the meta step (``taken [m]``: where there was one).

        Bounds and caps are not differentiated: a step size at its bound must keep a trace, or it
        could never leave.

        Args:
            before: the meta state that the step began with.
            dz: the change of ``z`` by each column.
        """
        if self.kind == "l":
            return
        gamma, columns = settings.gamma, []
        shift = self._injected(gamma)
        still = {name: shift if name == "beta" else gamma * x for name, x in self.tangents.items()}
        for c in range(self.columns):
            with dual_level():
                dual = {name: make_dual(before[name], x[c]) for name, x in still.items()}
                new = meta_update(
                    self.meta,
                    {**dual, "count": before["count"] + 1},
                    make_dual(z, dz[c]),
                    settings.meta_lr,
                    settings.meta_betas,
                )
                columns.append({name: _parted(new[name])[1] for name in still})
        self.tangents = {
            name: torch.where(taken, torch.stack([column[name] for column in columns]), x)
            for name, x in still.items()
        }

    def reset(self, plan: Plan, beta: Tensor) -> None:
        """All tangents as in the beginning."""
        self.start(beta)
        for run in plan.runs:
            for name in self.state_names():
                run.pack.state[name].zero_()

    def _injected(self, gamma: float) -> Tensor:
        """The change of today's beta that the next step sees, ``[C, m]``."""
        return gamma * self.tangents["beta"] + (1.0 - gamma) * self._shifts

    def _columns(self, plan: Plan, name: str) -> list[list[Tensor]]:
        """A tangent of the weights as one list of tensors for each column."""
        of_runs = [(run, run.pack.state[name][:, run.begin : run.end]) for run in plan.runs]
        return [
            [x for run, rows in of_runs for x in run.shaped(rows[c])] for c in range(self.columns)
        ]

    def _move(
        self,
        w: Tensor,
        g: Tensor,
        products: Tensor,
        state: State,
        beta: Tensor,
        shift: Tensor,
        lr: Number,
        n: Numbers,
    ) -> Tensor:
        """The weights of one piece after a step, with its state and tangents moved in place.

        ``beta`` and ``shift`` are 0-d, or have one value per element; ``products`` and ``shift``
        have a row per column, ``products`` of the 3x3 form the Hessian C times h, d(C h)/dw times
        h, and C times q.
        """
        h, gamma = state["h"], n.gamma
        if self.kind == "full":
            (ch, third, cq), q, kappa = products, state["q"], n.kappa
            alpha, moved = lr * beta.exp(), shift[0]
            # Weight decay is a quadratic added to the loss.
            g, ch, cq = g + kappa * w, ch + kappa * h[0], cq + kappa * q[0]
            new_q = -moved * alpha * (gamma * ch + moved * g)
            new_q = new_q - gamma * alpha * (gamma * third + moved * ch)
            q[0] = new_q + gamma * gamma * (q[0] - alpha * cq)
            h[0] = gamma * (h[0] - alpha * ch) - moved * alpha * g
            return w - alpha * g
        for c in range(self.columns):
            with dual_level():
                alpha = lr * make_dual(beta, shift[c]).exp().to(w.dtype)
                duals = {
                    name: make_dual(state[name], gamma * state[f"h_{name}"][c])
                    for name in self.base.state
                }
                dual_w, dual_g = make_dual(w, gamma * h[c]), make_dual(g, gamma * products[c])
                u, new = self.base.direction(dual_g, duals, n)
                new_w, h[c] = _parted(dual_w - alpha * (u + n.kappa * dual_w))
                parted = {name: _parted(x) for name, x in new.items()}
            for name, (_, tangent) in parted.items():
                state[f"h_{name}"][c] = tangent
        for name, (value, _) in parted.items():
            state[name].copy_(value)
        return new_w


def _parted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent of a dual number."""
    primal, tangent = unpack_dual(x)
    return primal, torch.zeros_like(primal) if tangent is None else tangent
