"""One inner step of K tasks of one family: gradients, the learned update and the held-out loss,
under one ``vmap``.

theta is batched like everything else (one copy per task). That is what ES needs, and it makes a
back-propagated meta-gradient come out per task, so that a task whose gradient is not finite can be
left out without touching the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from lo_framework.absorb.absorption import ARENA, Absorption, corrected
from lo_framework.episode import NOTHING, After, Carry, Draw, Losses, Need, Place, Step
from lo_framework.flat_task import FlatTask, is_watched, over_tasks
from lo_framework.inner.engine import Choice, Engine
from lo_framework.inner.recorded import Chosen, Recorded
from lo_framework.inner.teacher import Teacher
from lo_framework.layout import Layout
from lo_framework.learned.base import LearnedOptimizer, State, Theta
from lo_framework.learned.kernels import with_kernels
from lo_framework.native.active import kernels
from lo_framework.objectives.terms import cosine
from lo_framework.optimizees.task import Task


class Family:
    """One optimizee family with one learned optimizer: builds starts and the vmapped step.

    ``engine`` is how steps are run (`inner.engine`). A task that cannot be vmapped always runs
    eagerly.

    ``absorption`` puts a regularizer into the score of each step. A learned optimizer with an
    ``explicit`` regularizer is given corrected gradients. A ``teacher`` makes a part of the steps
    where `Draw.taught` says so, and is imitated (`inner.teacher`).
    """

    def __init__(
        self,
        task: Task,
        learned: LearnedOptimizer,
        engine: str = "eager",
        absorption: Absorption | None = None,
        teacher: LearnedOptimizer | None = None,
    ) -> None:
        self.engine = Engine.parse(engine)
        self.choice = Choice() if self.engine.how == "best" else None
        if self.engine.native:
            learned = with_kernels(learned)
        self.task, self.learned, self.absorption = task, learned, absorption
        params, _ = task.init(torch.Generator().manual_seed(0))
        layout = Layout.of({name: tuple(p.shape) for name, p in params.items()})
        self.layout = layout.to(task.device)
        self.teacher = None if teacher is None else Teacher(teacher, self.layout)

    def start(self, generator: torch.Generator, num: int) -> Carry:
        """Start ``num`` episodes; initial parameters come from ``generator`` in order."""
        return self.start_from([self.task.init(generator) for _ in range(num)])

    def start_from(self, inits: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> Carry:
        """Start episodes from given (params, buffers) pairs."""
        params = torch.stack([self.layout.flatten(p) for p, _ in inits])
        buffers = {name: torch.stack([b[name] for _, b in inits]) for name in inits[0][1]}
        state = vmap(lambda p: self.learned.init_state(self.layout, p))(params)
        alive = torch.ones(len(inits), dtype=torch.bool, device=params.device)
        state, memory = tree_map(
            lambda x: x.clone(memory_format=torch.contiguous_format), (state, self._memory(params))
        )
        return Carry(params, buffers, state, alive, memory)

    def _memory(self, params: Tensor) -> State:
        """Fresh states of the regularizers, by ``explicit.`` and ``absorbed.`` names."""
        explicit, memory = self.learned.explicit(self.learned.theta()), State()
        if explicit is not None:
            start = vmap(lambda p: explicit.init_state({ARENA: p}))(params)
            memory |= _named("explicit", start)
        if self.absorption is not None:
            memory |= _named("absorbed", vmap(self.absorption.init_state)(params))
        if self.teacher is not None:
            memory |= _named("teacher", vmap(self.teacher.init_state)(params))
        return memory

    def step(
        self,
        needs: Need = NOTHING,
        *,
        second_order: bool = False,
        differentiable: bool = False,
        pairs: bool = False,
    ) -> Step:
        """Build the vmapped step, which gives the losses that an objective ``needs``.

        ``second_order`` lets meta-gradients flow through the inner gradients (and so Hessians).
        ``differentiable`` makes the training loss carry a meta-gradient in first-order mode as
        well. ``pairs``: the second half of the tasks are the antithetic twins of the first.
        """
        step = _Step(self, needs, second_order, differentiable, pairs)
        if self.engine.how == "eager" or not self.task.vmappable:
            return step
        how = "graph" if self.choice else self.engine.how
        recorded = Recorded(step, how, asked=self.choice is None)
        return recorded if self.choice is None else Chosen(step, recorded, self.choice)


@dataclass(eq=False)
class _Step:
    """The step of `Family.step`. What is the same for every task and needs no rule of its own stays
    outside vmap, where a call costs less.
    """

    family: Family
    needs: Need
    second_order: bool
    differentiable: bool
    pairs: bool

    def __post_init__(self) -> None:
        family, learned = self.family, self.family.learned
        self.learned, self.absorption = learned, family.absorption
        rule = learned.explicit(learned.theta())
        self.ahead = rule is not None and rule.is_ahead
        self.explicit = rule is not None and not rule.is_ahead
        self.flat = FlatTask(family.task, family.layout)
        self.updated = over_tasks(family.task, self._update)
        # On a CPU, and where nothing is recorded, it costs nothing to look at a number.
        self.looks = family.task.device.type == "cpu"

    def __call__(self, theta: Theta, carry: Carry, draw: Draw) -> tuple[Carry, Losses]:
        with kernels(self.family.engine.native):
            return self._run(theta, carry, draw)

    def _run(self, theta: Theta, carry: Carry, draw: Draw) -> tuple[Carry, Losses]:
        start = Place(carry.params, carry.buffers, draw.train, draw.noise)
        memory = dict(carry.memory)
        if self.ahead:
            loss, grads, new_buffers, memory = self._gradients_ahead(theta, start, memory)
        else:
            loss, grads, new_buffers = self.flat.gradients(start, through=self.second_order)
        # An absorbed regularizer looks at the plain loss and gradient, before any correction.
        plain = loss.detach(), grads.detach()
        if self.explicit:
            grads, memory = self._correct(theta, start, (loss, grads), memory)
        # In first-order mode the loss comes without a graph: d loss / d params is the gradient at
        # hand. It is attached before the rule reads the loss, which must not see this path.
        if self.differentiable and not self.second_order:
            loss = loss + (plain[1] * (carry.params - carry.params.detach())).sum(-1)
        told = loss if self.second_order else loss.detach()
        new_params, new_state = self.updated(
            theta, carry.params, grads, carry.state, told, draw.clock
        )
        for scale in draw.scale:
            new_params = carry.params + scale[:, None] * (new_params - carry.params)
        imitation = torch.zeros_like(loss)
        for share in draw.taught:
            assert self.family.teacher is not None
            new_params, imitation, shown = self.family.teacher.together(
                carry.params, new_params, grads, _group(memory, "teacher"), draw.clock, share
            )
            memory |= _named("teacher", shown)
        # A task that diverged keeps all that it had. Losses beyond this point are taken at kept
        # parameters, so that no NaN enters a graph, where 0 * NaN would be NaN again.
        alive = (
            carry.alive
            & torch.isfinite(loss.detach())
            & torch.isfinite(new_params.detach().sum(-1))
        )
        if self.looks and not is_watched() and bool(alive.all()):
            # The usual case costs no operation.
            params, buffers = new_params, {name: new_buffers[name] for name in carry.buffers}
            state = {name: new_state[name] for name in carry.state}
        else:
            params = _where(alive, new_params, carry.params)
            state = _kept(alive, new_state, carry.state)
            buffers = _kept(alive, new_buffers, carry.buffers)
        end = Place(params, buffers, draw.held, draw.noise)
        held = penalty = torch.zeros_like(loss)
        if Need.HELD in self.needs:
            held, _ = self.flat.losses(end)
        if self.absorption is not None and draw.weight:
            # "independent" is a fresh batch at the new point, which nobody has seen yet.
            later = self.absorption.independent
            penalty, new = self.absorption.penalty(
                self.flat,
                end if later else start,
                () if later or self.ahead else plain,
                _group(memory, "absorbed"),
                self.pairs,
            )
            penalty = draw.weight[0] * _where(alive, penalty, 0.0)
            memory |= _named("absorbed", new)
        if draw.taught:
            penalty = penalty + _where(alive, imitation, 0.0)
        memory = _kept(alive, memory, carry.memory)
        after: After | tuple[()] = ()
        if self.needs & ~Need.HELD:
            after = self._look(carry.params, end, draw, grads, alive)
        losses = Losses(
            _where(alive, loss, torch.inf), _where(alive, held, torch.inf), penalty, after
        )
        return Carry(params, buffers, state, alive, memory), losses

    def _update(self, theta: Theta, *arguments: Any) -> tuple[Tensor, State]:
        """The learned rule for one task."""
        return functional_call(self.learned, theta, (self.flat.layout, *arguments))

    def _correct(
        self, theta: Theta, start: Place, known: tuple[Tensor, Tensor], memory: State
    ) -> tuple[Tensor, State]:
        """Gradients with the learned optimizer's own explicit correction, and the new memory.

        Its settings may be in theta, so it is differentiated wherever theta is; in first-order
        mode the parameters are constants here as they are in the gradients.
        """
        if not self.second_order:
            start = start._replace(params=start.params.detach())
        found = corrected(
            self.flat, self.learned.explicit, start, known, _group(memory, "explicit"), theta
        )
        return known[1] + found.field, memory | _named("explicit", found.state)

    def _gradients_ahead(
        self, theta: Theta, start: Place, memory: State
    ) -> tuple[Tensor, Tensor, State, State]:
        """Losses, gradients and buffers where the learned optimizer wants its only gradients, and
        the new memory. Where that is may depend on theta: see `_correct`.
        """

        def ahead(theta: Theta, state: State) -> Tensor:
            rule = self.learned.explicit(theta)
            assert rule is not None
            return rule.ahead(state)[ARENA]

        def after(theta: Theta, grads: Tensor, state: State) -> State:
            rule = self.learned.explicit(theta)
            assert rule is not None
            return rule.after({ARENA: grads}, state)

        task, state = self.family.task, _group(memory, "explicit")
        params = start.params if self.second_order else start.params.detach()
        seen = start._replace(params=params + over_tasks(task, ahead)(theta, state))
        loss, grads, buffers = self.flat.gradients(seen, through=True)
        memory |= _named("explicit", over_tasks(task, after)(theta, grads, state))
        if not self.second_order:
            loss, buffers = loss.detach(), {name: x.detach() for name, x in buffers.items()}
        return loss, grads, buffers, memory

    def _look(self, start: Tensor, end: Place, draw: Draw, seen: Tensor, alive: Tensor) -> After:
        """Look a second time at ``end`` (on held-out data), where the step from ``start [K, N]``
        led by the gradient ``seen [K, N]``: what objectives about steps need (`objectives.steps`).

        The gradient there, on a second training batch, carries a meta-gradient of its own: it is
        taken at parameters that the learned optimizer made, and its derivative by them is a
        Hessian-vector product. First-order mode keeps that derivative as well: there ``seen`` is a
        constant, and without it nothing of the term would be left to learn from.

        Both sides of the step have the buffers that it left and the same dropout: they differ by
        parameters alone.
        """
        before = loss = torch.zeros_like(start[:, 0]).detach()
        squares = cosines = start.new_zeros(len(start), self.flat.layout.num)
        if Need.BEFORE in self.needs:
            with torch.no_grad():
                before, _ = self.flat.losses(end._replace(params=start.detach()))
        again = end._replace(batch=draw.second)
        if Need.SLOPE in self.needs:
            loss, grads, _ = self.flat.gradients(again, through=True)
            mean = self.flat.layout.mean
            squares = mean(grads * grads)
            cosines = cosine(mean(seen * grads), mean(seen * seen), squares)
        elif Need.SECOND in self.needs:
            loss, _ = self.flat.losses(again)
        worst = (torch.inf, torch.inf, torch.inf, -1.0)
        return After(
            *(_where(alive, *both) for both in zip((before, loss, squares, cosines), worst))
        )


def _named(group: str, state: State) -> State:
    """One regularizer's state as a part of ``Carry.memory``."""
    return {f"{group}.{name}": x for name, x in state.items()}


def _group(memory: State, group: str) -> State:
    """One regularizer's state out of ``Carry.memory``."""
    return {name[len(group) + 1 :]: x for name, x in memory.items() if name.startswith(group + ".")}


def _where(alive: Tensor, new: Tensor, old: Tensor | float) -> Tensor:
    """The ``new [K, ...]`` where a task is ``alive [K]``, else the ``old``."""
    return torch.where(alive.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def _kept(alive: Tensor, new: State, old: State) -> State:
    """The ``new`` state where a task is ``alive [K]``, else the ``old``."""
    return {name: _where(alive, new[name], x) for name, x in old.items()}
