"""The arguments and results of an inner step. Everything here is a tuple of tensors, tuples
and dicts: a pytree, which ``torch.utils._pytree`` and ``torch.func`` take as it is.

Tensors have the K tasks in front. An empty tuple stands for what a step does not have.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lo_framework.learned.base import Clock, State, Theta
from lo_framework.optimizees.task import Batch


class Carry(NamedTuple):
    """The state of an episode between two steps."""

    params: Tensor  # [K, N]
    buffers: State
    state: State  # of the learned optimizer
    # [K] bool: False once a loss or a parameter was not finite; the task then stands still
    alive: Tensor
    memory: State  # of regularizers: what they carry


class Draw(NamedTuple):
    """One step's data."""

    train: Batch
    held: Batch  # a held-out batch, or for a regularizer more training data
    noise: Tensor  # [K] int64
    clock: Clock  # [K]
    weight: tuple[Tensor, ...] = ()  # ([K],) of the absorbed regularizer's penalty, at its steps
    second: Batch = ()  # a second training batch
    scale: tuple[Tensor, ...] = ()  # ([K],): factors of the steps, where they have some
    taught: tuple[Tensor, ...] = ()  # ([K],): a teacher's share of the steps, where there is one


class Place(NamedTuple):
    """Where losses are taken."""

    params: Tensor  # [K, N]
    buffers: State
    batch: Batch
    noise: Tensor  # [K] int64: seeds of dropout


class After(NamedTuple):
    """A second look at the point after an update; zeros where nothing was asked for. A task that
    diverged has infinite losses and squares.
    """

    before: Tensor  # [K] held-out loss before the update, on the batch of that after it; a constant
    second: Tensor  # [K] training loss after the update, on a second batch
    squares: Tensor  # [K, S] mean square of its gradient, by tensor
    # [K, S] between it and the gradient that the optimizer saw; 0 where one of them is zero
    cosines: Tensor


class Losses(NamedTuple):
    """A step's losses, for the objective."""

    train: Tensor  # [K] minibatch loss before the update
    held: Tensor  # [K] held-out loss after it (zeros if none was asked for)
    penalty: Tensor  # [K] of the absorbed regularizer, times its weight, and of what is imitated
    after: After | tuple[()] = ()


Step = Callable[[Theta, Carry, Draw], tuple[Carry, Losses]]


class Need(enum.Flag):
    """The quantities of a step that a term of an objective reads, beside the training loss before
    the update.
    """

    HELD = 1  # the held-out loss after the update
    BEFORE = 2  # and before it, on the same batch
    SECOND = 4  # the training loss after the update, on a second batch
    SLOPE = 8  # and its gradient there


NOTHING = Need(0)


def tile_theta(theta: Theta, num: int) -> Theta:
    """One theta for ``num`` tasks (expanded views)."""
    return {name: x.expand(num, *x.shape) for name, x in theta.items()}


def canonical(carry: Carry) -> Carry:
    """A detached contiguous clone. Every truncation passes its state through here, saved or not: a
    strided tensor and its reloaded contiguous copy would sum to different bits.
    """
    return tree_map(lambda x: x.detach().clone(memory_format=torch.contiguous_format), carry)
