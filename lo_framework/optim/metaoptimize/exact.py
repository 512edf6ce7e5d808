"""Steps with an exact trace: Hessian-vector products from the gradients' graph, tangents through
the rules.

State beside the base's own: ``h [C, n]``, ``h_m`` and ``h_v`` (tangents of the moments), ``q`` for
the 3x3 form; and Y, the tangents of the meta state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.optim.base import BackwardWatch
from lo_framework.optim.metaoptimize import trace as formulas
from lo_framework.optim.metaoptimize.hessian_free import Groups, multiplier, numbers_of
from lo_framework.optim.metaoptimize.rules import Number, Numbers, Rule, State
from lo_framework.optim.metaoptimize.store import Plan, Run, Scratch, compute_dtype

NEEDS = (
    "needs a closure that returns the loss without calling backward (or calls "
    "backward(create_graph=True)): second derivatives are taken of it"
)


class ExactTrace:
    """The tangents of one optimizer.

    Attributes:
        columns: C, shifts of beta that are followed.
        tangents: Y, ``[C, m]`` each.
    """

    def __init__(self, kind: str, products: str, base: Rule, meta: Rule, beta: Tensor) -> None:
        self.kind, self.products, self.base, self.meta = kind, products, base, meta
        formulas.load_forward_mode()
        self.start(beta)

    def start(self, beta: Tensor) -> None:
        """Y as in the beginning.

        Raises:
            UserError: more blocks than can be followed one by one.
        """
        blocks = beta.shape[0]
        self.columns = self.columns_for(blocks)
        self._shifts = formulas.unit_shifts(self.columns, blocks, beta)
        self.tangents = formulas.fresh_tangents(self.meta, self._shifts)

    def columns_for(self, blocks: int) -> int:
        if self.products == "joint":
            return 1
        if blocks > formulas.MAX_COLUMNS:
            raise UserError(
                'products "per-block" makes one Hessian-vector product per block and step: '
                f'{blocks} blocks are more than {formulas.MAX_COLUMNS}; use "joint" or fewer blocks'
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
        params: Sequence[Tensor],
        graph: Sequence[Tensor | None],
        groups: Groups,
        ages: Sequence[int],
        beta: Tensor,
        gamma: float,
        scratch: Scratch,
    ) -> tuple[Tensor, Tensor]:
        """Update parameters and state; gives the meta-gradients ``[m]`` of before and their
        tangents ``[C, m]``.
        """
        members = [i for run in plan.runs for i in run.members]
        leaves, grads = [params[i] for i in members], [graph[i] for i in members]
        h = self._views(plan, params, "h")
        z, dz = torch.zeros_like(beta), torch.zeros_like(self._shifts)
        shift = formulas.injected(self.tangents, self._shifts, gamma)
        if self.kind == "full":
            ch = product(grads, leaves, h[0], create_graph=True)  # type: ignore[arg-type]
            third = product(ch, leaves, h[0])
            cq = product(grads, leaves, self._views(plan, params, "q")[0])  # type: ignore[arg-type]
            lists = [[x.detach() for x in ch], third, cq]
        else:
            lists = [product(grads, leaves, v) for v in h]  # type: ignore[arg-type]
        at = 0
        for run in plan.runs:
            part = slice(at, at + len(run.members))
            at = part.stop
            tensors = leaves[part]
            rows = [torch.cat([x.reshape(-1) for x in row[part]]) for row in lists]
            products = torch.stack(rows).to(compute_dtype(run.pack.dtype))
            group = groups[run.pack.group]
            n = numbers_of(group, self.base, ages[run.members[0]], gamma)
            sides = run.loaded(tensors, scratch)
            self._run(run, sides, products, multiplier(group), n, beta, shift, z, dz)
            run.unload(sides[0], tensors)
        return z, gamma * dz

    def carry(
        self,
        before: State,
        z: Tensor,
        dz: Tensor,
        taken: Tensor,
        lr: float,
        betas: Sequence[float],
        gamma: float,
    ) -> None:
        """Y after the meta step (``taken [m]``: where there was one); ``before``: the meta state
        that it began with.
        """
        if self.kind == "l":
            return
        shift = formulas.injected(self.tangents, self._shifts, gamma)
        moved = formulas.meta_tangents(
            self.meta, before, z, lr, betas, shift, self.tangents, dz, gamma
        )
        still = {name: shift if name == "beta" else gamma * x for name, x in self.tangents.items()}
        self.tangents = {name: torch.where(taken, moved[name], x) for name, x in still.items()}

    def reset(self, plan: Plan, beta: Tensor) -> None:
        """All tangents as in the beginning."""
        self.start(beta)
        for run in plan.runs:
            for name in self.state_names():
                run.pack.state[name].zero_()

    def _views(self, plan: Plan, params: Sequence[Tensor], name: str) -> list[list[Tensor]]:
        """A tangent of the weights as one list of tensors for each column."""
        whole = []
        for run in plan.runs:
            first = run.pack.members.index(run.members[0])
            for k, i in enumerate(run.members):
                whole.append(run.pack.views(first + k, params[i].shape)[name])
        return [[x[c] for x in whole] for c in range(self.columns)]

    def _run(
        self,
        run: Run,
        sides: tuple[Tensor, Tensor],
        products: Tensor,
        lr: Number,
        n: Numbers,
        beta: Tensor,
        shift: Tensor,
        z: Tensor,
        dz: Tensor,
    ) -> None:
        """Add a run's part of z and dz, then make its step."""
        gamma, dtype, device = n.gamma, compute_dtype(run.pack.dtype), run.pack.device
        weights, grads = sides
        for piece, state in zip(run.pieces, run.states):
            w, g = weights[piece.part].to(dtype), grads[piece.part].to(dtype)
            p, h = products[:, piece.part], state["h"]
            if self.columns == 1:
                piece.add_sums(h[0] * g, z)
                piece.add_sums(
                    h[0] * p[0] + (g * state["q"][0] if self.kind == "full" else 0.0), dz[0]
                )
            else:
                z += (h @ g).to(z)
                dz += (p @ h.T).to(dz)
            own_beta = piece.spread(beta.to(device), beta.dtype)
            own_shift = piece.spread(shift.to(device), beta.dtype)
            if self.kind == "full":
                alpha, moved = lr * own_beta.exp(), own_shift[0]
                ch, third, cq = p
                new_w, h1, q1 = formulas.full_step(
                    w, g, h[0], state["q"][0], ch, third, cq, alpha, moved, n
                )
                h[0], state["q"][0] = h1, q1
            else:
                columns = []
                for c in range(self.columns):
                    of_state = {name: gamma * state[f"h_{name}"][c] for name in self.base.state}
                    columns.append((gamma * h[c], gamma * p[c], of_state, own_shift[c]))
                moments = {name: state[name] for name in self.base.state}
                new_w, new_state, new_columns = formulas.base_tangents(
                    self.base, w, g, moments, own_beta, lr, n, columns
                )
                for name, x in new_state.items():
                    state[name].copy_(x)
                for c, (tangent, of_state) in enumerate(new_columns):
                    h[c] = tangent
                    for name, x in of_state.items():
                        state[f"h_{name}"][c] = x
            weights[piece.part].copy_(new_w)


def product(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """The derivative of ``<grads, vector>`` by the parameters: a Hessian-vector product where
    ``grads`` are gradients.

    The graph is kept for further products.
    """
    with torch.enable_grad():
        inner = sum((g * v.to(g.dtype)).sum() for g, v in zip(grads, vector))
        if not isinstance(inner, Tensor) or not inner.requires_grad:  # linear in the parameters
            return [torch.zeros_like(p) for p in params]
        products = torch.autograd.grad(
            inner, params, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    return [torch.zeros_like(p) if x is None else x for p, x in zip(params, products)]


def closure_gradients(
    closure: Callable[[], Any] | None, params: Sequence[Tensor], owner: str, *, twice: bool
) -> tuple[Any, list[Tensor | None]]:
    """What the closure returns, and the gradients with their graph; ``.grad`` gets them without it.

    Args:
        twice: whether the graph will be differentiated. Gradients of before are then dropped; else
            the closure may also call a plain backward, which adds to them.

    Raises:
        UserError: the closure leaves nothing to differentiate (twice).
    """
    if closure is None:
        raise UserError(f"{owner} {NEEDS}")
    before = [p.grad for p in params]
    if twice:
        for p in params:
            p.grad = None
    try:
        with torch.enable_grad(), BackwardWatch(params) as watch:
            result = closure()
        grads = [p.grad for p in params]
        if not watch.called:
            grads = _by_loss(result, params, owner, twice)
        elif twice and not any(g.requires_grad for g in grads if g is not None):
            raise UserError(f"{owner} {NEEDS}; it called backward without create_graph")
    except BaseException:
        for p, g in zip(params, before):
            p.grad = g
        raise
    for p, g in zip(params, grads):
        p.grad = None if g is None else g.detach()
    return result.detach() if isinstance(result, Tensor) else result, grads


def _by_loss(loss: Any, params: Sequence[Tensor], owner: str, twice: bool) -> list[Tensor | None]:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise UserError(f"{owner} {NEEDS}")
    leaves = [p for p in params if p.requires_grad]
    with torch.enable_grad():
        grads = iter(torch.autograd.grad(loss, leaves, create_graph=twice, allow_unused=True))
    return [next(grads) if p.requires_grad else None for p in params]
