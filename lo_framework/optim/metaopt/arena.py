"""Where the state lies: in packs of tensors, which a step works through in runs, and runs in
cache-sized pieces.

A call of a torch operation costs a microsecond whatever its size, so small neighbours share one
block of memory and are updated together; a large tensor is a pack of its own, updated where it
lies. A run is a stretch of a pack whose tensors all have a gradient and are equally old. A piece is
what one call of a kernel gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.optim.metaopt.bases import Number, State
from lo_framework.optim.metaopt.blocks import Blocks
from lo_framework.optim.metaopt.kernels import Scratch

CPU_CHUNK, CPU_SMALL = 1 << 16, 1 << 14
# An accelerator wants few, large kernels; the limit only bounds the memory of intermediates.
DEVICE_CHUNK, DEVICE_SMALL = 1 << 22, 1 << 20


def chunk_size(device: torch.device) -> int:
    return CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """State and arithmetic are float32, or float64 for float64 parameters."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
        """Values ``[..., m]`` of the blocks, one an element of the piece; without that dimension
        for one block.

        ``factor`` multiplies them.
        """
        chosen = (
            values[..., self.block]
            if self.segments is None
            else values.index_select(-1, self.segments.ids)
        )
        chosen = chosen.to(dtype) if factor is None else chosen.to(dtype) * factor
        if self.segments is None:
            return chosen
        lengths, size = self.segments.lengths, self.part.stop - self.part.start
        return (
            chosen
            if lengths is None
            else chosen.repeat_interleave(lengths, dim=-1, output_size=size)
        )

    def add_sums(self, x: Tensor, totals: Tensor) -> None:
        """Add the sums of ``x [n]`` over the blocks to ``totals [m]``."""
        if self.segments is None:
            totals[self.block] += x.sum().to(totals)
            return
        ids, lengths = self.segments
        sums = (
            x if lengths is None else torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True)
        )
        totals.index_add_(0, ids.to(totals.device), sums.to(totals))


@dataclass(eq=False)
class Pack:
    """Tensors of one parameter group, device and dtype with one block of state ``[..., n]``."""

    members: tuple[int, ...]  # places in the list of all parameters, ascending
    offsets: tuple[int, ...]  # first column of each member, and the end
    group: int
    device: torch.device
    dtype: torch.dtype
    state: State = field(default_factory=dict)  # made with the first gradient

    def views(self, place: int, shape: torch.Size) -> State:
        """The state of one member, ``[*lead, *shape]``."""
        begin, end = self.offsets[place : place + 2]
        return {
            name: x[..., begin:end].view((*x.shape[:-1], *shape)) for name, x in self.state.items()
        }


class _Side(NamedTuple):
    """Tensors side by side, and views of each."""

    flat: Tensor
    parts: list[Tensor]


@dataclass(eq=False)
class Run:
    pack: Pack
    members: tuple[int, ...]
    begin: int
    end: int
    pieces: list[Piece]
    shapes: list[torch.Size]  # of the members
    _side: tuple[_Side, _Side] | None = field(default=None, init=False)

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
        """Weights and gradients like `gathered`; several tensors side by side in ``scratch``, in
        the dtype of state.
        """
        grads = [p.grad for p in params]
        if len(params) == 1:
            return params[0].reshape(-1), grads[0].reshape(-1)  # type: ignore[union-attr]
        if self._side is None:
            self._side = (self._place(scratch, "weights"), self._place(scratch, "grads"))
        for side, tensors in zip(self._side, (params, grads)):
            torch._foreach_copy_(side.parts, tensors)  # type: ignore[arg-type]
        return self._side[0].flat, self._side[1].flat

    def unload(self, flat: Tensor, params: Sequence[Tensor]) -> None:
        """From `loaded` into the parameters, unless it is their own memory."""
        if len(params) > 1:
            assert self._side is not None
            torch._foreach_copy_(list(params), self._side[0].parts)
        else:
            self.write_back(flat, params)

    def _place(self, scratch: Scratch, name: str) -> _Side:
        """The run's part of working memory; views of it are kept, since making them takes longer
        than copying.
        """
        pack = self.pack
        flat = scratch.of(pack.device, compute_dtype(pack.dtype), self.end - self.begin, name)
        sizes = [shape.numel() for shape in self.shapes]
        return _Side(
            flat, [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes)]
        )

    def gathered(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor a member, side by side; a single one where it lies if it is contiguous."""
        return (
            tensors[0].reshape(-1)
            if len(tensors) == 1
            else torch.cat([x.reshape(-1) for x in tensors])
        )

    def write_back(self, flat: Tensor, params: Sequence[Tensor]) -> None:
        """From `gathered` into the parameters, unless it is their own memory."""
        if len(params) > 1:
            parts = flat.split([p.numel() for p in params])
            torch._foreach_copy_(
                list(params), [part.view(p.shape) for part, p in zip(parts, params)]
            )
        elif flat.data_ptr() != params[0].data_ptr():
            params[0].copy_(flat.view(params[0].shape))


def form_packs(
    indices: Iterable[int], params: Sequence[Tensor], group_of: Sequence[int]
) -> list[Pack]:
    """Cut parameters into packs: large ones alone, small ones of one group, device and dtype
    together.

    A function of the parameters alone, so a resumed run sums in the same order as an unbroken one.
    """
    kept: list[tuple[list[int], int]] = []
    open_packs: dict[tuple[int, torch.device, torch.dtype], int] = {}
    for i in indices:
        p = params[i]
        small, limit = (
            (CPU_SMALL, CPU_CHUNK) if p.device.type == "cpu" else (DEVICE_SMALL, DEVICE_CHUNK)
        )
        if p.numel() > small:
            kept.append(([i], p.numel()))
            continue
        key = (group_of[i], p.device, p.dtype)
        at = open_packs.get(key)
        if at is None or kept[at][1] + p.numel() > limit:
            at = open_packs[key] = len(kept)
            kept.append(([], 0))
        kept[at] = ([*kept[at][0], i], kept[at][1] + p.numel())
    packs = []
    for members, _ in kept:
        offsets = [0]
        for i in members:
            offsets.append(offsets[-1] + params[i].numel())
        first = members[0]
        packs.append(
            Pack(
                tuple(members),
                tuple(offsets),
                group_of[first],
                params[first].device,
                params[first].dtype,
            )
        )
    return packs


@dataclass(eq=False)
class Plan:
    """What a step with a given set of gradients works on."""

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
    """The plan for the parameters ``active``; ``ages`` are the steps that each parameter has made."""
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
        first = 0
        while first < len(pack.members):
            if pack.members[first] not in wanted:
                first += 1
                continue
            last, age = first, ages[pack.members[first]]
            while (
                last < len(pack.members)
                and pack.members[last] in wanted
                and ages[pack.members[last]] == age
            ):
                last += 1
            members, begin, end = pack.members[first:last], pack.offsets[first], pack.offsets[last]
            pieces = list(_pieces(members, params, blocks, chunk_size(pack.device), pack.device))
            runs.append(Run(pack, members, begin, end, pieces, [params[i].shape for i in members]))
            first = last
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
