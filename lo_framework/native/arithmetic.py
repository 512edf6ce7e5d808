"""Operations of torch on arrays of nodes, by their names: arithmetic, and what fills tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lo_framework.native.nodes import (
    COLUMN,
    WIDTH,
    Array,
    Formula,
    Node,
    Unsupported,
    array_of,
)


class Arithmetic:
    """``do_NAME`` is torch's NAME."""

    formula: Formula

    def as_array(self, x: Any) -> Array:
        if isinstance(x, Array):
            return x
        if x == WIDTH:  # the mean's derivative divides by it
            return Array(array_of([self.formula.count()], ()), None)
        if isinstance(x, bool | int | float):
            return Array(array_of([self.formula.const(x)], ()), None)
        raise Unsupported(f"an argument {x!r}")

    def elementwise(self, make: Callable[..., Node], *operands: Any) -> Array:
        arrays = [self.as_array(x) for x in operands]
        shape = np.broadcast_shapes(*(a.nodes.shape for a in arrays))
        places = {len(shape) - a.nodes.ndim + a.wide for a in arrays if a.wide is not None}
        if len(places) > 1:
            raise Unsupported("arithmetic of columns with columns")
        wide = places.pop() if places else None
        if wide is not None and shape[wide] != 1:
            raise Unsupported("columns beside a shared tensor of several")
        flat = [np.broadcast_to(a.nodes, shape).reshape(-1) for a in arrays]
        return Array(array_of([make(*row) for row in zip(*flat)], shape), wide)

    def unary(self, op: str, x: Any) -> Array:
        return self.elementwise(lambda a: self.formula.unary(op, a), x)

    def binary(self, op: str, x: Any, y: Any) -> Array:
        return self.elementwise(lambda a, b: self.formula.binary(op, a, b), x, y)

    def compare(self, op: str, x: Any, y: Any) -> Array:
        return self.elementwise(lambda a, b: self.formula.node(op, a, b, mask=True), x, y)

    def scaled(self, x: Any, alpha: Any) -> Any:
        return x if alpha == 1 else self.binary("mul", x, alpha)

    def do_add(self, x: Any, y: Any, alpha: Any = 1) -> Array:
        return self.binary("add", x, self.scaled(y, alpha))

    def do_sub(self, x: Any, y: Any, alpha: Any = 1) -> Array:
        return self.binary("sub", x, self.scaled(y, alpha))

    def do_rsub(self, x: Any, y: Any, alpha: Any = 1) -> Array:
        return self.binary("sub", y, self.scaled(x, alpha))

    def do_mul(self, x: Any, y: Any) -> Array:
        return self.binary("mul", x, y)

    def do_div(self, x: Any, y: Any) -> Array:
        return self.binary("div", x, y)

    def do_maximum(self, x: Any, y: Any) -> Array:
        return self.binary("max", x, y)

    def do_minimum(self, x: Any, y: Any) -> Array:
        return self.binary("min", x, y)

    def do_neg(self, x: Any) -> Array:
        return self.unary("neg", x)

    def do_exp(self, x: Any) -> Array:
        return self.unary("exp", x)

    def do_log(self, x: Any) -> Array:
        return self.unary("log", x)

    def do_sqrt(self, x: Any) -> Array:
        return self.unary("sqrt", x)

    def do_abs(self, x: Any) -> Array:
        return self.unary("abs", x)

    def do_sigmoid(self, x: Any) -> Array:
        return self.unary("sigmoid", x)

    def do_tanh(self, x: Any) -> Array:
        return self.unary("tanh", x)

    def shared(self, op: str, x: Any) -> Array:
        """A function that there is for single numbers only."""
        if any(n.varies == COLUMN for n in self.as_array(x).nodes.flat):
            raise Unsupported(f"{op} of columns")
        return self.unary(op, x)

    def do_expm1(self, x: Any) -> Array:
        return self.shared("expm1", x)

    def do_log1p(self, x: Any) -> Array:
        return self.shared("log1p", x)

    def do_reciprocal(self, x: Any) -> Array:
        return self.binary("div", 1.0, x)

    def do_rsqrt(self, x: Any) -> Array:
        return self.binary("div", 1.0, self.unary("sqrt", x))

    def do_relu(self, x: Any) -> Array:
        return self.binary("max", x, 0.0)

    def do_sgn(self, x: Any) -> Array:
        up, down = self.do_gt(x, 0.0), self.do_lt(x, 0.0)
        return self.do_where(up, 1.0, self.do_where(down, -1.0, 0.0))

    do_sign = do_sgn

    def do_lerp(self, x: Any, y: Any, weight: Any) -> Array:
        return self.binary("add", x, self.binary("mul", weight, self.binary("sub", y, x)))

    def do_pow(self, x: Any, power: Any) -> Array:
        if power == 2:
            return self.binary("mul", x, x)
        if power == 0.5:
            return self.do_sqrt(x)
        if power == -0.5:
            return self.do_rsqrt(x)
        if power in (-1, 3):
            squared = self.binary("mul", x, x)
            return self.do_reciprocal(x) if power == -1 else self.binary("mul", squared, x)
        raise Unsupported(f"the power {power}")

    def do_clamp(self, x: Any, low: Any = None, high: Any = None) -> Array:
        x = x if low is None else self.binary("max", x, low)
        return x if high is None else self.binary("min", x, high)

    def do_clamp_min(self, x: Any, low: Any) -> Array:
        return self.do_clamp(x, low)

    def do_clamp_max(self, x: Any, high: Any) -> Array:
        return self.do_clamp(x, None, high)

    def do_threshold_backward(self, grad: Any, x: Any, threshold: Any) -> Array:
        return self.do_where(self.compare("le", x, threshold), 0.0, grad)

    def do_sigmoid_backward(self, grad: Any, y: Any) -> Array:
        return self.binary("mul", grad, self.binary("mul", y, self.do_rsub(y, 1.0)))

    def do_tanh_backward(self, grad: Any, y: Any) -> Array:
        return self.binary("mul", grad, self.do_rsub(self.binary("mul", y, y), 1.0))

    def do_lt(self, x: Any, y: Any) -> Array:
        return self.compare("lt", x, y)

    def do_le(self, x: Any, y: Any) -> Array:
        return self.compare("le", x, y)

    def do_gt(self, x: Any, y: Any) -> Array:
        return self.compare("gt", x, y)

    def do_ge(self, x: Any, y: Any) -> Array:
        return self.compare("ge", x, y)

    def do_eq(self, x: Any, y: Any) -> Array:
        return self.compare("eq", x, y)

    def do_ne(self, x: Any, y: Any) -> Array:
        return self.compare("ne", x, y)

    def do_logical_and(self, x: Any, y: Any) -> Array:
        return self.elementwise(lambda a, b: self.formula.node("and", a, b, mask=True), x, y)

    do_bitwise_and = do_logical_and

    def do_where(self, mask: Any, x: Any, y: Any) -> Array:
        return self.elementwise(lambda m, a, b: self.formula.node("where", m, a, b), mask, x, y)

    def do_masked_fill(self, x: Any, mask: Any, value: Any) -> Array:
        return self.do_where(mask, value, x)

    def do__to_copy(self, x: Array, dtype: Any = None, **_: Any) -> Array:
        if any(n.mask for n in x.nodes.flat):
            return self.do_where(x, 1.0, 0.0)
        if dtype not in (None, torch.float32):
            raise Unsupported(f"a conversion to {dtype}")
        return x

    def same(self, x: Array, *_: Any, **__: Any) -> Array:
        return x

    do_clone = do_detach = do_alias = do_contiguous = do_lift_fresh_copy = same

    def filled(self, shape: Sequence[int], value: float) -> Array:
        wide = len(shape) - 1 if shape and shape[-1] == WIDTH else None
        sizes = tuple(1 if n == WIDTH else n for n in shape)
        return Array(array_of([self.formula.const(value)] * math.prod(sizes), sizes), wide)

    def alike(self, x: Array, value: float) -> Array:
        shape = x.nodes.shape
        return Array(array_of([self.formula.const(value)] * x.nodes.size, shape), x.wide)

    def do_empty_like(self, x: Array, **_: Any) -> Array:
        return self.alike(x, 0.0)

    def do_fill(self, x: Array, value: Any) -> Array:
        return self.alike(x, value)

    def do_zeros_like(self, x: Array, **_: Any) -> Array:
        return self.alike(x, 0.0)

    def do_ones_like(self, x: Array, **_: Any) -> Array:
        return self.alike(x, 1.0)

    def do_full_like(self, x: Array, value: float, **_: Any) -> Array:
        return self.alike(x, value)

    def do_zeros(self, shape: Sequence[int], **_: Any) -> Array:
        return self.filled(shape, 0.0)

    def do_ones(self, shape: Sequence[int], **_: Any) -> Array:
        return self.filled(shape, 1.0)

    def do_full(self, shape: Sequence[int], value: float, **_: Any) -> Array:
        return self.filled(shape, value)

    def do_new_zeros(self, _: Array, shape: Sequence[int], **__: Any) -> Array:
        return self.filled(shape, 0.0)

    def do_scalar_tensor(self, value: float, **_: Any) -> Array:
        return self.filled((), value)
