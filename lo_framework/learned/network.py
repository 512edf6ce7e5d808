"""The per-parameter network of learned optimizers: two hidden ReLU layers applied to every column
of ``x [F, n]``.

    y = last @ relu(second @ relu(first @ x + first_bias) + second_bias) + last_bias

Its hidden layers are by far the largest tensors of an inner step: with 32 units and 16 tasks of
2,400 parameters each of them is 5 MB, and a plain product, addition and ReLU spend more time moving
them through memory (and on page faults) than computing. Here they are computed in blocks of columns
(and of tasks) that stay in the second-level cache, and the backward pass computes them again, so
that an unroll keeps ``x`` and no hidden layer. The result is that of the formula up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Elements of one hidden layer per block: 512 kB in float32, of which the backward pass needs four.
CPU_BLOCK = 1 << 17


class Weights(NamedTuple):
    """H hidden units, F inputs, O outputs. Inside the operators every tensor has the tasks ``K`` in
    front.
    """

    first: Tensor  # [H, F]
    first_bias: Tensor  # [H, 1]
    second: Tensor  # [H, H]
    second_bias: Tensor  # [H, 1]
    last: Tensor  # [O, H]
    last_bias: Tensor  # [O, 1]


def truncated(rows: int, cols: int, fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """Weights ``[rows, cols]`` of a layer with ``fan_in`` inputs: normal, cut off at two."""
    w = torch.empty(rows, cols)
    return nn.Parameter(
        nn.init.trunc_normal_(w, std=fan_in**-0.5, a=-2.0, b=2.0, generator=generator)
    )


def applied(x: Tensor, weights: Weights, in_kernel: bool) -> Tensor:
    """``[F, n]`` to ``[O, n]``: a kernel is made of the formula."""
    return formula(x, *weights) if in_kernel else network(x, weights)


def network(x: Tensor, weights: Weights) -> Tensor:
    """``[F, n]`` to ``[O, n]``; vmappable and differentiable (to any order) by whatever
    differentiates torch code.
    """
    levels = {level.key() for level in torch._C._functorch.get_interpreter_stack() or ()}
    # A custom operator has no rule for other levels than vmap's.
    if torch.compiler.is_compiling() or levels - {torch._C._functorch.TransformType.Vmap}:
        return formula(x, *weights)
    if levels:
        return _forward(x, *weights)  # the dimension of the vmap is the operator's own
    return _forward(*(t[None] for t in (x, *weights)))[0]


def formula(x: Tensor, *weights: Tensor) -> Tensor:
    """The definition: what the blocked operators are held to, and what derivatives they do not know
    are taken of.
    """
    first, first_bias, second, second_bias, last, last_bias = weights
    h = torch.relu(first @ x + first_bias)
    h = torch.relu(second @ h + second_bias)
    return last @ h + last_bias


def _blocks(x: Tensor, hidden: int, layers: int) -> Iterator[tuple[slice, slice, list[Tensor]]]:
    """Tasks and columns of each block of ``x [K, F, n]``, with memory for as many hidden layers,
    which all blocks share; a device without such caches takes all at once.
    """
    num, _, n = x.shape
    rows, columns = num, n
    if x.device.type == "cpu":
        columns = max(1, CPU_BLOCK // hidden)
        rows = max(1, columns // max(n, 1))
    rows, columns = max(1, min(rows, num)), max(1, min(columns, n))
    memory = [x.new_empty(rows, hidden, columns) for _ in range(layers)]
    views, shape = memory, (rows, hidden, columns)
    for r in range(0, num, rows):
        for c in range(0, n, columns):
            now = (min(rows, num - r), hidden, min(columns, n - c))
            if now != shape:  # at the ends only: a view costs as much as a small product
                shape = now
                views = [piece.view(-1)[: math.prod(shape)].view(shape) for piece in memory]
            yield slice(r, r + shape[0]), slice(c, c + shape[2]), views


@torch.library.custom_op("lo_framework::network", mutates_args=())
def _forward(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    last: Tensor,
    last_bias: Tensor,
) -> Tensor:
    """``[K, F, n]`` to ``[K, O, n]``."""
    y = x.new_empty(x.shape[0], last.shape[1], x.shape[2])
    for r, c, (h1, h2) in _blocks(x, first.shape[1], 2):
        torch.bmm(first[r], x[r, :, c], out=h1).add_(first_bias[r]).relu_()
        torch.bmm(second[r], h1, out=h2).add_(second_bias[r]).relu_()
        torch.add(torch.bmm(last[r], h2), last_bias[r], out=y[r, :, c])
    return y


@torch.library.custom_op("lo_framework::network_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    last: Tensor,
    last_bias: Tensor,
) -> list[Tensor]:
    """Gradients of ``x`` and of the six weights, from ``dy [K, O, n]``; hidden layers are computed
    again.
    """
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    weights = (first, first_bias, second, second_bias, last, last_bias)
    grads = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights]
    masked = torch.ops.aten.threshold_backward.grad_input
    for r, c, (h1, h2, d1, d2) in _blocks(x, first.shape[1], 4):
        dfirst, dfirst_bias, dsecond, dsecond_bias, dlast, dlast_bias = (g[r] for g in grads)
        inputs, d = x[r, :, c], dy[r, :, c]
        torch.bmm(first[r], inputs, out=h1).add_(first_bias[r]).relu_()
        torch.bmm(second[r], h1, out=h2).add_(second_bias[r]).relu_()
        dlast.baddbmm_(d, h2.mT)
        dlast_bias.add_(d.sum(-1, keepdim=True))
        masked(torch.bmm(last[r].mT, d, out=d2), h2, 0, grad_input=d2)
        dsecond.baddbmm_(d2, h1.mT)
        dsecond_bias.add_(d2.sum(-1, keepdim=True))
        masked(torch.bmm(second[r].mT, d2, out=d1), h1, 0, grad_input=d1)
        dfirst.baddbmm_(d1, inputs.mT)
        dfirst_bias.add_(d1.sum(-1, keepdim=True))
        torch.bmm(first[r].mT, d1, out=dx[r, :, c])
    return [dx, *grads]


@_forward.register_fake
def _(x: Tensor, *weights: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weights[4].shape[1], x.shape[2])


@_backward.register_fake
def _(dy: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pull(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return tuple(_backward(dy, *inputs))
    # Somebody wants a derivative of this derivative. In an unroll x depends on the weights, which
    # is not this function's affair: hence the aliases.
    inputs = tuple(x.view_as(x) for x in inputs)
    wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad) if needed]
    gradients = iter(torch.autograd.grad(formula(*inputs), wanted, dy, create_graph=True))
    return tuple(next(gradients) if needed else None for needed in ctx.needs_input_grad)


def _batched(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule: the new dimension is the operator's own task dimension, or (of nested vmaps)
    joins it. No view is made without need: each is a node of every step's graph.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Any, Any]:
        size = info.batch_size
        moved = [
            a.expand(size, *a.shape) if d is None else a.movedim(d, 0) if d else a
            for a, d in zip(args, in_dims)
        ]
        if moved[0].dim() == 3:
            out = operator(*moved)
            return out, 0 if isinstance(out, Tensor) else [0] * len(out)
        out = operator(*(a.flatten(0, 1) for a in moved))
        if isinstance(out, Tensor):
            return out.unflatten(0, (size, -1)), 0
        return [o.unflatten(0, (size, -1)) for o in out], [0] * len(out)

    return rule


_forward.register_autograd(_pull, setup_context=_save)
_forward.register_vmap(_batched(_forward))
_backward.register_vmap(_batched(_backward))
