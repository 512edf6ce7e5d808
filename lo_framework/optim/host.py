"""The host of an update rule inside a face: one update of many tensors, in cache-sized chunks, written in place.

    measure every chunk  ->  means over tensors  ->  condition over all tensors  ->  apply to every chunk

It equals ``LearnedOptimizer.forward`` on the whole arena, with memory for one chunk at a time beside the state itself. Nothing
waits for the device: there is no number here that Python looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.base import LearnedOptimizer, State
from lo_framework.optim.packs import Run

Multiplier = float | Tensor


@dataclass(eq=False)
class Work:
    """One run with this step's tensors."""

    run: Run
    learned: LearnedOptimizer  # on the run's device
    tensors: list[Tensor]  # the parameters themselves
    params: Tensor  # [n]; for a single contiguous tensor its own memory
    grads: Tensor  # [n]
    state: State  # [..., n], the store's own memory
    lr: Multiplier

    @property
    def single(self) -> bool:
        return len(self.tensors) == 1


def gather(run: Run, learned: LearnedOptimizer, params: list[Tensor], lr: Multiplier, dtype: torch.dtype) -> Work:
    """The tensors of a run side by side. A single one is not copied where its memory is in order."""
    tensors = [params[i] for i in run.members]
    grads = [_grad(p) for p in tensors]
    if len(tensors) == 1:
        flat, flat_grad = tensors[0].detach().reshape(-1), grads[0].reshape(-1)
    else:
        flat = torch.cat([p.detach().reshape(-1) for p in tensors]).to(dtype)
        flat_grad = torch.cat([g.reshape(-1) for g in grads]).to(dtype)
    return Work(run, learned, tensors, flat, flat_grad, run.state, lr)


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def chunks(work: Work, size: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, State, slice]]:
    """(params, grads, state) of one chunk after the other, in the dtype of computation."""
    n = work.params.shape[0]
    if not work.single or n <= size:
        yield work.params.to(dtype), work.grads.to(dtype), work.state, slice(0, n)
        return
    for begin in range(0, n, size):
        part = slice(begin, min(begin + size, n))
        state = {name: x[..., part] for name, x in work.state.items()}
        yield work.params[part].to(dtype), work.grads[part].to(dtype), state, part


def prepare(work: Work, layout: Layout, shared: State, dtype: torch.dtype) -> None:
    """Let the rule update state that needs whole tensors; most rules return what they got."""
    if type(work.learned).prepare is LearnedOptimizer.prepare:
        return
    prepared = work.learned.prepare(layout, work.grads.to(dtype), {**shared, **work.state})
    _store(work.state, prepared)


def means(work: Work, size: int, dtype: torch.dtype, shared: State) -> Tensor:
    """``[F, tensors of the run]``: means of the measured quantities; sums are pairwise within and over chunks."""
    parts = []
    for params, grads, state, _ in chunks(work, size, dtype):
        measured = work.learned.measure(params, grads, {**shared, **state})
        if not work.single:
            return work.run.layout.mean(measured)
        parts.append(measured.sum(-1))
    return (torch.stack(parts).sum(0) / work.params.shape[0])[:, None]


def apply(
    work: Work, channels: Tensor, values: Tensor, size: int, dtype: torch.dtype, shared: State,
    squares: list[Tensor] | None,
) -> None:  # fmt: skip
    """Update the run's parameters and state in place; ``channels [C, tensors of the run]``, ``values [D]``.

    ``squares`` collects the sums of squares of the unscaled updates.
    """
    if not work.single:
        channels = work.run.layout.expand(channels)
    for params, grads, state, part in chunks(work, size, dtype):
        new, new_state = work.learned.apply(channels, values, params, grads, {**shared, **state})
        if squares is not None:
            squares.append((new - params).square_().sum())
        if not (isinstance(work.lr, float) and work.lr == 1.0):
            new = params + work.lr * (new - params)
        _store(state, new_state)
        work.params[part].copy_(new)
    _write_back(work)


def _store(state: State, new: State) -> None:
    for name, target in state.items():
        if new[name] is not target:
            target.copy_(new[name])


def _write_back(work: Work) -> None:
    """From the flat vector into the parameters, unless it is their own memory."""
    if work.single:
        p = work.tensors[0]
        if work.params.data_ptr() != p.data_ptr():
            p.copy_(work.params.view_as(p))
        return
    parts = work.params.split([p.numel() for p in work.tensors])
    for p, part in zip(work.tensors, parts):
        p.copy_(part.view_as(p))


Condition = Callable[[Tensor], tuple[Tensor, Tensor]]


def update(
    works: list[Work], order: Tensor | None, condition: Condition, shared: State, *,
    measured: bool, size: dict[torch.device, int], dtype: torch.dtype, squares: list[Tensor] | None = None,
) -> None:  # fmt: skip
    """One update. ``condition`` maps statistics ``[F, S]`` in list order to channels ``[C, S]`` and shared values ``[D]``."""
