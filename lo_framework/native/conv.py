"""A convolution of "batch-last" maps ``[C, H, W, B]`` as an operator with derivatives of any order.

It is bilinear, and so are its two derivatives, which are its relatives:

    y  = conv(x, w)         y[o, p]  = sum_{c, t} w[o, c, t] x[c, near(p, t)]
    dx = back(d, w)         the same with the table the other way round
    dw = pairs(d, x)        dw[o, c, t] = sum_{p, b} d[o, p, b] x[c, near(p, t), b]

Each is one kernel that reads neighbours where they lie: nothing is gathered, padded or kept.

Under a 2x2 maximum the full map is not made at all. What is chosen, ``s [o, window, b]``, is kept,
and then the relatives see y and d through it: y is the chosen numbers, d is zero elsewhere.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.native import toolchain
from lo_framework.native.operators import levels, operator, over_vmaps

TAPS = 9
_BLOCK = 64  # of prelude.h
_LINE = 16  # numbers of a cache line, and of the widest vector


class Geometry(NamedTuple):
    """A 3x3 convolution with padding 1 on maps of this size."""

    height: int
    width: int
    stride: int

    @property
    def out(self) -> tuple[int, int]:
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1

    @property
    def pooled(self) -> tuple[int, int]:
        """Of the 2x2 windows of the output; odd last rows and columns are in none."""
        height, width = self.out
        return height // 2, width // 2


@cache
def tables(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """``[output pixels, 9]`` and, the other way round, ``[input pixels, 9]``; -1 for none."""
    height, width = geometry.out
    there = torch.full((height * width, TAPS), -1, dtype=torch.int32)
    back = torch.full((geometry.height * geometry.width, TAPS), -1, dtype=torch.int32)
    for y in range(height):
        for x in range(width):
            for tap in range(TAPS):
                i = y * geometry.stride + tap // 3 - 1
                j = x * geometry.stride + tap % 3 - 1
                if 0 <= i < geometry.height and 0 <= j < geometry.width:
                    there[y * width + x, tap] = i * geometry.width + j
                    back[i * geometry.width + j, tap] = y * width + x
    return there, back


@cache
def windows(geometry: Geometry) -> Tensor:
    """``[windows, 4]``: the output pixels of each."""
    pixels = torch.arange(math.prod(geometry.out), dtype=torch.int32).reshape(geometry.out)
    tall, wide = geometry.pooled
    inside = pixels[: 2 * tall, : 2 * wide].reshape(tall, 2, wide, 2)
    return inside.transpose(1, 2).reshape(-1, 4).contiguous()


@cache
def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent
    made = toolchain.load((folder / "prelude.h").read_text() + (folder / "conv.h").read_text())
    n, p = ctypes.c_long, ctypes.c_void_p
    made.gather.argtypes = [*[n] * 7, p, p, n, n, n, p, n, p, p, p, p, n]
    made.pooled.argtypes = made.gather.argtypes
    made.weights.argtypes = [*[n] * 7, p, p, n, p, n, p, p, p, p, p, n]
    made.gather.restype = made.pooled.restype = made.weights.restype = None
    return made


def _packed(x: Tensor) -> Tensor:
    """With everything behind the tasks contiguous."""
    return x if x[0].is_contiguous() else x.contiguous()


def _apart(maps: int, pixels: int) -> int:
    """Numbers of a block of maps, as `APART` in conv.h."""
    return maps * (pixels * _BLOCK + _LINE)


def _conv(x: Tensor, w: Tensor, s: Tensor | None, geometry: list[int]) -> Tensor:
    shape, x, w = Geometry(*geometry), _packed(x), _packed(w)
    if s is not None:
        return _through_windows(x, w, s.contiguous(), shape, choosing=False)
    num, maps, _, _, rows = x.shape
    out, pixels, inputs = w.shape[1], math.prod(shape.out), shape.height * shape.width
    y = x.new_empty(num, out, *shape.out, rows)
    scratch = x.new_empty(_apart(maps, inputs) + out * pixels * _BLOCK)
    sizes = (num, out, maps, pixels, inputs, rows, TAPS, tables(shape)[0].data_ptr())
    weights = (w.data_ptr(), w.stride(0), w.stride(1), TAPS)
    ends = (x.data_ptr(), x.stride(0), y.data_ptr(), scratch.data_ptr(), None, None, 0)
    _library().gather(*sizes, *weights, *ends)
    return y


def _through_windows(x: Tensor, w: Tensor, s: Tensor, shape: Geometry, *, choosing: bool) -> Tensor:
    """The convolution at the pixels ``s``; ``choosing``: at its largest ones, written to ``s``."""
    num, maps, _, _, rows = x.shape
    out, count, inputs = w.shape[1], math.prod(shape.pooled), shape.height * shape.width
    y = x.new_empty(num, out, *shape.pooled, rows)
    scratch = x.new_empty(_apart(maps, inputs) + 2 * out * count * _BLOCK)
    sizes = (num, out, maps, count, inputs, rows, TAPS, tables(shape)[0].data_ptr())
    weights = (w.data_ptr(), w.stride(0), w.stride(1), TAPS)
    ends = (x.data_ptr(), x.stride(0), y.data_ptr(), scratch.data_ptr(), s.data_ptr())
    _library().pooled(*sizes, *weights, *ends, windows(shape).data_ptr(), choosing)
    return y


def _max(x: Tensor, w: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    shape, x, w = Geometry(*geometry), _packed(x), _packed(w)
    s = x.new_empty(x.shape[0], w.shape[1], *shape.pooled, x.shape[4], dtype=torch.int8)
    return _through_windows(x, w, s, shape, choosing=True), s


def _seen_through(s: Tensor | None, shape: Geometry) -> tuple[int | None, int | None, int]:
    if s is None:
        return None, None, 0
    return s.data_ptr(), windows(shape).data_ptr(), math.prod(shape.pooled)


def _back(d: Tensor, w: Tensor, s: Tensor | None, geometry: list[int]) -> Tensor:
    shape, d, w = Geometry(*geometry), _packed(d), _packed(w)
    s = None if s is None else s.contiguous()
    num, maps, rows, out = d.shape[0], d.shape[1], d.shape[4], w.shape[2]
    pixels, inputs = shape.height * shape.width, math.prod(shape.out)
    x = d.new_empty(num, out, shape.height, shape.width, rows)
    scratch = d.new_empty(_apart(maps, inputs) + out * pixels * _BLOCK)
    sizes = (num, out, maps, pixels, inputs, rows, TAPS, tables(shape)[1].data_ptr())
    weights = (w.data_ptr(), w.stride(0), TAPS, w.stride(1))
    ends = (d.data_ptr(), d.stride(0), x.data_ptr(), scratch.data_ptr())
    _library().gather(*sizes, *weights, *ends, *_seen_through(s, shape))
    return x


def _pairs(d: Tensor, x: Tensor, s: Tensor | None, geometry: list[int]) -> Tensor:
    shape, d, x = Geometry(*geometry), _packed(d), _packed(x)
    s = None if s is None else s.contiguous()
    num, maps, _, _, rows = x.shape
    out, pixels, inputs = d.shape[1], math.prod(shape.out), shape.height * shape.width
    dw = x.new_empty(num, out, maps, 3, 3)
    scratch = x.new_empty(_apart(maps, inputs) + _apart(out, pixels))
    lanes = torch.empty(out * maps * TAPS * _LINE + _LINE)
    shift = (-lanes.data_ptr() // 4) % _LINE  # vectors lie on their own boundaries
    sizes = (num, out, maps, pixels, inputs, rows, TAPS, tables(shape)[0].data_ptr())
    pointers = (d.data_ptr(), d.stride(0), x.data_ptr(), x.stride(0), dw.data_ptr())
    room = (scratch.data_ptr(), lanes[shift:].data_ptr())
    _library().weights(*sizes, *pointers, *room, *_seen_through(s, shape))
    return dw


def _like_conv(x: Tensor, w: Tensor, s: Tensor | None, geometry: list[int]) -> Tensor:
    shape = Geometry(*geometry)
    pixels = shape.out if s is None else shape.pooled
    return x.new_empty(x.shape[0], w.shape[1], *pixels, x.shape[4])


def _like_max(x: Tensor, w: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], w.shape[1], *Geometry(*geometry).pooled, x.shape[4])
    return y, y.to(torch.int8)


def _like_back(d: Tensor, w: Tensor, s: Tensor | None, geometry: list[int]) -> Tensor:
    return d.new_empty(d.shape[0], w.shape[2], *geometry[:2], d.shape[4])


def _like_pairs(d: Tensor, x: Tensor, s: Tensor | None, geometry: list[int]) -> Tensor:
    return d.new_empty(d.shape[0], d.shape[1], x.shape[1], 3, 3)


_GIVEN = "(Tensor x, Tensor y, Tensor? s, int[] g) -> Tensor"
conv_op = operator("conv", _GIVEN, _conv, _like_conv)
back_op = operator("conv_back", _GIVEN, _back, _like_back)
pairs_op = operator("conv_pairs", _GIVEN, _pairs, _like_pairs)
max_op = operator("conv_max", "(Tensor x, Tensor w, int[] g) -> (Tensor, Tensor)", _max, _like_max)


CONV, BACK, PAIRS = range(3)
_OPERATORS = conv_op, back_op, pairs_op
# Of each relative: what its derivatives by its first and by its second tensor are, from the
# cotangent and the two tensors.
_DERIVATIVES: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (lambda d, x, w: (BACK, d, w), lambda d, x, w: (PAIRS, d, x)),
    (lambda x, d, w: (CONV, x, w), lambda x, d, w: (PAIRS, d, x)),
    (lambda w, d, x: (CONV, x, w), lambda w, d, x: (BACK, d, w)),
)


class _Bilinear(torch.autograd.Function):
    """One of the three relatives; its derivatives are the other two, seen through the same ``s``.

    ``relative`` None: the convolution under a maximum, and the ``s`` that this chooses.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, s: Tensor | None, geometry: list[int], relative: int | None
    ) -> Any:
        ctx.geometry, ctx.relative, ctx.chooses = geometry, relative or CONV, relative is None
        if relative is not None:
            ctx.save_for_backward(x, y, s)
            ctx.save_for_forward(x, y, s)
            return _OPERATORS[relative](x, y, s, geometry)
        largest, s = max_op(x, y, geometry)
        ctx.save_for_backward(x, y, s)
        ctx.save_for_forward(x, y, s)
        ctx.mark_non_differentiable(s)
        return largest, s

    @staticmethod
    def backward(ctx: Any, d: Tensor, *_: Any) -> Any:
        (x, y, s), needed = ctx.saved_tensors, ctx.needs_input_grad
        made = [
            _apply(ctx.geometry, s, *derivative(d, x, y)) if wanted else None
            for derivative, wanted in zip(_DERIVATIVES[ctx.relative], needed)
        ]
        return (*made, None, None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, *_: Any) -> Any:
        x, y, s = ctx.saved_tensors
        products = [(dx, y)] if dx is not None else []
        products += [(x, dy)] if dy is not None else []
        tangent = sum(_apply(ctx.geometry, s, ctx.relative, *pair) for pair in products)
        return (tangent, None) if ctx.chooses else tangent


def _apply(geometry: list[int], s: Tensor | None, relative: int, x: Tensor, y: Tensor) -> Tensor:
    return _Bilinear.apply(x, y, s, geometry, relative)


def conv3x3(x: Tensor, weight: Tensor, stride: int, *, largest: bool = False) -> Tensor:
    """``[C, H, W, B]`` and ``[O, C, 3, 3]`` to ``[O, H', W', B]``, or to the ``largest`` numbers of
    2x2 windows of that; vmappable.
    """
    geometry = [*Geometry(x.shape[1], x.shape[2], stride)]

    def run(x: Tensor, w: Tensor) -> tuple[Tensor]:
        if largest:
            return (_Bilinear.apply(x, w, None, geometry, None)[0],)
        return (_Bilinear.apply(x, w, None, geometry, CONV),)

    return over_vmaps(run, [x, weight])[0]


def usable(x: Tensor) -> bool:
    """Whether this tensor can go through the kernel here and now."""
    return not set(levels()) - {"vmap"} and x.device.type == "cpu" and x.dtype == torch.float32
