"""The contract of a learned optimizer: an update rule whose weights theta are meta-trained.

The rule is cut in three so that one piece of code serves four hosts (the vmapped inner loop, the
``torch.optim`` face, a sharded run, a fused kernel):

* ``measure`` -> ``stats``: elementwise quantities and their mean over each tensor, the only
  reduction there is;
* ``condition``: everything that looks across tensors or at time (attention lives here), on ``[F,
  S]`` numbers;
* ``update``: the per-parameter rule, on any chunk of parameters.

Shapes: N parameters of the arena, n of a chunk, S tensors, F statistics, C conditioning channels
per tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lo_framework.layout import Layout
from lo_framework.learned.kernels import Kernels
from lo_framework.registry import Registry
from lo_framework.regularizers.base import Regularizer

State = dict[str, Tensor]
Theta = dict[str, Tensor]


class Clock(NamedTuple):
    """Where in its episode a step is: ``progress`` is the fraction done, 0-d in [0, 1], and
    ``horizon`` the episode's steps, 0-d; 0 where nobody said how long it will be (progress is then
    0).
    """

    progress: Tensor
    horizon: Tensor


def zeros(*shape: int) -> nn.Parameter:
    """A meta-parameter that starts at zero."""
    return nn.Parameter(torch.zeros(shape))


class LearnedOptimizer(nn.Module):
    """Base class. theta is ``dict(self.named_parameters())``; buffers are constants.

    ``config`` is a frozen dataclass from which the same optimizer can be built again. ``per_param``
    names the state tensors whose last dimension is the parameters, and ``passing`` such as
    `prepare` adds for one step; all others are reduced (per tensor or scalar). ``open_ended``: the
    rule has a meaning where nobody knows the horizon.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    per_param: ClassVar[tuple[str, ...]] = ()
    passing: ClassVar[tuple[str, ...]] = ()
    open_ended: ClassVar[bool] = False
    config: Any
    # Of one that was loaded: its fingerprint then, and how it was trained (see `saving`).
    origin: tuple[str, dict[str, Any]] | None = None
    kernels: Kernels | None = None  # see `kernels.with_kernels`
    in_kernel: bool = False  # whether this copy is what kernels are made of

    def init_state(self, layout: Layout, params: Tensor) -> State:
        """State of a fresh episode for ``params [N]``; always holds ``step``, the number of
        finished updates (0-d float32).
        """
        raise NotImplementedError

    def prepare(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> State:
        """Update state that needs whole tensors (rows and columns, directions of matrices); most
        rules have none. ``layout`` may be of one tensor.
        """
        return state

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        """``[n]`` chunks to ``[F, n]`` quantities whose mean over each tensor is all that
        :meth:`condition` sees; rules that look at no statistics have none.
        """
        return grads.new_zeros(0, grads.shape[-1])

    def stats(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> Tensor:
        """``[F, S]``: the means of :meth:`measure` over each tensor."""
        columns = {"params": params, "grads": grads, **self.per_parameter(state)}
        return self.means("_measured", layout, columns, rest=state)

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        """Per-tensor channels ``[C, S]``, shared values ``[D]``, and the new reduced state
        (``step`` included).

        ``loss`` may be None (a face without a closure).
        """
        raise NotImplementedError

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """One chunk: channels ``[C, n]`` (or ``[C, 1]``), params and grads ``[n]``, per-parameter
        state ``[..., n]``.
        """
        raise NotImplementedError

    def forward(
        self,
        layout: Layout,
        params: Tensor,
        grads: Tensor,
        state: State,
        loss: Tensor | None,
        clock: Clock,
    ) -> tuple[Tensor, State]:
        """One update of a whole arena ``[N]``: the three phases in a row. Pure."""
        state = self.prepare(layout, params, grads, state)
        stats = self.stats(layout, params, grads, state)
        channels, shared, reduced = self.condition(layout, stats, state, loss, clock)
        columns = {"params": params, "grads": grads, **self.per_parameter(state)}
        new = dict(self.each("_updated", layout, channels, [shared], columns, rest=state))
        return new.pop("params"), {**reduced, **new}

    def per_parameter(self, state: State) -> State:
        """The part of the state whose last dimension is the parameters."""
        return {name: state[name] for name in self.per_param + self.passing if name in state}

    def each(
        self,
        method: str,
        layout: Layout,
        channels: Tensor,
        shared: Sequence[Tensor],
        columns: State,
        rest: State | None = None,
    ) -> State:
        """``method(channels [C, n], shared, columns)`` over a whole arena, for ``channels [C, S]``;
        by a kernel where there is one. It gives a dict of ``[..., n]`` and may mix no columns.
        ``rest``: what the method itself may find among the columns.
        """
        if self.kernels is not None:
            made = self.kernels.each(self, method, layout, channels, shared, columns)
            if made is not None:
                return made
        columns = {**(rest or {}), **columns}
        return getattr(self, method)(layout.expand(channels), tuple(shared), columns)

    def means(
        self,
        method: str,
        layout: Layout,
        columns: State,
        shared: Sequence[Tensor] = (),
        rest: State | None = None,
    ) -> Tensor:
        """The means over each tensor, ``[F, S]``, of ``method(shared, columns) [F, n]``."""
        if self.kernels is not None:
            made = self.kernels.means(self, method, layout, shared, columns)
            if made is not None:
                return layout.over_shards(made)
        measured = getattr(self, method)(tuple(shared), {**(rest or {}), **columns})
        return layout.mean(measured) if len(measured) else measured.new_zeros(0, layout.num)

    def across(self, method: str, columns: State, shared: Sequence[Tensor] = ()) -> State:
        """``method(shared, columns)`` of what each tensor has one of, ``[..., S]``; by a kernel
        where there is one. Tensors may look at one another by means over all of them.
        """
        if self.kernels is not None:
            made = self.kernels.across(self, method, columns, shared)
            if made is not None:
                return made
        return getattr(self, method)(tuple(shared), columns)

    def _measured(self, shared: tuple[Tensor, ...], columns: State) -> Tensor:
        return self.measure(columns["params"], columns["grads"], columns)

    def _updated(self, channels: Tensor, shared: tuple[Tensor, ...], columns: State) -> State:
        params, new = self.update(channels, shared[0], columns["params"], columns["grads"], columns)
        return {"params": params, **new}

    def _multiplied(self, channels: Tensor, shared: tuple[Tensor, ...], columns: State) -> State:
        """`_updated` with the change of the parameters times the last channel."""
        new, old = self._updated(channels[:-1], shared, columns), columns["params"]
        return {**new, "params": old + channels[-1] * (new["params"] - old)}

    @property
    def has_schedule(self) -> bool:
        """Whether the rule looks at the clock, where the horizon is known."""
        return True

    def quantities(
        self, layout: Layout, channels: Tensor, shared: Tensor, state: State, clock: Clock
    ) -> State:
        """What a person may follow of a step, by name, ``[S]`` each: of its ``channels [C, S]`` and
        ``shared`` values, and the reduced state after it. ``step_size`` is what the update's
        direction is multiplied by.
        """
        return {}

    def parts(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> State:
        """Parts of the update of one chunk, by name, ``[n]`` each, in a unit of their own, with the
        per-parameter state after the update; of a rule in which a network adds a part of its own.
        """
        return {}

    def explicit(self, theta: Theta) -> Regularizer | None:
        """A regularizer whose correction the gradients get before this rule sees them (None: plain
        gradients).

        ``theta`` may hold its settings, so that they are meta-trained.
        """
        return None

    def outer_scale(self, name: str) -> float:
        """Outer learning rate of the meta-parameter ``name`` relative to the run's: weights of
        networks move more slowly.
        """
        return 0.2

    def theta(self) -> Theta:
        """The meta-parameters by name, detached."""
        return {name: p.detach() for name, p in self.named_parameters()}

    @torch.no_grad()
    def load_theta(self, theta: Theta) -> None:
        """Copy meta-parameters in; names and shapes must be this optimizer's."""
        parameters = dict(self.named_parameters())
        for name, value in theta.items():
            parameters[name].copy_(value)

    @torch.no_grad()
    def grow_from(self, smaller: LearnedOptimizer) -> None:
        """Take over every meta-parameter that ``smaller`` also has. The rest stays at its start,
        which adds nothing to the rule.
        """
        parameters = dict(self.named_parameters())
        for name, value in smaller.named_parameters():
            if name in parameters and parameters[name].shape == value.shape:
                parameters[name].copy_(value)


LEARNED: Registry[LearnedOptimizer] = Registry("learned optimizer")
L = TypeVar("L", bound="type[LearnedOptimizer]")


def register_learned(cls: L) -> L:
    """Make a learned optimizer, the decorated class, known by its ``kind``."""
    return LEARNED.register(cls.kind, config=cls.Config)(cls)
