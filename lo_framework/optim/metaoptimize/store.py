"""The state of MetaOptimize's parameters, how old each parameter is, and plans over those with a
gradient.

A large tensor is updated where it lies. A run is a stretch of a pack whose tensors all have a
gradient and are equally old; it is worked through in cache-sized pieces, of which each is what one
call of a kernel gets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.optim.arena import Pack, form_packs, keep_plan, stretches
from lo_framework.optim.blocks import Blocks
from lo_framework.optim.metaoptimize.rules import Number, Numbers, Rule, State
from lo_framework.optim.metaoptimize.scratch import Scratch


def sizes_of(device: torch.device) -> tuple[int, int]:
    """Sizes of a small tensor and of a chunk. An accelerator wants few, large kernels; there the
    limit only bounds the memory of intermediates.
    """
    return (1 << 14, 1 << 16) if device.type == "cpu" else (1 << 20, 1 << 22)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """State and arithmetic are float32, or float64 for float64 parameters."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Piece(NamedTuple):
    """A part of a run: the one block it is of, or else the blocks and lengths of its segments
    ``[s]``; ``lengths`` is None where each element has its own block.
    """

    part: slice
    block: int
    ids: Tensor | None = None
    lengths: Tensor | None = None

    def spread(self, values: Tensor, dtype: torch.dtype, factor: Number | None = None) -> Tensor:
        """Values ``[..., m]`` of the blocks, one per element of the piece; without that dimension
        for one block.

        ``factor`` multiplies them.
        """
        if self.ids is None:
            chosen = values[..., self.block]
        else:
            chosen = values.index_select(-1, self.ids)
        chosen = chosen.to(dtype) if factor is None else chosen.to(dtype) * factor
        if self.lengths is None:
            return chosen
        size = self.part.stop - self.part.start
        return chosen.repeat_interleave(self.lengths, dim=-1, output_size=size)

    def add_sums(self, x: Tensor, totals: Tensor) -> None:
        """Add the sums of ``x [n]`` over the blocks to ``totals [m]``."""
        if self.ids is None:
            totals[self.block] += x.sum().to(totals)
            return
        if self.lengths is not None:
            x = torch.segment_reduce(x, "sum", lengths=self.lengths, unsafe=True)
        totals.index_add_(0, self.ids.to(totals.device), x.to(totals))


@dataclass(eq=False)
class Run:
    pack: Pack
    members: tuple[int, ...]
    tensors: list[Tensor]  # the members themselves
    begin: int
    end: int
    pieces: list[Piece]
    counts: bool  # whether it enters the sums over blocks
    _sides: list[tuple[Tensor, list[Tensor]]] = field(default_factory=list, init=False)

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of each piece."""
        return [piece.part.stop - piece.part.start for piece in self.pieces]

    @cached_property
    def states(self) -> list[State]:
        """Views of each piece's columns of the state."""
        parts = [
            slice(self.begin + piece.part.start, self.begin + piece.part.stop)
            for piece in self.pieces
        ]
        return [{name: x[..., part] for name, x in self.pack.state.items()} for part in parts]

    def shaped(self, flat: Tensor) -> list[Tensor]:
        """Views of ``flat [n]`` in the shapes of the members."""
        parts = flat.split([p.numel() for p in self.tensors])
        return [part.view(p.shape) for part, p in zip(parts, self.tensors)]

    def load(self, scratch: Scratch) -> tuple[Tensor, Tensor]:
        """Weights and gradients; a single tensor where it lies if it is contiguous, several side by
        side in ``scratch``, in the dtype of state.
        """
        grads = [p.grad for p in self.tensors]
        if len(grads) == 1:
            return self.tensors[0].reshape(-1), grads[0].reshape(-1)  # type: ignore[union-attr]
        if not self._sides:
            # Views are kept, since making them takes longer than copying.
            where = self.pack.device, compute_dtype(self.pack.dtype), self.end - self.begin
            for name in ("weights", "grads"):
                flat = scratch.of(*where, name)
                self._sides.append((flat, self.shaped(flat)))
        for (_, parts), tensors in zip(self._sides, (self.tensors, grads)):
            torch._foreach_copy_(parts, tensors)  # type: ignore[arg-type]
        return self._sides[0][0], self._sides[1][0]

    def unload(self, flat: Tensor) -> None:
        """Copy what was loaded into the parameters, unless it is their memory."""
        if self._sides:
            torch._foreach_copy_(self.tensors, self._sides[0][1])
        elif flat.data_ptr() != self.tensors[0].data_ptr():
            self.tensors[0].copy_(flat.view(self.tensors[0].shape))


class Work(NamedTuple):
    """A run in one step: its weights and gradients side by side, what multiplies its step sizes,
    and the numbers of the base.
    """

    run: Run
    weights: Tensor
    grads: Tensor
    lr: Number
    n: Numbers


@dataclass(eq=False)
class Plan:
    """The work of a step with a given set of gradients."""

    runs: list[Run]
    owners: Tensor  # the blocks of the pieces with one block, in order
    active: Tensor | None  # which blocks have a gradient, [m]; None: all of them


class _Cut(NamedTuple):
    """Consecutive elements: ``num`` segments of ``length`` that belong to the blocks from ``block``
    on.
    """

    block: int
    num: int
    length: int

    @property
    def size(self) -> int:
        return self.num * self.length


class Store:
    """State of ``params``; ``rows`` names it: None for ``[n]``, C for ``[C, n]``.

    ``show(i, views)`` is called when parameter ``i`` gets memory.

    Attributes:
        ages: the steps that each parameter has made.
    """

    def __init__(self, rows: Mapping[str, int | None], show: Callable[[int, State], None]) -> None:
        self.rows, self.show = dict(rows), show
        self.scratch = Scratch()
        self.ages: list[int] = []
        self.packs: list[Pack] = []
        self._plans: dict[Hashable, Plan] = {}
        self._latest: tuple[Sequence[int], Plan] | None = None

    def set_params(
        self,
        params: Sequence[Tensor],
        group_of: Sequence[int],
        blocks: Blocks,
        counts: Sequence[bool] | None = None,
    ) -> None:
        """All parameters, or what lies here of them: those of before, and new ones after them.
        ``counts``: whether each enters the sums over blocks; None: all do.
        """
        first = len(self.ages)
        self.params, self.group_of, self.blocks, self.counts = params, group_of, blocks, counts
        self.ages += [0] * (len(params) - first)
        self._forget_plans()
        if self.packs:
            self.packs += self._packs(first)

    def plan(self, active: Sequence[int], device: torch.device) -> Plan:
        """The plan for these parameters, with memory for their state; ``device`` is that of the
        blocks.
        """
        if self._latest is not None and self._latest[0] == active:
            return self._latest[1]  # parameters that step together stay equally far apart in age
        age = self.ages[active[0]]

        def make() -> Plan:
            self._allocate(active)
            runs = self._runs(set(active))
            summed = [piece for run in runs if run.counts for piece in run.pieces]
            owners = [piece.block for piece in summed if piece.ids is None]
            mask = torch.zeros(self.blocks.size, dtype=torch.bool)
            for first, count in (self.blocks.spreads[i] for i in active):
                mask[first : first + count] = True
            return Plan(
                runs,
                torch.tensor(owners, dtype=torch.int64, device=device),
                None if bool(mask.all()) else mask.to(device),
            )

        plan = keep_plan(self._plans, tuple((i, self.ages[i] - age) for i in active), make)
        self._latest = active, plan
        return plan

    def works(
        self, plan: Plan, groups: Sequence[dict[str, Any]], base: Rule, gamma: float
    ) -> Iterator[Work]:
        """Yield one run after the other; what was done to its weights is then put back."""
        for run in plan.runs:
            group, step = groups[run.pack.group], self.ages[run.members[0]] + 1
            n = Numbers(group[base.betas_key], group["eps"], step, group["weight_decay"], gamma)
            lr = group["lr"]
            if not isinstance(lr, Tensor) or lr.device.type == "cpu":
                lr = float(lr)  # an accelerator would have to be waited for
            weights, grads = run.load(self.scratch)
            yield Work(run, weights, grads, lr, n)
            run.unload(weights)

    def grow_rows(self, rows: Mapping[str, int | None]) -> None:
        """More rows, of zeros, where ``rows`` asks for them."""
        self.rows = dict(rows)
        for pack in self.packs:
            if pack.state:
                for name, num in rows.items():
                    x = pack.state[name]
                    if num is not None:
                        pack.state[name] = torch.cat([x, x.new_zeros(num - x.shape[0], x.shape[1])])
                self._show(pack)
        self._forget_plans()

    def restore(self, saved: Mapping[int, Mapping[str, Any]]) -> None:
        """State as it was saved, and nothing of before."""
        self.packs = []
        self._forget_plans()
        self.ages = [int(saved[i]["step"]) if i in saved else 0 for i in range(len(self.params))]
        if saved:  # else at the first step, where the model is then
            self._allocate(list(saved))
        for pack in self.packs:
            for place, i in enumerate(pack.members):
                if i in saved:
                    for name, x in pack.views(place, self.params[i].shape).items():
                        x.copy_(saved[i][name])

    def _forget_plans(self) -> None:
        self._plans.clear()
        self._latest = None

    def _allocate(self, wanted: Sequence[int]) -> None:
        """Fresh state for the packs that hold parameters ``wanted`` and have none yet."""
        if not self.packs:
            self.packs = self._packs(0)  # where the model is now
        for pack in self.packs:
            if not pack.state and set(pack.members) & set(wanted):
                dtype = compute_dtype(pack.dtype)
                for name, num in self.rows.items():
                    shape = pack.offsets[-1:] if num is None else (num, pack.offsets[-1])
                    pack.state[name] = torch.zeros(shape, device=pack.device, dtype=dtype)
                self._show(pack)

    def _show(self, pack: Pack) -> None:
        for place, i in enumerate(pack.members):
            self.show(i, pack.views(place, self.params[i].shape))

    def _packs(self, first: int) -> list[Pack]:
        """Packs without state of the parameters from ``first`` on."""
        places = range(first, len(self.params))
        return form_packs(
            places, self.params, self.group_of, sizes_of, mix_dtypes=False, apart=self.counts
        )

    def _runs(self, wanted: Set[int]) -> list[Run]:
        runs = []
        for pack in self.packs:
            ages = [self.ages[i] if i in wanted else None for i in pack.members]
            for first, last in stretches(ages):
                members, ends = pack.members[first:last], (pack.offsets[first], pack.offsets[last])
                tensors = [self.params[i] for i in members]
                pieces = list(self._pieces(members, pack.device))
                counts = self.counts is None or self.counts[members[0]]
                if pieces:  # of a tensor nothing may lie here
                    runs.append(Run(pack, members, tensors, *ends, pieces, counts))
        return runs

    def _cuts(self, members: Iterable[int], chunk: int) -> Iterator[_Cut]:
        """The elements of some tensors in order, cut so that nothing is longer than ``chunk``."""
        for i in members:
            first, count = self.blocks.spreads[i]
            length = self.params[i].numel() // count if count else 0
            if length >= chunk or count == 1:
                for block in range(first, first + count):
                    for begin in range(0, length, chunk):
                        yield _Cut(block, 1, min(chunk, length - begin))
            elif length:
                rows = chunk // length
                for begin in range(0, count, rows):
                    yield _Cut(first + begin, min(rows, count - begin), length)

    def _pieces(self, members: Iterable[int], device: torch.device) -> Iterator[Piece]:
        chunk = size = sizes_of(device)[1]
        together: list[list[_Cut]] = []
        for cut in self._cuts(members, chunk):
            if size + cut.size > chunk:
                together.append([])
                size = 0
            together[-1].append(cut)
            size += cut.size
        begin = 0
        for cuts in together:
            part = slice(begin, begin + sum(cut.size for cut in cuts))
            begin = part.stop
            if all(cut.num == 1 and cut.block == cuts[0].block for cut in cuts):
                yield Piece(part, cuts[0].block)
                continue
            ids = torch.cat([torch.arange(cut.block, cut.block + cut.num) for cut in cuts])
            lengths = None
            if any(cut.length > 1 for cut in cuts):
                lengths = torch.cat([torch.full((cut.num,), cut.length) for cut in cuts]).to(device)
            yield Piece(part, -1, ids.to(device), lengths)
