"""One inner step of K tasks of one family: gradients, the learned update and the held-out loss,
under one ``vmap``.

theta is batched like everything else (one copy a task). That is what ES needs, and it makes a
back-propagated meta-gradient come out per task, so that a task whose gradient is not finite can be
left out without touching the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from lo_framework.absorption import Absorption, corrected
from lo_framework.inner.after import After, look
from lo_framework.inner.batching import over_tasks
from lo_framework.inner.graph import ENGINES, Recorder
from lo_framework.layout import Layout
from lo_framework.learned.base import LearnedOptimizer, State, Theta
from lo_framework.protocols import Batch, Task
from lo_framework.spec import UserError, nearest


class Carry(NamedTuple):
    """What an episode carries from step to step; every tensor has the K tasks in front."""

    params: Tensor  # [K, N]
    buffers: State
    state: State  # of the learned optimizer
    # [K] bool: False once a loss or a parameter was not finite; the task then stands still
    alive: Tensor
    memory: State  # of regularizers: what they carry


class Draw(NamedTuple):
    """One step's data: ``held`` is a held-out batch or an empty tuple."""

    train: Batch
    held: Batch
    noise: Tensor  # [K] int64
    progress: Tensor  # [K] in [0, 1]
    weight: Tensor | None = (
        None  # [K] of the absorbed regularizer's penalty; None: not at this step
    )
    second: Batch = ()  # a second training batch, for objectives about steps, or an empty tuple


class Losses(NamedTuple):
    train: Tensor  # [K] minibatch loss before the update
    held: Tensor  # [K] held-out loss after it (zeros if none was asked for)
    penalty: Tensor  # [K] of the absorbed regularizer, times its weight
    after: After | None = None  # for objectives about steps


Step = Callable[[Theta, Carry, Draw], tuple[Carry, Losses]]


class Family:
    """One optimizee family with one learned optimizer: builds starts and the vmapped step.

    ``engine`` is how steps are run: ``eager``, ``graph`` (recorded once and replayed: faster, the
    same bits), ``inductor`` (recorded and compiled: fastest, other bits). A task that cannot be
    vmapped always runs eagerly.

    ``absorption`` puts a regularizer into the score of each step. A learned optimizer with an
    ``explicit`` regularizer is given corrected gradients.
    """

    def __init__(
        self,
        task: Task,
        learned: LearnedOptimizer,
        engine: str = "eager",
        absorption: Absorption | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise UserError(
                f"unknown engine {engine!r}{nearest(engine, ENGINES)}; there are {', '.join(ENGINES)}"
            )
        self.task = task
        self.learned = learned
        self.engine = engine
        self.absorption = absorption
        params, _ = task.init(torch.Generator().manual_seed(0))
        self.layout = Layout.of({name: tuple(p.shape) for name, p in params.items()}).to(
            task.device
        )

    def start(self, generator: torch.Generator, num: int) -> Carry:
        """``num`` fresh episodes; initial parameters come from ``generator`` in order."""
        return self.start_from([self.task.init(generator) for _ in range(num)])

    def start_from(self, inits: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> Carry:
        """Episodes from given (params, buffers) pairs."""
        params = torch.stack([self.layout.flatten(p) for p, _ in inits])
        buffers = {name: torch.stack([b[name] for _, b in inits]) for name in inits[0][1]}
        state = vmap(lambda p: self.learned.init_state(self.layout, p))(params)
        state = {name: x.clone(memory_format=torch.contiguous_format) for name, x in state.items()}
        alive = torch.ones(len(inits), dtype=torch.bool, device=params.device)
        return Carry(params, buffers, state, alive, self._memory(params))

    def _memory(self, params: Tensor) -> State:
        """What regularizers carry, by ``explicit.`` and ``absorbed.`` names."""
        explicit = self.learned.explicit(self.learned.theta())
        found: State = {}
        if explicit is not None:
            start = vmap(lambda p: explicit.init_state({"params": p}))(params)
            found |= _named("explicit", start)
        if self.absorption is not None:
            found |= _named("absorbed", vmap(self.absorption.init_state)(params))
        return {name: x.clone(memory_format=torch.contiguous_format) for name, x in found.items()}

    def step(
        self,
        *,
        held_out: bool,
        second_order: bool = False,
        differentiable: bool = False,
        pairs: bool = False,
        needs: tuple[str, ...] = (),
    ) -> Step:
        """The vmapped step. ``second_order`` lets meta-gradients flow through the inner gradients
        (and so Hessians).

        ``differentiable`` makes the training loss carry a meta-gradient in first-order mode as
        well. ``pairs``: the second half of the tasks are the antithetic twins of the first.
        ``needs``: terms of an objective about steps.
        """
        absorption = self.absorption
        explicit = self.learned.explicit(self.learned.theta()) is not None

        def loss_of(
            params: Tensor, buffers: State, batch: Batch, noise: Tensor
        ) -> tuple[Tensor, State]:
            return self.task.loss(self.layout.unflatten(params), buffers, batch, noise)

        def update(
            theta: Theta,
            params: Tensor,
            grads: Tensor,
            state: State,
            loss: Tensor,
            progress: Tensor,
        ) -> tuple[Tensor, State]:
            return functional_call(
                self.learned, theta, (self.layout, params, grads, state, loss, progress)
            )

        losses_of, updated = over_tasks(self.task, loss_of), over_tasks(self.task, update)

        def slopes(carry: Carry, draw: Draw) -> tuple[Tensor, Tensor, State]:
            """Losses ``[K]``, their gradients ``[K, N]`` and the new buffers.

            No row's loss depends on another row's parameters, so one backward pass from all of them
            gives every task its own gradient, without the levels and the rules that differentiation
            inside vmap goes through.
            """
            through = second_order and carry.params.requires_grad and torch.is_grad_enabled()
            with torch.enable_grad():
                at = carry.params if through else carry.params.detach().requires_grad_()
                loss, buffers = losses_of(at, carry.buffers, draw.train, draw.noise)
                grads = torch.zeros_like(at)
                if loss.requires_grad:
                    (grads,) = torch.autograd.grad(
                        loss,
                        at,
                        torch.ones_like(loss),
                        create_graph=through,
                        materialize_grads=True,
                    )
            if through:
                return loss, grads, buffers
            return loss.detach(), grads.detach(), {name: x.detach() for name, x in buffers.items()}

        def correct(
            theta: Theta, carry: Carry, draw: Draw, loss: Tensor, grads: Tensor
        ) -> tuple[Tensor, State]:
            """Gradients with the learned optimizer's own explicit correction.

            Its settings may be in theta, so it is differentiated wherever theta is; in first-order
            mode the parameters are constants here as they are in the gradients.
            """
            params = carry.params if second_order else carry.params.detach()
            _, _, field, _, new = corrected(
                self.task,
                self.learned.explicit,
                loss_of,
                params,
                carry.buffers,
                draw.train,
                draw.noise,
                (loss, grads),
                _group(carry.memory, "explicit"),
                theta,
            )
            return grads + field, _named("explicit", new)

        # What is the same for every task and needs no rule of its own stays outside vmap, where a
        # call costs less.
        def step(theta: Theta, carry: Carry, draw: Draw) -> tuple[Carry, Losses]:
            loss, grads, new_buffers = slopes(carry, draw)
            memory, plain = dict(carry.memory), (loss.detach(), grads.detach())
            if explicit:
                grads, new = correct(theta, carry, draw, loss, grads)
                memory |= new
            if differentiable and not second_order:  # d loss / d params is the gradient at hand
                loss = loss + (plain[1] * (carry.params - carry.params.detach())).sum(-1)
            seen = (
                loss if second_order else loss.detach()
            )  # a rule that reads the loss has a path through it
            new_params, new_state = updated(
                theta, carry.params, grads, carry.state, seen, draw.progress
            )
            alive = (
                carry.alive
                & torch.isfinite(loss.detach())
                & torch.isfinite(new_params.detach().sum(-1))
            )
            params = _where(alive, new_params, carry.params)
            state = {name: _where(alive, new_state[name], old) for name, old in carry.state.items()}
            buffers = {
                name: _where(alive, new_buffers[name], old) for name, old in carry.buffers.items()
            }
            held = torch.zeros_like(loss)
            if held_out:
                held, _ = losses_of(params, buffers, draw.held, draw.noise)
            penalty = torch.zeros_like(held)
            if absorption is not None and draw.weight is not None:
                old = _group(carry.memory, "absorbed")
                later = absorption.independent
                where = (
                    (params, buffers, draw.held)
                    if later
                    else (carry.params, carry.buffers, draw.train)
                )
                here = None if later else plain
                penalty, new = absorption.penalty(
                    self.task, loss_of, *where, draw.noise, here, old, pairs
                )
                penalty = draw.weight * _where(alive, penalty, 0.0)
                memory |= _named("absorbed", new)
            memory = {name: _where(alive, x, carry.memory[name]) for name, x in memory.items()}
            after = None
            if needs:
                after = look(
                    needs,
                    self.layout,
                    losses_of,
                    carry.params,
                    params,
                    buffers,
                    draw.held,
                    draw.second,
                    draw.noise,
                    grads,
                    alive,
                )
            losses = Losses(
                _where(alive, loss, torch.inf), _where(alive, held, torch.inf), penalty, after
            )
            return Carry(params, buffers, state, alive, memory), losses

        if self.engine == "eager" or not getattr(self.task, "vmappable", True):
            return step
        return _Recorded(step, self.engine, bool(needs))


class _Recorded:
    """A step by recordings of it; see ``graph``."""

    def __init__(self, step: Step, engine: str, looks: bool) -> None:
        self.step, self.engine, self.looks = step, engine, looks
        self.recorders: dict[Any, Recorder] = {}

    def __call__(self, theta: Theta, carry: Carry, draw: Draw) -> tuple[Carry, Losses]:
        names = (
            tuple(theta),
            tuple(carry.buffers),
            tuple(carry.state),
            tuple(carry.memory),
            len(draw.train),
            len(draw.held),
            draw.weight is not None,
            len(draw.second),
        )
        if names not in self.recorders:
            self.recorders[names] = Recorder(self._flat(*names), self.engine)
        flat = [
            *theta.values(),
            carry.params,
            *carry.buffers.values(),
            *carry.state.values(),
            *carry.memory.values(),
            carry.alive,
            *draw.train,
            *draw.held,
            draw.noise,
            draw.progress,
            *(() if draw.weight is None else (draw.weight,)),
            *draw.second,
        ]
        params, *rest = self.recorders[names](flat)
        given = iter(rest)
        buffers, state, memory = (
            {n: next(given) for n in x} for x in (carry.buffers, carry.state, carry.memory)
        )
        carry = Carry(params, buffers, state, next(given), memory)
        losses = Losses(next(given), next(given), next(given))
        return carry, losses._replace(after=After(*given)) if self.looks else losses

    def _flat(
        self,
        theta: tuple[str, ...],
        buffers: tuple[str, ...],
        state: tuple[str, ...],
        memory: tuple[str, ...],
        train: int,
        held: int,
        weighted: bool,
        second: int,
    ) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        def function(flat: Sequence[Tensor]) -> list[Tensor]:
            given = iter(flat)
            weights = {name: next(given) for name in theta}
            params = next(given)
            parts = [{n: next(given) for n in names} for names in (buffers, state, memory)]
            carry = Carry(params, parts[0], parts[1], next(given), parts[2])
            draw = Draw(
                tuple(next(given) for _ in range(train)),
                tuple(next(given) for _ in range(held)),
                next(given),
                next(given),
                next(given) if weighted else None,
                tuple(next(given) for _ in range(second)),
            )
            end, losses = self.step(weights, carry, draw)
            carried = (*end.buffers.values(), *end.state.values(), *end.memory.values())
            return [end.params, *carried, end.alive, *losses[:3], *(losses.after or ())]

        return function


def _named(group: str, state: State) -> State:
    """What one regularizer carries, as a part of ``Carry.memory``."""
    return {f"{group}.{name}": x for name, x in state.items()}


def _group(memory: State, group: str) -> State:
    """One regularizer's part of ``Carry.memory``, by its own names."""
    return {name[len(group) + 1 :]: x for name, x in memory.items() if name.startswith(group + ".")}


def _where(alive: Tensor, new: Tensor, old: Tensor | float) -> Tensor:
    """``new [K, ...]`` where a task is ``alive [K]``."""
    return torch.where(alive.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def tile_theta(theta: Theta, num: int) -> Theta:
    """One theta for ``num`` tasks (expanded views)."""
    return {name: x.expand(num, *x.shape) for name, x in theta.items()}
