"""Columnwise functions as operators: a kernel for the function and one for its derivative.

    outputs, totals = columnwise(program, shared, channels, columns, sizes)

is ``function(shared, channels, columns)`` for every task and tensor, where ``channels`` are the
values of the tensor. Nothing is kept for the derivative but the inputs; its kernel computes again
what it needs. The function itself, in torch, is the definition: it is what derivatives of
derivatives are taken of, and what runs inside transforms other than vmap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lo_framework.native.operators import levels, operator, over_vmaps
from lo_framework.native.program import PROGRAMS, Function, Program

COMPILED_ON = {"cuda"}  # where torch's compiler makes the kernel, not ours


def columnwise(
    program: Program,
    shared: Sequence[Tensor],
    channels: Tensor,
    columns: Sequence[Tensor],
    sizes: Sequence[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs ``[..., N]`` and the means ``[..., S]`` of what is summed, for one task: ``channels
    [C, S]`` and columns ``[..., N]`` of tensors of these ``sizes``; vmappable.
    """
    if set(levels()) - {"vmap"}:
        return plain(program.function, shared, channels, columns, sizes)
    found = over_vmaps(
        lambda *given: _Columns.apply(program.key, [*sizes], *given),
        [*shared, channels, *columns],
    )
    *outputs, totals = found
    parts = totals.split([math.prod(x) for x in program.totals]) if program.totals else ()
    return outputs, [x.unflatten(0, shape) for x, shape in zip(parts, program.totals)]


def plain(
    function: Function,
    shared: Sequence[Tensor],
    channels: Tensor,
    columns: Sequence[Tensor],
    sizes: Sequence[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """The definition of `columnwise`, for one task."""
    sizes = [*sizes]
    parts = [channels[:, i : i + 1].expand(-1, n) for i, n in enumerate(sizes)]
    outputs, totals = function([*shared], torch.cat(parts, -1), [*columns])
    means = [
        torch.stack([part.mean(-1) for part in x.split(sizes, dim=-1)], dim=-1) for x in totals
    ]
    return outputs, means


def over_tasks(program: Program, sizes: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    """The definition for K tasks: outputs, and all means as ``[K, F, S]``."""
    n = len(program.shared)

    def one(*flat: Tensor) -> tuple[Tensor, ...]:
        made = plain(program.function, flat[:n], flat[n], flat[n + 1 :], sizes)
        means = [x.reshape(-1, x.shape[-1]) for x in made[1]]
        return (*made[0], torch.cat([flat[n][:0], *means]))

    return torch.func.vmap(one)


@cache
def _compiled(key: str, sizes: tuple[int, ...]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """On an accelerator: the definition and its derivative through torch's own compiler."""
    program = PROGRAMS[key]
    n, count = len(program.shared), len(program.shared) + 1 + len(program.columns)
    forward = over_tasks(program, sizes)

    def backward(*given: Tensor) -> tuple[Tensor, ...]:
        found = torch.func.vjp(forward, *given[:count])[1](tuple(given[count:]))
        sums = [x.reshape(len(x), -1) for x in found[:n]]
        return (torch.cat([given[n].reshape(len(given[n]), -1)[:, :0], *sums], 1), *found[n:])

    return torch.compile(forward, dynamic=False), torch.compile(backward, dynamic=False)


def _divide(
    program: Program, given: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, list[Tensor], Sequence[Tensor]]:
    """Shared ``[K, size]``, channels, rows ``[K, rows, N]``, and what comes after them."""
    n, m = len(program.shared), len(program.columns)
    shared = [x.reshape(len(x), -1) for x in given[:n]]
    shared = [x if x.stride(-1) == 1 else x.contiguous() for x in shared]
    channels = given[n] if given[n].stride(-1) == 1 else given[n].contiguous()
    return shared, channels, [_rows(x) for x in given[n + 1 : n + 1 + m]], given[n + 1 + m :]


def _rows(x: Tensor) -> Tensor:
    x = x.reshape(len(x), -1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(given: list[Tensor], sizes: list[int], key: str) -> list[Tensor]:
    if given[0].device.type in COMPILED_ON:
        return [*_compiled(key, tuple(sizes))[0](*(x.detach() for x in given))]
    program = PROGRAMS[key]
    shared, channels, rows, _ = _divide(program, given)
    outputs, totals, _ = program.forward(shared, channels, rows, [0, *accumulate(sizes)])
    num = len(channels)
    found = [x.view(num, *shape, -1) for x, shape in zip(outputs, program.outputs)]
    return [*found, totals / totals.new_tensor(sizes)]


def _backward(given: list[Tensor], sizes: list[int], key: str) -> list[Tensor]:
    """Gradients of what is shared ``[K, numbers]``, of channels and of columns, from the inputs and
    the cotangents of outputs and means.
    """
    if given[0].device.type in COMPILED_ON:
        return [*_compiled(key, tuple(sizes))[1](*(x.detach() for x in given))]
    program = PROGRAMS[key]
    shared, channels, rows, seeds = _divide(program, given)
    count = len(program.outputs)
    if program.totals:
        channels = torch.cat([channels, seeds[count] / seeds[count].new_tensor(sizes)], 1)
    rows += [_rows(x) for x in seeds[:count]]
    found, totals, sums = program.backward(shared, channels, rows, [0, *accumulate(sizes)])
    num = len(channels)
    return [sums, totals, *(x.view(num, *y, -1) for x, y in zip(found, program.columns))]


def _forward_like(given: list[Tensor], sizes: list[int], key: str) -> list[Tensor]:
    program = PROGRAMS[key]
    like, num = given[len(program.shared)], len(given[len(program.shared)])
    found = [like.new_empty(num, *x, sum(sizes)) for x in program.outputs]
    count = sum(math.prod(x) for x in program.totals)
    return [*found, like.new_empty(num, count, len(sizes))]


def _backward_like(given: list[Tensor], sizes: list[int], key: str) -> list[Tensor]:
    program = PROGRAMS[key]
    channels, n = given[len(program.shared)], len(program.shared)
    sums = channels.new_empty(len(channels), sum(math.prod(x) for x in program.shared))
    others = given[n : n + 1 + len(program.columns)]
    return [sums, *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in others)]


_ARGUMENTS = "(Tensor[] given, SymInt[] sizes, str key) -> Tensor[]"
_forward_op = operator("columns", _ARGUMENTS, _forward, _forward_like)
_backward_op = operator("columns_backward", _ARGUMENTS, _backward, _backward_like)


class _Columns(torch.autograd.Function):
    """For K tasks, which are the first dimension of everything."""

    @staticmethod
    def forward(ctx: Any, key: str, sizes: list[int], *given: Tensor) -> tuple[Tensor, ...]:
        ctx.key, ctx.sizes = key, sizes
        ctx.save_for_backward(*given)
        return tuple(_forward_op([*given], sizes, key))

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> Any:
        given = [*ctx.saved_tensors]
        program = PROGRAMS[ctx.key]
        if not torch.is_grad_enabled():
            sums, *others = _backward_op([*given, *seeds], ctx.sizes, ctx.key)
            parts = sums.split([math.prod(x) for x in program.shared], dim=1)
            shared = [x.reshape(-1, *shape) for x, shape in zip(parts, program.shared)]
            return None, None, *shared, *others

        # Somebody wants a derivative of this derivative. Inputs may depend on one another (channels
        # on parameters), and what goes that way is not this function's: hence the aliases.
        given = [x.view_as(x) for x in given]
        made = over_tasks(program, ctx.sizes)(*given)
        reached = [(x, seed) for x, seed in zip(made, seeds) if x.requires_grad]
        wanted = [x for x in given if x.requires_grad]
        found = iter(
            torch.autograd.grad(
                [x for x, _ in reached],
                wanted,
                [seed for _, seed in reached],
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        return None, None, *(next(found) if x.requires_grad else None for x in given)
