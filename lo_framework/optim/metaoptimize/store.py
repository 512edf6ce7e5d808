"""The state of MetaOptimize's parameters, how old each parameter is, and plans over those with a
gradient.

A large tensor is updated where it lies. A run is a stretch of a pack whose tensors all have a
gradient and are equally old; it is worked through in cache-sized pieces, of which each is what one
call of a kernel gets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.optim.arena import Pack, form_packs, keep_plan, stretches
from lo_framework.optim.blocks import Blocks
from lo_framework.optim.metaoptimize.rules import Number, State


def sizes_of(device: torch.device) -> tuple[int, int]:
    """Sizes of a small tensor and of a chunk. An accelerator wants few, large kernels; there the
    limit only bounds the memory of intermediates.
    """
    return (1 << 14, 1 << 16) if device.type == "cpu" else (1 << 20, 1 << 22)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """State and arithmetic are float32, or float64 for float64 parameters."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Scratch:
    """Working memory, one chunk for each device, dtype and purpose."""

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.device, torch.dtype, str], Tensor] = {}
        self._count = 0, torch.zeros((), device="cpu")

    def count(self, step: int) -> Tensor:
        """``step`` as torch's loops want it."""
        if self._count[0] != step:
            self._count = step, torch.tensor(float(step), device="cpu")
        return self._count[1]

    def of(self, device: torch.device, dtype: torch.dtype, size: int, purpose: str) -> Tensor:
        """Memory ``[size]``; for the same purpose the same, as far as it goes."""
        key = (device, dtype, purpose)
        memory = self._memory.get(key)
        if memory is None or memory.numel() < size:
            memory = self._memory[key] = torch.empty(size, device=device, dtype=dtype)
        return memory if memory.numel() == size else memory[:size]


class Segments(NamedTuple):
    """Several blocks in one piece: ``ids`` and ``lengths [s]``; ``lengths`` is None where each
    element has its own.
    """

    ids: Tensor
    lengths: Tensor | None


class Piece(NamedTuple):
    """A part of a run: the one block it is of, or its segments."""

    part: slice
    block: int
    segments: Segments | None

    def spread(self, values: Tensor, dtype: torch.dtype, factor: Number | None = None) -> Tensor:
        """Values ``[..., m]`` of the blocks, one per element of the piece; without that dimension
        for one block.

        ``factor`` multiplies them.
        """
        if self.segments is None:
            chosen = values[..., self.block]
        else:
            chosen = values.index_select(-1, self.segments.ids)
        chosen = chosen.to(dtype) if factor is None else chosen.to(dtype) * factor
        if self.segments is None or self.segments.lengths is None:
            return chosen
        size = self.part.stop - self.part.start
        return chosen.repeat_interleave(self.segments.lengths, dim=-1, output_size=size)

    def add_sums(self, x: Tensor, totals: Tensor) -> None:
        """Add the sums of ``x [n]`` over the blocks to ``totals [m]``."""
        if self.segments is None:
            totals[self.block] += x.sum().to(totals)
            return
        ids, lengths = self.segments
        if lengths is not None:
            x = torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True)
        totals.index_add_(0, ids.to(totals.device), x.to(totals))


@dataclass(eq=False)
class Run:
    pack: Pack
    members: tuple[int, ...]
    begin: int
    end: int
    pieces: list[Piece]
    shapes: list[torch.Size]  # of the members
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

    def loaded(self, params: Sequence[Tensor], scratch: Scratch) -> tuple[Tensor, Tensor]:
        """Weights and gradients; a single tensor where it lies if it is contiguous, several side by
        side in ``scratch``, in the dtype of state.
        """
        grads = [p.grad for p in params]
        if len(params) == 1:
            return params[0].reshape(-1), grads[0].reshape(-1)  # type: ignore[union-attr]
        if not self._sides:
            # Views are kept, since making them takes longer than copying.
            pack, sizes = self.pack, [shape.numel() for shape in self.shapes]
            for name in ("weights", "grads"):
                dtype = compute_dtype(pack.dtype)
                flat = scratch.of(pack.device, dtype, self.end - self.begin, name)
                parts = [x.view(shape) for x, shape in zip(flat.split(sizes), self.shapes)]
                self._sides.append((flat, parts))
        for (_, parts), tensors in zip(self._sides, (params, grads)):
            torch._foreach_copy_(parts, tensors)  # type: ignore[arg-type]
        return self._sides[0][0], self._sides[1][0]

    def unload(self, flat: Tensor, params: Sequence[Tensor]) -> None:
        """Copy what was `loaded` into the parameters, unless it is their memory."""
        if len(params) > 1:
            torch._foreach_copy_(list(params), self._sides[0][1])
        elif flat.data_ptr() != params[0].data_ptr():
            params[0].copy_(flat.view(params[0].shape))


@dataclass(eq=False)
class Plan:
    """The work of a step with a given set of gradients."""

    runs: list[Run]
    owners: Tensor  # the blocks of the pieces with one block, in order
    active: Tensor | None  # which blocks have a gradient, [m]; None: all of them


def make_plan(
    packs: Iterable[Pack],
    active: Sequence[int],
    ages: Sequence[int],
    params: Sequence[Tensor],
    blocks: Blocks,
    device: torch.device,
) -> Plan:
    """The plan for the parameters ``active``; ``ages`` counts the steps that each has made."""
    runs = _runs(packs, active, ages, params, blocks)
    owners = [piece.block for run in runs for piece in run.pieces if piece.segments is None]
    mask = torch.zeros(blocks.size, dtype=torch.bool)
    for i in active:
        first, count = blocks.spreads[i]
        mask[first : first + count] = True
    return Plan(
        runs,
        torch.tensor(owners, dtype=torch.int64, device=device),
        None if bool(mask.all()) else mask.to(device),
    )


def _runs(
    packs: Iterable[Pack],
    active: Sequence[int],
    ages: Sequence[int],
    params: Sequence[Tensor],
    blocks: Blocks,
) -> list[Run]:
    wanted, runs = set(active), []
    for pack in packs:
        chunk = sizes_of(pack.device)[1]
        for first, last in stretches([ages[i] if i in wanted else None for i in pack.members]):
            members = pack.members[first:last]
            pieces = list(_pieces(members, params, blocks, chunk, pack.device))
            shapes = [params[i].shape for i in members]
            runs.append(Run(pack, members, pack.offsets[first], pack.offsets[last], pieces, shapes))
    return runs


class _Cut(NamedTuple):
    """Consecutive elements: ``num`` segments of ``length`` that belong to the blocks from ``block``
    on.
    """

    block: int
    num: int
    length: int


def _cuts(
    members: Iterable[int], params: Sequence[Tensor], blocks: Blocks, chunk: int
) -> Iterator[_Cut]:
    """The elements of some tensors in order, cut so that nothing is longer than ``chunk``."""
    for i in members:
        first, count = blocks.spreads[i]
        length = params[i].numel() // count if count else 0
        if length >= chunk or count == 1:
            for block in range(first, first + count):
                for begin in range(0, length, chunk):
                    yield _Cut(block, 1, min(chunk, length - begin))
        elif length:
            rows = chunk // length
            for begin in range(0, count, rows):
                yield _Cut(first + begin, min(rows, count - begin), length)


def _pieces(
    members: Iterable[int],
    params: Sequence[Tensor],
    blocks: Blocks,
    chunk: int,
    device: torch.device,
) -> Iterator[Piece]:
    begin, size = 0, 0
    together: list[_Cut] = []
    for cut in _cuts(members, params, blocks, chunk):
        if together and size + cut.num * cut.length > chunk:
            yield _piece(together, begin, begin + size, device)
            begin, size, together = begin + size, 0, []
        together.append(cut)
        size += cut.num * cut.length
    if together:
        yield _piece(together, begin, begin + size, device)


def _piece(cuts: Sequence[_Cut], begin: int, end: int, device: torch.device) -> Piece:
    part = slice(begin, end)
    if all(cut.num == 1 and cut.block == cuts[0].block for cut in cuts):
        return Piece(part, cuts[0].block, None)
    ids = torch.cat([torch.arange(cut.block, cut.block + cut.num) for cut in cuts]).to(device)
    if all(cut.length == 1 for cut in cuts):
        return Piece(part, -1, Segments(ids, None))
    lengths = torch.cat([torch.full((cut.num,), cut.length) for cut in cuts]).to(device)
    return Piece(part, -1, Segments(ids, lengths))


class Store:
    """State of ``params``; ``rows`` names it: None for ``[n]``, C for ``[C, n]``.

    ``show(i, views)`` is called when parameter ``i`` gets memory.

    Attributes:
        ages: the steps that each parameter has made.
    """

    def __init__(self, rows: Mapping[str, int | None], show: Callable[[int, State], None]) -> None:
        self.rows, self.show = dict(rows), show
        self.ages: list[int] = []
        self.packs: list[Pack] = []
        self._plans: dict[Hashable, Plan] = {}

    def set_params(self, params: Sequence[Tensor], group_of: Sequence[int], blocks: Blocks) -> None:
        """All parameters: those of before, and new ones after them."""
        first = len(self.ages)
        self.params, self.group_of, self.blocks = params, group_of, blocks
        self.ages += [0] * (len(params) - first)
        self._plans.clear()
        if self.packs:
            self.packs += self._packs(first)

    def plan(self, active: Sequence[int], device: torch.device) -> Plan:
        """The plan for these parameters, with memory for their state; ``device`` is that of the
        blocks.
        """
        age = self.ages[active[0]]

        def make() -> Plan:
            self._allocate(active)
            return make_plan(self.packs, active, self.ages, self.params, self.blocks, device)

        return keep_plan(self._plans, tuple((i, self.ages[i] - age) for i in active), make)

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
        self._plans.clear()

    def restore(self, saved: Mapping[int, Mapping[str, Any]]) -> None:
        """State as it was saved, and nothing of before."""
        self.packs = []
        self._plans.clear()
        self.ages = [int(saved[i]["step"]) if i in saved else 0 for i in range(len(self.params))]
        self._allocate(list(saved))
        for pack in self.packs:
            for place, i in enumerate(pack.members):
                if i in saved:
                    for name, x in pack.views(place, self.params[i].shape).items():
                        x.copy_(saved[i][name])

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
        return form_packs(places, self.params, self.group_of, sizes_of, mix_dtypes=False)
