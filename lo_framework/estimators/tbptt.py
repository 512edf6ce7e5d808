"""``tbptt``: back-propagation through a truncation of the inner loop.

Low variance, but blind to whatever happens after the truncation: short ones favour small steps. ``second_order``
differentiates through the inner gradients as well. ``segments`` trades time for memory: the unroll is cut in segments,
only their starting states are kept, and each segment is run again when its turn in the backward sweep comes, so memory
grows with ``segments + T / segments`` (sqrt(T) for ``segments = 0``, which chooses sqrt(T) segments) for one more
forward pass.

The meta-gradient is taken per task (theta is batched), so that a task whose gradient is not finite is left out and
counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lo_framework.estimators.truncation import Truncation, Unroller, UnrollState, map_carry
from lo_framework.inner.step import Carry, Family, Losses, tile_theta
from lo_framework.learned.base import Theta
from lo_framework.objectives import Objective
from lo_framework.protocols import MetaGradient


@dataclass(frozen=True, kw_only=True)
class TBPTTConfig:
    """``clip_task``: largest norm of one task's meta-gradient (0: none), so that none can own the mean."""

    second_order: bool = True
    segments: int = 1
    clip_task: float = 0.0

    def __post_init__(self) -> None:
        if self.segments < 0 or self.clip_task < 0:
            raise ValueError("segments and clip_task must not be negative")


class TBPTT:
    Config: ClassVar[type] = TBPTTConfig

    def __init__(
        self, family: Family, objective: Objective, truncation: Truncation, num_tasks: int, config: TBPTTConfig
    ) -> None:
        self.unroller = Unroller(family, objective, truncation, num_tasks)
        self.step = family.step(held_out=objective.held_out, second_order=config.second_order, differentiable=True)
        self.config = config
        length = truncation.unroll_length
        segments = min(config.segments or round(math.sqrt(length)), length)
        self.bounds = [round(i * length / segments) for i in range(segments + 1)]

    def init_state(self, theta: Theta, generator: torch.Generator) -> UnrollState:
        return self.unroller.init(generator)

    def estimate(self, theta: Theta, state: UnrollState) -> tuple[MetaGradient, UnrollState]:
        """One truncation of every task and the gradient of its mean score."""
        state, _ = self.unroller.restart_finished(state)
        tiled = tile_theta(theta, self.unroller.num)
        starts = self._forward(tiled, state)
        grads: Theta | None = None
        cotangent: dict[str, Tensor] | None = None
        total = torch.zeros(self.unroller.num, device=state.carry.params.device)
        last = len(starts) - 1
        for s in range(last, -1, -1):
            carry, random_state = starts[s]
            state.generator.set_state(random_state)
            pulled, cotangent, score, end, random_end = self._segment(tiled, carry, state, s, cotangent)
            grads = pulled if grads is None else {name: g + pulled[name] for name, g in grads.items()}
            total = total + score
            if s == last:
                final, final_random = end, random_end
        state.generator.set_state(final_random)
        assert grads is not None
        length = self.unroller.truncation.unroll_length
        scaled = {n: g / length for n, g in grads.items()}
        mean, bad, clipped = combine(scaled, self.config.clip_task, final.alive)
        metrics = {**self.unroller.summary(state, total), "nonfinite": bad, "task_clipped": clipped}
        return MetaGradient(mean, metrics), self.unroller.advance(state, final)

    def _forward(self, theta: Theta, state: UnrollState) -> list[tuple[Carry, Tensor]]:
        """Start of every segment and the generator's state there; the last segment itself is not run."""
        carry = state.carry
        starts = [(carry, state.generator.get_state())]
        with torch.no_grad():
            for begin, end in zip(self.bounds[:-2], self.bounds[1:-1], strict=True):
                carry, _, _ = self.unroller.run(self.step, theta, carry, state, begin, end)
                starts.append((carry, state.generator.get_state()))
        return starts

    def _segment(
        self, theta: Theta, carry: Carry, state: UnrollState, s: int, cotangent: dict[str, Tensor] | None
    ) -> tuple[Theta, dict[str, Tensor], Tensor, Carry, Tensor]:
        """Pull the score's and the next segment's cotangents back through segment ``s``."""
        moving, fixed = _split(carry)
        theta = {name: x.detach().requires_grad_() for name, x in theta.items()}
        # There is nothing to pull back to before the first segment, but a first step unlike all others would have to
        # be recorded (and compiled) too.
        if s or self.unroller.family.engine != "eager":
            moving = {name: x.detach().requires_grad_() for name, x in moving.items()}
        # Plain autograd, not torch.func.vjp: without a level of its own each operation costs less.
        with torch.enable_grad():
            end, score, _ = self.unroller.run(
                self.step, theta, _join(moving, fixed), state, self.bounds[s], self.bounds[s + 1]
            )
        outputs = [(score, torch.ones_like(score))]
        if cotangent is not None:
            outputs += [(x, cotangent[name]) for name, x in _split(end)[0].items()]
        outputs = [(x, seed) for x, seed in outputs if x.requires_grad]
        inputs = [*theta.values(), *(x for x in moving.values() if s)]
        found = list(_pull(outputs, inputs))
        grads = dict(zip(theta, found))
        before = dict(zip(moving, found[len(theta) :]))
        return grads, before, score.detach(), map_carry(Tensor.detach, end), state.generator.get_state()


def _pull(outputs: list[tuple[Tensor, Tensor]], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of ``inputs`` (zero for what the outputs do not depend on), given (output, its cotangent) pairs."""
    if not outputs:
        return tuple(torch.zeros_like(x) for x in inputs)
    tensors, seeds = zip(*outputs)
    return torch.autograd.grad(tensors, inputs, seeds, allow_unused=True, materialize_grads=True)


def _split(carry: Carry) -> tuple[dict[str, Tensor], Carry]:
    """The floating-point part of a carry, by name, and the carry itself for the rest."""
    moving = {"params": carry.params}
    moving |= {f"state.{n}": x for n, x in carry.state.items() if x.is_floating_point()}
    moving |= {f"buffers.{n}": x for n, x in carry.buffers.items() if x.is_floating_point()}
    return moving, carry


def _join(moving: dict[str, Tensor], carry: Carry) -> Carry:
    return Carry(
        moving["params"],
        {n: moving.get(f"buffers.{n}", x) for n, x in carry.buffers.items()},
        {n: moving.get(f"state.{n}", x) for n, x in carry.state.items()},
        carry.alive,
    )


def combine(grads: Theta, clip_task: float = 0.0, alive: Tensor | None = None) -> tuple[Theta, float, float]:
    """Mean over tasks of per-task gradients ``[K, ...]``; the fractions of non-finite and of clipped tasks.

    A non-finite gradient is left out, but the sum is still divided by K: a shard in trouble takes smaller steps, not
    noisier ones. The non-finite fraction also counts tasks that are no longer ``alive [K]``.
    """
    square = sum((g.reshape(g.shape[0], -1) ** 2).sum(1) for g in grads.values())
    assert isinstance(square, Tensor)
    norm = square.sqrt()
    good = torch.isfinite(norm)
    scale = good.to(norm.dtype) / len(norm)
    clipped = 0.0
    if clip_task:
        over = good & (norm > clip_task)
        scale = torch.where(over, scale * clip_task / norm, scale)
        clipped = float(over.float().mean())
    mean = {}
    for name, g in grads.items():
        safe = torch.where(good.reshape(-1, *[1] * (g.dim() - 1)), g, 0.0)
        mean[name] = torch.tensordot(scale, safe, dims=1)
    whole = good if alive is None else good & alive
    return mean, float((~whole).float().mean()), clipped


__all__ = ["TBPTT", "Losses", "TBPTTConfig", "combine"]
