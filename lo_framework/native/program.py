"""A columnwise function of known shapes, and its two kernels: made from a recording of it, and
called with addresses.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lo_framework.native import toolchain
from lo_framework.native.nodes import COLUMN, TASK, TENSOR, WIDTH
from lo_framework.native.signature import Signature
from lo_framework.native.source import source
from lo_framework.native.symbolic import symbolic

# (shared, channels [C, n or 1], columns [..., n]) to what has columns [..., n], and what is to be
# summed over each tensor, [F, n].
Function = Callable[[list[Tensor], Tensor, list[Tensor]], tuple[list[Tensor], list[Tensor]]]


JOINED = 64  # columns of one block


class _Job(ctypes.Structure):
    _fields_ = [
        ("tasks", ctypes.c_long),
        ("tensors", ctypes.c_long),
        ("bounds", ctypes.c_void_p),
        ("shared", ctypes.c_void_p),
        ("shared_step", ctypes.c_void_p),
        ("channels", ctypes.c_void_p),
        ("channel_step", ctypes.c_long),
        ("channel_stride", ctypes.c_long),
        ("rows", ctypes.c_void_p),
        ("row_step", ctypes.c_void_p),
        ("row_stride", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("in_table", ctypes.c_void_p),
        ("out_table", ctypes.c_void_p),
    ]


class Kernel:
    """A compiled program."""

    def __init__(self, text: str, signature: Signature) -> None:
        self.signature = signature
        self.run = toolchain.load(text).run
        self.run.restype = None
        self.run.argtypes = [ctypes.c_void_p]

    def __call__(
        self,
        shared: Sequence[Tensor],
        channels: Tensor,
        rows: Sequence[Tensor],
        bounds: Sequence[int],
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Outputs ``[K, rows, N]``, totals ``[K, F, S]`` and sums ``[K, U]`` for ``shared [K,
        size]``, ``channels [K, C, S]`` and ``rows [K, rows, N]``; rows are contiguous.
        """
        s = self.signature
        num, size, tensors = len(channels), bounds[-1], len(bounds) - 1
        outputs = [channels.new_empty(num, n, size) for n in s.outputs]
        totals = channels.new_empty(num, sum(s.totals), tensors)
        sums = channels.new_empty(num, sum(s.sums))
        job = _Job(
            num,
            tensors,
            ctypes.addressof(limits := _longs(bounds)),
            ctypes.addressof(where := _pointers(shared)),
            ctypes.addressof(steps := _longs(x.stride(0) for x in shared)),
            channels.data_ptr(),
            channels.stride(0),
            channels.stride(1),
            ctypes.addressof(row := _pointers(rows)),
            ctypes.addressof(row_steps := _longs(x.stride(0) for x in rows)),
            ctypes.addressof(row_strides := _longs(x.stride(1) for x in rows)),
            ctypes.addressof(out := _pointers(outputs)),
            ctypes.addressof(out_strides := _longs(x.stride(1) for x in outputs)),
            totals.data_ptr(),
            sums.data_ptr(),
        )
        self.run(ctypes.addressof(job))
        del limits, where, steps, row, row_steps, row_strides, out, out_strides  # alive until here
        return outputs, totals, sums

    def over(
        self, shared: Sequence[Tensor], channels: Tensor, bounds: Tensor, rows: Tensor, out: Tensor
    ) -> Tensor:
        """The totals ``[F, S]`` of one task whose tensors lie anywhere: ``rows`` and ``out``
        (int64) are the addresses of their rows, ``[S, rows]``. Outputs may lie on inputs.
        """
        tensors = len(bounds) - 1
        totals = channels.new_empty(sum(self.signature.totals), tensors)
        job = _Job(tasks=1, tensors=tensors, bounds=bounds.data_ptr())
        job.shared = ctypes.addressof(where := _pointers(shared))
        job.shared_step = ctypes.addressof(steps := _longs([0] * len(shared)))
        job.channels, job.channel_stride = channels.data_ptr(), tensors
        job.totals, job.sums = totals.data_ptr(), totals.data_ptr()
        job.in_table, job.out_table = rows.data_ptr(), out.data_ptr()
        self.run(ctypes.addressof(job))
        del where, steps
        return totals


def _longs(values: Any) -> Any:
    values = [*values]
    return (ctypes.c_long * max(1, len(values)))(*values)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*[x.data_ptr() for x in tensors])


@dataclass(eq=False)
class Program:
    """A columnwise function of known shapes, with its kernels.

    Attributes:
        shared: shapes of what all columns of a task share.
        channels: how many values a tensor has.
        columns: leading dimensions of each ``[..., n]``.
        joined: whether columns may look at sums over all columns; there are then at most `JOINED`.
    """

    name: str
    function: Function
    shared: tuple[tuple[int, ...], ...]
    channels: int
    columns: tuple[tuple[int, ...], ...]
    joined: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        text = repr((self.name, self.shared, self.channels, self.columns, self.joined))
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        with torch.no_grad():
            outputs, totals = self.function(*self._example())
        self.outputs = tuple(tuple(x.shape[:-1]) for x in outputs)
        self.totals = tuple(tuple(x.shape[:-1]) for x in totals)
        PROGRAMS.setdefault(self.key, self)

    def _example(self) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        shapes = *self.shared, (self.channels, 1), *((*x, WIDTH) for x in self.columns)
        return self._split([torch.ones(x, device=self.device) for x in shapes])

    @cached_property
    def forward(self) -> Kernel:
        """Raises Unsupported or UserError."""

        def function(*flat: Tensor) -> list[Tensor]:
            outputs, totals = self.function(*self._split(flat))
            return [*outputs, *(x.sum(-1) for x in totals)]

        return self._kernel(function, (), (), per_task=False)

    @cached_property
    def backward(self) -> Kernel:
        """Takes cotangents of totals as more channels, and those of outputs as more columns."""
        outputs = [(*x, WIDTH) for x in self.outputs]

        def function(*flat: Tensor) -> list[Tensor]:
            count = len(self.shared) + 1 + len(self.columns)
            given = [x.detach().requires_grad_() for x in flat[:count]]
            shared, channels, columns = self._split(given)
            narrow, *seeds = flat[count:]
            with torch.enable_grad():
                made, totals = self.function(shared, channels, columns)
            sizes = [math.prod(x) for x in self.totals]
            cotangents = [
                part.reshape(*shape, 1).expand(*shape, WIDTH)
                for part, shape in zip(narrow[:, 0].split(sizes), self.totals)
            ]
            pairs = [*zip(made, seeds), *zip(totals, cotangents)]
            reached = [(x, seed) for x, seed in pairs if x.requires_grad]
            found = torch.autograd.grad(
                [x for x, _ in reached],
                given,
                [seed for _, seed in reached],
                allow_unused=True,
                materialize_grads=True,
            )
            # Columns first, then what belongs to a tensor, then what belongs to a task.
            n = len(self.shared)
            return [*found[n + 1 :], found[n][:, 0], *found[:n]]

        more = sum(math.prod(x) for x in self.totals)
        return self._kernel(function, (more,), tuple(outputs), per_task=True)

    def _split(self, flat: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        n = len(self.shared)
        return [*flat[:n]], flat[n], [*flat[n + 1 : n + 1 + len(self.columns)]]

    def _kernel(
        self,
        function: Callable[..., list[Tensor]],
        more_channels: tuple[int, ...],
        more_columns: tuple[tuple[int, ...], ...],
        per_task: bool,
    ) -> Kernel:
        shared, channels, columns = self._example()
        tensors = [*shared, channels, *columns]
        inputs = [(f"s{i}", TASK) for i in range(len(shared))] + [("c", TENSOR)]
        inputs += [(f"x{i}", COLUMN) for i in range(len(columns))]
        rows = [(f"x{i}", math.prod(x)) for i, x in enumerate(self.columns)]
        count = self.channels
        if per_task:
            tensors += [torch.ones(more_channels[0], 1), *(torch.ones(x) for x in more_columns)]
            inputs += [("d", TENSOR)]
            inputs += [(f"d{i}", COLUMN) for i in range(len(more_columns))]
            rows += [(f"d{i}", math.prod(x[:-1])) for i, x in enumerate(more_columns)]
            count += more_channels[0]
        graph = make_fx(function)(*tensors)
        graph.graph.eliminate_dead_code()
        program = symbolic(
            graph, inputs, tensors, offsets={"d": ("c", self.channels)}, joined=self.joined
        )
        if per_task:
            n = len(self.columns)
            outputs = tuple(math.prod(x) for x in self.columns)
            totals: tuple[int, ...] = (self.channels,)
            sums = tuple(math.prod(x) for x in self.shared)
            places = range(n + 1, n + 1 + len(sums))
        else:
            outputs = tuple(math.prod(x) for x in self.outputs)
            totals = tuple(math.prod(x) for x in self.totals)
            sums, places = (), range(0)
        names = tuple((f"s{i}", math.prod(x)) for i, x in enumerate(self.shared))
        signature = Signature(names, count, tuple(rows), outputs, totals, sums)
        wide = [*program.outputs[: len(outputs)]]
        for array in wide:
            array.wide = array.wide if array.wide is not None else array.nodes.ndim - 1
        return Kernel(source(program, signature, places), signature)


PROGRAMS: dict[str, Program] = {}  # by key, for the operators: what a key means never changes
