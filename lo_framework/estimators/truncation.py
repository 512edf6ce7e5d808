"""Truncated unrolls: where each task of a shard stands in its episode, and the data it sees next.

An episode has a length (its horizon, to which progress refers); every outer step advances all tasks
of the shard by ``unroll_length`` inner steps. A task that reaches its end inside a truncation is
masked out for the rest of it and starts a new episode at the next one. Tasks are desynchronised by
cutting each one's first episode at a random place: otherwise all would restart together and the
meta-loss would beat with the episode length.

A shard whose episodes are in common (`Unroller.episode`) restarts as a whole: its host draws
another problem then, and begins a new state.

Everything random comes from one generator a shard; where an episode ends is known on the host, so
no device is ever waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._pytree import tree_map

from lo_framework.episode import Carry, Draw, Need, Step, canonical
from lo_framework.estimators.state import UnrollState
from lo_framework.inner.step import Family
from lo_framework.learned.base import Clock, Theta
from lo_framework.objectives import Objective
from lo_framework.optimizees.task import Batch, Task
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """``episode``: (shortest, longest) length; unequal ones are drawn log-uniformly at every
    restart. ``hide_progress``: the share of episodes whose clock tells nothing. ``step_range``: the
    step of an episode is multiplied by what is drawn log-uniformly in [1 / step_range, step_range].
    ``prolong``: the share of episodes that are, in place of a restart, the one before made longer
    by another length (ELO, arXiv 2607.06772: training states that a short episode never sees).
    """

    unroll_length: int = 20
    episode: tuple[int, int] = (200, 200)
    hide_progress: float = 0.0
    step_range: float = 1.0
    prolong: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.episode
        if self.unroll_length < 1 or low < 1 or high < low:
            raise UserError(
                f"unroll length {self.unroll_length} and episode length {low}-{high} "
                "must be at least 1, shortest first"
            )
        if not (0 <= self.hide_progress <= 1 and 1 <= self.step_range < math.inf):
            raise UserError(
                f"a share of {self.hide_progress} episodes without progress must be in [0, 1], and "
                f"a range of steps ({self.step_range}) at least 1"
            )
        if not 0 <= self.prolong < 1:
            raise UserError(f"a share of {self.prolong} prolonged episodes must be in [0, 1)")

    def horizon(self, generator: torch.Generator) -> int:
        low, high = self.episode
        u = torch.rand((), generator=generator, dtype=torch.float64).item()
        drawn = int(math.exp(math.log(low) + u * (math.log(high + 1) - math.log(low))))
        return min(high, max(low, drawn))  # exp(log(n)) may round to just below n

    def draw(self, generator: torch.Generator, num: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Horizons of ``num`` episodes and what else is drawn for each: ``hidden`` and ``scale``,
        where they are in use.
        """
        horizon = torch.tensor([self.horizon(generator) for _ in range(num)])
        drawn = {}
        if self.hide_progress:
            drawn["hidden"] = torch.rand(num, generator=generator) < self.hide_progress
        if self.step_range > 1:
            u = 2 * torch.rand(num, generator=generator) - 1
            drawn["scale"] = (u * math.log(self.step_range)).exp()
        return horizon, drawn


class Sums(NamedTuple):
    """Sums over some inner steps, ``[copies K]``."""

    score: Tensor
    penalty: Tensor  # of the absorbed regularizer: to be added to the score
    terms: dict[str, Tensor]  # what else the objective reports; constants

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        terms = {name: x + other.terms[name] for name, x in self.terms.items()}
        return Sums(self.score + other.score, self.penalty + other.penalty, terms)


@dataclass(eq=False)
class Unroller:
    """Starts, restarts and runs truncations of ``num`` tasks of one family.

    ``episode``: the number of the one that all tasks have in common (None: each has its own, one
    after the other). It is cut at a random place if it is the first, and then nothing restarts.
    """

    family: Family
    objective: Objective
    truncation: Truncation
    num: int
    copies: int = 1
    episode: int | None = None
    teaching: float = 0.0  # the family's teacher's share of the steps, for now

    def __post_init__(self) -> None:
        if self.num < 1:
            raise UserError(f"a shard needs at least one task, not {self.num}")

    @property
    def task(self) -> Task:
        return self.family.task

    @property
    def second_batch(self) -> bool:
        """Whether steps see a batch beside the training one: held-out data, or for a regularizer
        more training data.
        """
        absorption = self.family.absorption
        independent = absorption is not None and absorption.independent
        return independent or Need.HELD in self.objective.needs

    @property
    def alpha(self) -> float:
        """The share of GSAM's decomposition of meta-gradients; 0: none."""
        return self.family.absorption.alpha if self.family.absorption is not None else 0.0

    def init(self, generator: torch.Generator) -> UnrollState:
        carry = tree_map(self._repeat, self.family.start(generator, self.num))
        count = self.num if self.episode is None else 1
        horizon, drawn = self.truncation.draw(generator, count)
        stop = horizon
        if not self.episode:  # the first
            share, length = torch.rand(count, generator=generator), self.truncation.unroll_length
            stop = (horizon * share).long().clamp_min(1)
            stop = torch.minimum((stop / length).ceil().long() * length, horizon)
        t = torch.zeros(self.num, dtype=torch.long)
        horizon, stop, drawn = tree_map(
            lambda x: x.repeat(self.num // count), (horizon, stop, drawn)
        )
        return UnrollState(carry, t, horizon, stop, generator, {}, drawn)

    def restart_finished(self, state: UnrollState) -> tuple[UnrollState, Tensor]:
        """New episodes for tasks whose last one is over or not finite; also which ones, ``[K]``
        bool on the host.
        """
        done = state.t >= state.stop
        if self.episode is not None:
            done = torch.zeros_like(done)
        if bool(done.any()) and self.truncation.prolong:
            u = torch.rand(self.num, generator=state.generator)
            longer = done & self._alive(state.carry) & (u < self.truncation.prolong)
            state, done = self._longer(state, longer), done & ~longer
        count = int(done.sum())
        if not count:
            return state, done
        fresh = self.family.start(state.generator, count)
        rows = done.nonzero()[:, 0]
        new, more = self.truncation.draw(state.generator, count)
        horizon, t = state.horizon.index_copy(0, rows, new), state.t.index_fill(0, rows, 0)
        drawn = {name: x.index_copy(0, rows, more[name]) for name, x in state.drawn.items()}
        stop = torch.where(done, horizon, state.stop)
        where = torch.cat([rows + copy * self.num for copy in range(self.copies)]).to(
            state.carry.params.device
        )
        carry = tree_map(
            lambda old, new: old.index_copy(0, where, torch.cat([new] * self.copies)),
            state.carry,
            fresh,
        )
        return replace(state, carry=carry, horizon=horizon, stop=stop, t=t, drawn=drawn), done

    def prolonged(self, state: UnrollState) -> UnrollState | None:
        """An episode in common that is over, made longer; None where a restart was drawn, or where
        a task is not finite.
        """
        share = self.truncation.prolong
        if not share or not bool(self._alive(state.carry).all()):
            return None
        if float(torch.rand((), generator=state.generator)) >= share:
            return None
        return self._longer(state, torch.ones(self.num, dtype=torch.bool), in_common=True)

    def _longer(self, state: UnrollState, which: Tensor, *, in_common: bool = False) -> UnrollState:
        """The episodes ``which [K]`` have another length added to the steps that they have done."""
        count = 1 if in_common else self.num
        more, drawn = self.truncation.draw(state.generator, count)
        more, drawn = tree_map(lambda x: x.repeat(self.num // count), (more, drawn))
        horizon = torch.where(which, state.t + more, state.horizon)
        stop = torch.where(which, horizon, state.stop)
        drawn = {name: torch.where(which, x, state.drawn[name]) for name, x in drawn.items()}
        return replace(state, horizon=horizon, stop=stop, drawn=drawn)

    def _alive(self, carry: Carry) -> Tensor:
        """Tasks all of whose copies are finite, ``[K]`` on the host."""
        return carry.alive.reshape(self.copies, self.num).all(0).cpu()

    def draw(self, state: UnrollState, i: int) -> tuple[Draw, Tensor]:
        """Data of the truncation's i-th step for all copies, and each task's weight ``[copies K]``,
        0 past its end.
        """
        task, generator = self.task, state.generator
        train = task.batch("train", generator, (self.num,))
        split = "valid" if Need.HELD in self.objective.needs else "train"
        held: Batch = task.batch(split, generator, (self.num,)) if self.second_batch else ()
        third = Need.SECOND in self.objective.needs
        second: Batch = task.batch("train", generator, (self.num,)) if third else ()
        noise = torch.randint(2**62, (self.num,), generator=generator)
        now = state.t + i
        progress = (now / state.horizon).clamp_max(1.0).float()
        live = (now < state.stop).float()
        weight: tuple[Tensor, ...] = ()
        if self.family.absorption is not None:
            weights = live * self.family.absorption.weights(now, state.horizon)
            if bool(weights.any()):  # else no task has a penalty at this step, and none is computed
                weight = (weights.to(task.device),)
        horizon = state.horizon.float()
        if (hidden := state.drawn.get("hidden")) is not None:
            progress, horizon = (x.masked_fill(hidden, 0.0) for x in (progress, horizon))
        scale = [state.drawn["scale"]] if "scale" in state.drawn else []
        numbers = (noise, progress, horizon, live, *scale)
        noise, progress, horizon, live, *scale = (x.to(task.device) for x in numbers)
        clock = Clock(progress, horizon)
        taught = (torch.full_like(live, self.teaching),) if self.teaching else ()
        draw = Draw(train, held, noise, clock, weight, second, tuple(scale), taught)
        if self.copies > 1:  # by hand: a tree_map at every step would be felt
            fields: list[Any] = [
                tuple(map(self._repeat, x)) if isinstance(x, tuple) else self._repeat(x)
                for x in draw
            ]
            draw = Draw(*fields)._replace(clock=Clock(*map(self._repeat, draw.clock)))
        return draw, self._repeat(live)

    def run(
        self, step: Step, theta: Theta, carry: Carry, state: UnrollState, steps: range
    ) -> tuple[Carry, Sums]:
        """The end of these inner steps of the truncation, and sums over them."""
        sums: Sums | None = None  # added up as they come: memory does not grow with the steps
        for i in steps:
            with temporarily_clear_interpreter_stack():  # inside a vmap, nothing random is drawn
                draw, live = self.draw(state, i)
            carry, losses = step(theta, carry, draw)
            score, terms = self.objective.measure(self.task, losses, self.copies == 2)
            terms = {name: value * live for name, value in terms.items()}
            part = Sums(score * live, losses.penalty, terms)
            sums = part if sums is None else sums.plus(part)
        assert sums is not None
        return carry, sums

    def summary(self, state: UnrollState, sums: Sums) -> dict[str, float]:
        """Metrics of a truncation from ``state``, over the steps that counted.

        Terms of the objective are ``term_NAME``; where it has a ``level`` that tells who diverged,
        else the score does.

        Masked steps add nothing to the score: dividing by the unroll length would make the
        meta-loss dip at every episode's end.
        """
        score, penalty, terms = sums.score.cpu(), sums.penalty.sum().cpu(), dict(sums.terms)
        live = (state.stop - state.t).clamp(1, self.truncation.unroll_length).to(score.dtype)
        live = self._repeat(live)
        level = terms.pop("level", score).cpu()
        means = {f"term_{name}": value.sum().cpu() for name, value in terms.items()}
        if self.family.absorption is not None or self.teaching:
            means["penalty"] = penalty
        return {
            "meta_loss": float((score.sum() + penalty) / live.sum()),
            "diverged": float((level / live > 1.5).double().mean()),
            **{name: float(total / live.sum()) for name, total in means.items()},
        }

    def advance(self, state: UnrollState, carry: Carry) -> UnrollState:
        """After a truncation: move every clock; a task that went non-finite ends its episode."""
        t = torch.minimum(state.t + self.truncation.unroll_length, state.stop)
        stop = torch.where(self._alive(carry), state.stop, t)
        return replace(state, carry=canonical(carry), t=t, stop=stop)

    def _repeat(self, x: Tensor) -> Tensor:
        """Once for each antithetic copy."""
        return x if self.copies == 1 else torch.cat([x] * self.copies)
