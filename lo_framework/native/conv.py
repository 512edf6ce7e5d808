"""A convolution of "batch-last" maps ``[C, H, W, B]`` as an operator with derivatives of any order.

It is bilinear, and so are its two derivatives, which are its relatives:

    y  = conv(x, w)         y[o, p]  = sum_{c, t} w[o, c, t] x[c, near(p, t)]
    dx = back(d, w)         the same with the table the other way round
    dw = pairs(d, x)        dw[o, c, t] = sum_{p, b} d[o, p, b] x[c, near(p, t), b]

Each is one kernel that reads neighbours where they lie: nothing is gathered, padded or kept.
"""

from __future__ import annotations

import ctypes
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
_LANES = 16


class Geometry(NamedTuple):
    """A 3x3 convolution with padding 1 on maps of this size."""

    height: int
    width: int
    stride: int

    @property
    def out(self) -> tuple[int, int]:
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1


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
def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent
    made = toolchain.load((folder / "prelude.h").read_text() + (folder / "conv.h").read_text())
    n, p = ctypes.c_long, ctypes.c_void_p
    made.gather.argtypes = [*[n] * 7, p, p, n, n, n, p, n, p, p]
    made.weights.argtypes = [*[n] * 7, p, p, n, p, n, p, p, p]
    made.gather.restype = made.weights.restype = None
    return made


def _gather(x: Tensor, w: Tensor, out: int, table: Tensor, os: int, cs: int) -> Tensor:
    """``x [K, C, Q, B]`` to ``[K, out, P, B]``, for weights with these strides."""
    num, maps, pixels, rows = x.shape
    y = x.new_empty(num, out, len(table), rows)
    scratch = x.new_empty((maps * pixels + out * len(table)) * _BLOCK if rows % _BLOCK else 0)
    sizes = (num, out, maps, len(table), pixels, rows, TAPS)
    pointers = (w.data_ptr(), w.stride(0), os, cs, x.data_ptr(), x.stride(0), y.data_ptr())
    _library().gather(*sizes, table.data_ptr(), *pointers, scratch.data_ptr())
    return y


def _packed(x: Tensor) -> Tensor:
    """With everything behind the tasks contiguous."""
    return x if x[0].is_contiguous() else x.contiguous()


def _conv(x: Tensor, w: Tensor, geometry: list[int]) -> Tensor:
    shape, x, w = Geometry(*geometry), _packed(x), _packed(w)
    y = _gather(x.flatten(2, 3), w, w.shape[1], tables(shape)[0], w.shape[2] * TAPS, TAPS)
    return y.unflatten(2, shape.out)


def _back(d: Tensor, w: Tensor, geometry: list[int]) -> Tensor:
    shape, d, w = Geometry(*geometry), _packed(d), _packed(w)
    x = _gather(d.flatten(2, 3), w, w.shape[2], tables(shape)[1], TAPS, w.shape[2] * TAPS)
    return x.unflatten(2, (shape.height, shape.width))


def _pairs(d: Tensor, x: Tensor, geometry: list[int]) -> Tensor:
    table = tables(Geometry(*geometry))[0]
    d, x = _packed(d).flatten(2, 3), _packed(x).flatten(2, 3)
    num, maps, pixels, rows = x.shape
    out = d.shape[1]
    dw = x.new_empty(num, out, maps, 3, 3)
    scratch = x.new_empty((maps * pixels + out * len(table)) * _BLOCK if rows % _BLOCK else 0)
    lanes = torch.empty(out * maps * TAPS * _LANES + _LANES)
    shift = (-lanes.data_ptr() // 4) % _LANES  # vectors lie on their own boundaries
    sizes = (num, out, maps, len(table), pixels, rows, TAPS)
    pointers = (d.data_ptr(), d.stride(0), x.data_ptr(), x.stride(0), dw.data_ptr())
    _library().weights(
        *sizes, table.data_ptr(), *pointers, scratch.data_ptr(), lanes[shift:].data_ptr()
    )
    return dw


def _like_conv(x: Tensor, w: Tensor, geometry: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[1], *Geometry(*geometry).out, x.shape[4])


def _like_back(d: Tensor, w: Tensor, geometry: list[int]) -> Tensor:
    return d.new_empty(d.shape[0], w.shape[2], *geometry[:2], d.shape[4])


def _like_pairs(d: Tensor, x: Tensor, geometry: list[int]) -> Tensor:
    return d.new_empty(d.shape[0], d.shape[1], x.shape[1], 3, 3)


conv_op = operator("conv", "(Tensor x, Tensor w, int[] g) -> Tensor", _conv, _like_conv)
back_op = operator("conv_back", "(Tensor d, Tensor w, int[] g) -> Tensor", _back, _like_back)
pairs_op = operator("conv_pairs", "(Tensor d, Tensor x, int[] g) -> Tensor", _pairs, _like_pairs)


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
    """One of the three relatives; its derivatives are the other two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, geometry: list[int], relative: int) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.geometry, ctx.relative = geometry, relative
        return _OPERATORS[relative](x, y, geometry)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        (x, y), needed = ctx.saved_tensors, ctx.needs_input_grad
        first, second = _DERIVATIVES[ctx.relative]
        return (
            _apply(ctx.geometry, *first(d, x, y)) if needed[0] else None,
            _apply(ctx.geometry, *second(d, x, y)) if needed[1] else None,
            None,
            None,
        )


def _apply(geometry: list[int], relative: int, x: Tensor, y: Tensor) -> Tensor:
    return _Bilinear.apply(x, y, geometry, relative)


def conv3x3(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """``[C, H, W, B]`` and ``[O, C, 3, 3]`` to ``[O, H', W', B]``; vmappable."""
    geometry = [*Geometry(x.shape[1], x.shape[2], stride)]
    return over_vmaps(lambda *given: (_apply(geometry, CONV, *given),), [x, weight])[0]


def usable(x: Tensor) -> bool:
    """Whether this tensor can go through the kernel here and now."""
    return not set(levels()) - {"vmap"} and x.device.type == "cpu" and x.dtype == torch.float32
