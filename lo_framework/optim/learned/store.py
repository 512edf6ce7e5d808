"""The state of a learned optimizer's parameters: packs that are formed when tensors get their first
gradient and never moved, and runs over them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.base import LearnedOptimizer, State
from lo_framework.optim.arena import Pack, form_packs, keep_plan, make_pack, stretches
from lo_framework.optim.shards import ShardedLayout

# Tensors up to this size share packs: broadcasting to their parameters costs less than a call for
# each.
SMALL = 2048
# The same for parameters that are sharded, where every pack may cost a call between processes.
SHARED = 1 << 16, 1 << 18


@dataclass(eq=False)
class Run:
    """A stretch of a pack whose tensors all have a gradient."""

    pack: Pack
    tensors: list[Tensor]  # the parameters themselves
    layout: Layout  # of these tensors, with the roles they have in the whole model
    places: tuple[int, ...]  # of these tensors among all that have a gradient
    positions: Tensor  # the same, [members]
    begin: int
    end: int

    @cached_property
    def state(self) -> State:
        """The run's columns of the pack's state, ``[..., n]`` views."""
        return {name: x[..., self.begin : self.end] for name, x in self.pack.state.items()}

    @cached_property
    def states(self) -> list[State]:
        """Views of the columns of each tensor."""
        ends = [*accumulate(self.layout.sizes, initial=0)]
        bounds = pairwise(ends)
        return [
            {name: x[..., begin:end] for name, x in self.state.items()} for begin, end in bounds
        ]


@dataclass(eq=False)
class Plan:
    """The work of a step with a given set of gradients."""

    layout: Layout  # of the tensors with a gradient: what conditioning sees
    runs: list[Run]
    order: Tensor | None  # brings statistics in run order into list order; None where they are
    columns: Tensor | None  # of the active tensors in the per-tensor state; None for all of them
    steps: int = 0
    table: Any = None
    recorded: dict[Any, Any] = field(default_factory=dict)  # of `Host`


class Store:
    """Packs, and the reduced state: shared values, and one column for each of the S tensors of the
    whole list.

    Attributes:
        per_tensor: names of the reduced state with one column per tensor: its last dimension
            follows the number of tensors. In one order, as all else that becomes part of a saved
            state: processes that gather a sharded one go through it side by side.
        leads: leading dimensions of each state per parameter, ``[*lead, *shape]``.
    """

    def __init__(
        self, learned: LearnedOptimizer, device: torch.device, dtype: torch.dtype, pack_size: int
    ) -> None:
        self.learned = learned
        self.device = device
        self.dtype = dtype
        self.pack_size = pack_size
        shapes = []
        for num in (2, 3):
            layout = Layout.of({str(i): (2, 2) for i in range(num)}).to(device)
            state = learned.init_state(layout, torch.zeros(layout.size, device=device, dtype=dtype))
            shapes.append({name: x.shape for name, x in state.items()})
        names, (few, more) = learned.per_param, shapes
        self.per_tensor = [k for k in few if k not in names and few[k] != more[k]]
        self.leads = {k: few[k][:-1] for k in names if k in few}
        self.packs: list[Pack] = []
        self.home: dict[int, tuple[Pack, int]] = {}
        self.reduced: State = {}
        self._plans: dict[Hashable, Plan] = {}

    def set_params(self, params: Sequence[Tensor], group_of: Sequence[int], layout: Layout) -> None:
        """What lies here of all parameters; the list is longer than before when a group was
        added.
        """
        self.params, self.group_of, self.layout = params, group_of, layout
        self._plans.clear()
        for name in [name for name in self.per_tensor if name in self.reduced]:
            old = self.reduced.pop(name)
            self._columns(name, old)[..., : old.shape[-1]] = old

    def admit(self, newcomers: Iterable[int]) -> None:
        """Fresh state for tensors that have their first gradient."""
        for pack in self._packs(newcomers):
            members = list(pack.members)
            layout = self.layout.pick(members).to(self.device)
            flat = torch.cat([self.params[i].detach().reshape(-1) for i in members])
            fresh = self.learned.init_state(layout, flat.to(self.device, self.dtype))
            block = {name: fresh.pop(name) for name in self.learned.per_param if name in fresh}
            self._settle(pack, block)
            for name, x in fresh.items():
                if name in self.per_tensor:
                    self._columns(name, x)[..., members] = x
                else:
                    self.reduced.setdefault(name, x)

    def restore(
        self, saved: dict[int, State], shared: State, packs: Sequence[Sequence[int]]
    ) -> None:
        """State as it was saved: per tensor (``[*lead, *shape]``, or one column) and shared.

        ``packs``: their members then. A tensor summed in another company gives other bits, so they
        are formed again, except where tensors that were together are not in one group or on one
        device any more.
        """
        self.packs, self.home, self.reduced = [], {}, {}
        self._plans.clear()
        same_tensors = sorted(i for members in packs for i in members) == sorted(saved)
        if same_tensors and all(map(self._fit_together, packs)):
            formed = [make_pack(members, self.params, self.group_of) for members in packs]
        else:
            formed = self._packs(saved)
        for pack in formed:
            members, block = list(pack.members), {}
            names = list(saved[members[0]])
            for name in (name for name in names if name not in self.per_tensor):
                parts = [(saved[i][name], self.params[i].dim()) for i in members]
                flat = [x.reshape(*x.shape[: x.dim() - dims], -1) for x, dims in parts]
                block[name] = torch.cat([x.to(pack.device, self.dtype) for x in flat], dim=-1)
            self._settle(pack, block)
            for name in (name for name in names if name in self.per_tensor):
                columns = [saved[i][name].to(self.device, self.dtype) for i in members]
                x = torch.stack(columns, dim=-1)
                self._columns(name, x)[..., members] = x
        self.reduced.update(
            {name: x.to(self.device, self.dtype).clone() for name, x in shared.items()}
        )

    def shared(self) -> State:
        """The reduced state that belongs to no tensor."""
        return {name: x for name, x in self.reduced.items() if name not in self.per_tensor}

    def views(self, index: int) -> State:
        """The state of one parameter as views: ``[*lead, *shape]`` (where that is sharded, as it
        is), and its column of the per-tensor state.
        """
        pack, place = self.home[index]
        views = pack.views(place, self.params[index].shape)
        if isinstance(self.layout, ShardedLayout):
            views = {name: self.layout.shown(index, x) for name, x in views.items()}
        views.update({name: self.reduced[name][..., index] for name in self.per_tensor})
        return views

    def plan(self, active: tuple[int, ...]) -> Plan:
        """Runs over the active tensors."""
        return keep_plan(self._plans, active, lambda: self._plan(active))

    def take(self, plan: Plan) -> State:
        """The reduced state as conditioning sees it: columns of the active tensors only."""
        if plan.columns is None:
            return self.reduced
        picked = {
            name: self.reduced[name].index_select(-1, plan.columns) for name in self.per_tensor
        }
        return {**self.reduced, **picked}

    def put(self, plan: Plan, reduced: State) -> None:
        """Store the new reduced state; columns in place, the views of parameters stay valid."""
        for name, x in reduced.items():
            if name not in self.per_tensor:
                self.reduced[name] = x
            elif plan.columns is None:
                self.reduced[name].copy_(x)
            else:
                self.reduced[name].index_copy_(-1, plan.columns, x)

    def _columns(self, name: str, like: Tensor) -> Tensor:
        """Storage of a per-tensor state, made when first needed."""
        if name not in self.reduced:
            self.reduced[name] = like.new_zeros(*like.shape[:-1], self.layout.num)
        return self.reduced[name]

    def _packs(self, indices: Iterable[int]) -> list[Pack]:
        """Packs without state for a set of tensors."""
        is_sharded = isinstance(self.layout, ShardedLayout)
        sizes = SHARED if is_sharded else (min(SMALL, self.pack_size), self.pack_size)
        numels = [slot.numel for slot in self.layout.slots] if is_sharded else None
        return form_packs(
            sorted(indices),
            self.params,
            self.group_of,
            lambda _: sizes,
            mix_dtypes=True,
            numels=numels,
        )

    def _fit_together(self, members: Sequence[int]) -> bool:
        """Whether these tensors can share a pack."""
        return len({(self.params[i].device, self.group_of[i]) for i in members}) == 1

    def _settle(self, pack: Pack, block: State) -> None:
        """Give a pack its state: memory of its own for every key, since a step writes into it."""
        pack.state = {
            name: x.to(pack.device).clone(memory_format=torch.contiguous_format)
            for name, x in block.items()
        }
        self.packs.append(pack)
        self.home.update({index: (pack, place) for place, index in enumerate(pack.members)})
        self._plans.clear()

    def _plan(self, active: tuple[int, ...]) -> Plan:
        place = {index: k for k, index in enumerate(active)}
        runs, in_runs = [], list[int]()
        for pack in self.packs:
            for first, last in stretches([index in place or None for index in pack.members]):
                members = pack.members[first:last]
                in_runs += members
                tensors = [self.params[i] for i in members]
                places = tuple(place[i] for i in members)
                positions = torch.tensor(places, device=self.device)
                layout = self.layout.pick(members).to(pack.device)
                begin, end = pack.offsets[first], pack.offsets[last]
                runs.append(Run(pack, tensors, layout, places, positions, begin, end))
        order = columns = None
        if in_runs != list(active):
            at = {index: k for k, index in enumerate(in_runs)}
            order = torch.tensor([at[i] for i in active], device=self.device)
        if len(active) < self.layout.num:
            columns = torch.tensor(active, device=self.device)
        return Plan(self.layout.pick(active).to(self.device), runs, order, columns)
