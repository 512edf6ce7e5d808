"""``tbptt``: back-propagation through a truncation of the inner loop.

Low variance, but blind to whatever happens after the truncation: short ones favour small steps.
``second_order`` differentiates through the inner gradients as well. ``segments`` trades time for
memory: the unroll is cut in segments, only their starting states are kept, and each segment is run
again when its turn in the backward sweep comes, so memory grows with ``segments + T / segments``
(sqrt(T) for ``segments = 0``, which chooses sqrt(T) segments) for one more forward pass.

The meta-gradient is taken per task (theta is batched), so that a task whose gradient is not finite
is left out and counted.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import reduce
from typing import Annotated

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lo_framework.episode import Carry, tile_theta
from lo_framework.estimators.base import ESTIMATORS, MetaGradient
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.truncation import Sums, Unroller
from lo_framework.inner.graph import Flat
from lo_framework.learned.base import Theta
from lo_framework.schema import Checked, NotNegative, Range


@dataclass(frozen=True, kw_only=True)
class TBPTTConfig(Checked):
    """``clip_task``: largest norm of one task's meta-gradient (0: none), so that none can own the
    mean.
    """

    second_order: bool = True
    segments: Annotated[int, Range(low=0)] = 1
    clip_task: NotNegative = 0.0


@ESTIMATORS.register("tbptt", config=TBPTTConfig, unrolls=True)
class TBPTT:
    def __init__(self, config: TBPTTConfig, unroller: Unroller) -> None:
        self.config, self.unroller = config, unroller
        self.step = unroller.family.step(
            unroller.objective.needs, second_order=config.second_order, differentiable=True
        )
        length = unroller.truncation.unroll_length
        segments = min(config.segments or round(math.sqrt(length)), length)
        bounds = [round(i * length / segments) for i in range(segments + 1)]
        self.segments = [range(begin, end) for begin, end in itertools.pairwise(bounds)]

    def init_state(self, theta: Theta, generator: torch.Generator) -> UnrollState:
        return self.unroller.init(generator)

    def estimate(self, theta: Theta, state: UnrollState) -> tuple[MetaGradient, UnrollState]:
        """One truncation of every task and the gradient of its mean score."""
        state, _ = self.unroller.restart_finished(state)
        tiled = tile_theta(theta, self.unroller.num)
        starts = self._forward(tiled, state)
        # One sweep pulls back the whole objective; where GSAM decomposes meta-gradients, another
        # the plain one.
        sweeps = 2 if self.unroller.alpha else 1
        grads: list[Theta] = [
            {name: torch.zeros_like(x) for name, x in tiled.items()} for _ in range(sweeps)
        ]
        cotangents: list[Flat] = [() for _ in range(sweeps)]
        parts = []
        last = len(starts) - 1
        for s in range(last, -1, -1):
            carry, random_state = starts[s]
            state.generator.set_state(random_state)
            end, sums, pulled = self._segment(tiled, carry, state, s, cotangents)
            parts.append(sums)
            cotangents = [before for _, before in pulled]
            grads = [
                {n: g + found[n] for n, g in each.items()}
                for each, (found, _) in zip(grads, pulled)
            ]
            if s == last:
                final, final_random = end, state.generator.get_state()
        state.generator.set_state(final_random)
        return self._estimate(state, grads, reduce(Sums.plus, parts), final)

    def _estimate(
        self, state: UnrollState, grads: list[Theta], sums: Sums, final: Carry
    ) -> tuple[MetaGradient, UnrollState]:
        """The estimate from each sweep's gradients ``[K, ...]`` of the summed scores of a
        truncation from ``state`` to ``final``.
        """
        length = self.unroller.truncation.unroll_length
        scaled = [{n: g / length for n, g in each.items()} for each in grads]
        (mean, *plain), bad, clipped = combine(scaled, self.config.clip_task, final.alive)
        metrics = {
            **self.unroller.summary(state, sums),
            "nonfinite": bad,
            "task_clipped": clipped,
        }
        estimate = MetaGradient(mean, metrics, plain[0] if plain else None)
        return estimate, self.unroller.advance(state, final)

    def _forward(self, theta: Theta, state: UnrollState) -> list[tuple[Carry, Tensor]]:
        """Start of every segment and the generator's state there; the last segment itself is not
        run.
        """
        carry = state.carry
        starts = [(carry, state.generator.get_state())]
        with torch.no_grad():
            for steps in self.segments[:-1]:
                carry, _ = self.unroller.run(self.step, theta, carry, state, steps)
                starts.append((carry, state.generator.get_state()))
        return starts

    def _segment(
        self, theta: Theta, carry: Carry, state: UnrollState, s: int, cotangents: list[Flat]
    ) -> tuple[Carry, Sums, list[tuple[Theta, Flat]]]:
        """Run segment ``s`` and pull back through it, for each sweep, its score and the next
        segment's cotangents.
        """
        leaves, spec = tree_flatten(carry)
        moving = [x.is_floating_point() for x in leaves]
        theta = {name: x.detach().requires_grad_() for name, x in theta.items()}
        # There is nothing to pull back to before the first segment, but a first step unlike all
        # others would have to be recorded (and compiled) too.
        if s or self.unroller.family.engine.fixed:
            leaves = [x.detach().requires_grad_() if m else x for x, m in zip(leaves, moving)]
        carry = tree_unflatten(leaves, spec)
        # Plain autograd, not torch.func.vjp: without a level of its own each operation costs less.
        with torch.enable_grad():
            end, sums = self.unroller.run(self.step, theta, carry, state, self.segments[s])
        inputs = [*theta.values(), *(x for x, m in zip(leaves, moving) if m and s)]
        ends = [x for x in tree_leaves(end) if x.is_floating_point()]
        pulled = []
        for sweep, cotangent in enumerate(cotangents):
            score = sums.score if sweep else sums.score + sums.penalty
            outputs = [(score, torch.ones_like(score)), *zip(ends, cotangent)]
            outputs = [(x, seed) for x, seed in outputs if x.requires_grad]
            found = pull(outputs, inputs, keep=sweep + 1 < len(cotangents))
            pulled.append((dict(zip(theta, found)), found[len(theta) :]))
        return *tree_map(Tensor.detach, (end, sums)), pulled


def pull(
    outputs: list[tuple[Tensor, Tensor]], inputs: list[Tensor], keep: bool = False
) -> tuple[Tensor, ...]:
    """Gradients of ``inputs`` (zero for what the outputs do not depend on), given (output, its
    cotangent) pairs.
    """
    if not outputs:
        return tuple(torch.zeros_like(x) for x in inputs)
    tensors, seeds = zip(*outputs)
    found = torch.autograd.grad(
        tensors, inputs, seeds, allow_unused=True, materialize_grads=True, retain_graph=keep or None
    )
    return tuple(x.detach() for x in found)  # zeros ask for a gradient, in older releases of torch


def combine(
    grads: list[Theta], clip_task: float = 0.0, alive: Tensor | None = None
) -> tuple[list[Theta], float, float]:
    """Means over tasks of per-task gradients ``[K, ...]``; the fractions of non-finite and of
    clipped tasks.

    There may be several gradients of the same tasks: the first decides on the clipping of all. A
    non-finite gradient is left out, but the sum is still divided by K: a shard in trouble takes
    smaller steps, not noisier ones. The non-finite fraction also counts tasks that are no longer
    ``alive [K]``.
    """
    zero = torch.zeros(())
    norms = [
        sum(((g.reshape(g.shape[0], -1) ** 2).sum(1) for g in each.values()), zero).sqrt()
        for each in grads
    ]
    norm = norms[0]
    good = torch.stack([torch.isfinite(x) for x in norms]).all(0)
    scale = good.to(norm.dtype) / len(norm)
    clipped = 0.0
    if clip_task:
        over = good & (norm > clip_task)
        scale = torch.where(over, scale * clip_task / norm, scale)
        clipped = float(over.float().mean())

    def mean(g: Tensor) -> Tensor:
        safe = torch.where(good.reshape(-1, *[1] * (g.dim() - 1)), g, 0.0)
        return torch.tensordot(scale, safe, dims=1)

    whole = good if alive is None else good & alive
    means = [{name: mean(g) for name, g in each.items()} for each in grads]
    return means, float((~whole).float().mean()), clipped
