"""A teacher that fades: an optimizer that makes a part of the steps, and is imitated by the rest.

    p <- p + w teacher + (1 - w) learner
    score + w (.7 (1 - cos(learner, teacher)) + .3 (log |learner| / |teacher|)^2)

A learned optimizer that begins anywhere would spend its first outer steps where nothing can be
learned; beside a teacher it sees from the first one how training goes (ELO, arXiv 2607.06772, whose
weights these are; there sizes are compared by their difference).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from lo_framework.layout import Layout
from lo_framework.learned.base import Clock, LearnedOptimizer, State

DIRECTION, SIZE = 0.7, 0.3
TINY = 1e-20
FURTHEST = 2.0  # in log size: at the end of its schedule a teacher stands still
ALONE = 0.1  # of the time until it is gone


def fading(done: float, gone: float) -> float:
    """The teacher's share after the share ``done`` of a run in which it is gone at ``gone``: 1 for
    a tenth of that, then linearly to 0.
    """
    return min(1.0, max(0.0, (gone - done) / (gone * (1.0 - ALONE)))) if gone else 0.0


class Teacher:
    """``rule`` with its own settings, which are constants here."""

    def __init__(self, rule: LearnedOptimizer, layout: Layout) -> None:
        self.rule, self.layout = rule.requires_grad_(False), layout

    def init_state(self, params: Tensor) -> State:
        return self.rule.init_state(self.layout, params)

    def together(
        self,
        params: Tensor,
        learned: Tensor,
        grads: Tensor,
        state: State,
        clock: Clock,
        share: Tensor,
    ) -> tuple[Tensor, Tensor, State]:
        """Where both together step from ``params [K, N]``, if the learner alone steps to
        ``learned``; the price ``[K]`` of not doing as the teacher does; the teacher's new state.
        """
        seen = params.detach(), grads.detach()  # what the teacher does teaches nothing by itself
        shown, state = vmap(self._step)(*seen, state, clock)
        ours, theirs = learned - params, shown - seen[0]
        size, other = ((x * x).sum(-1) + TINY for x in (ours, theirs))
        cosine = (ours * theirs).sum(-1) * torch.rsqrt(size * other)
        apart = FURTHEST * torch.tanh(0.5 * torch.log(size / other) / FURTHEST)
        price = DIRECTION * (1.0 - cosine) + SIZE * apart**2
        moved = params + share[:, None] * theirs + (1.0 - share[:, None]) * ours
        return moved, share * price, state

    def _step(
        self, params: Tensor, grads: Tensor, state: State, clock: Clock
    ) -> tuple[Tensor, State]:
        return self.rule(self.layout, params, grads, state, None, clock)
