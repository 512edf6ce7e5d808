"""Operations of torch on arrays of nodes, by their names: views, sums and products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lo_framework.native.arithmetic import Arithmetic
from lo_framework.native.nodes import (
    WIDTH,
    Array,
    Unsupported,
    array_of,
    mapped,
)


class Views(Arithmetic):
    """``do_NAME`` is torch's NAME."""

    def do_expand(self, x: Array, shape: Sequence[int], **_: Any) -> Array:
        more = len(shape) - x.nodes.ndim
        old = (1,) * more + x.nodes.shape
        sizes = tuple(m if n == -1 or n == WIDTH else n for n, m in zip(shape, old))
        wide = None if x.wide is None else x.wide + more
        new = [i for i, n in enumerate(shape) if n == WIDTH]
        if new:
            wide = new[0]
        return Array(np.broadcast_to(x.nodes.reshape(old), sizes), wide)

    def do_view(self, x: Array, shape: Sequence[int], **_: Any) -> Array:
        wanted = [i for i, n in enumerate(shape) if n == WIDTH]
        if x.wide is not None and not wanted:
            if -1 in shape and x.wide == x.nodes.ndim - 1 and shape[-1] == -1:
                wanted = [len(shape) - 1]
            else:
                raise Unsupported("a view that takes columns apart")
        sizes = [1 if n == WIDTH else n for n in shape]
        if x.wide is not None:
            sizes[wanted[0]] = 1
        return Array(x.nodes.reshape(sizes), wanted[0] if x.wide is not None else None)

    do__unsafe_view = do_reshape = do_view

    def do_unsqueeze(self, x: Array, dim: int) -> Array:
        dim = dim % (x.nodes.ndim + 1)
        wide = x.wide if x.wide is None or x.wide < dim else x.wide + 1
        return Array(np.expand_dims(x.nodes, dim), wide)

    def do_squeeze(self, x: Array, dim: int | Sequence[int]) -> Array:
        dims = [d % x.nodes.ndim for d in ([dim] if isinstance(dim, int) else dim)]
        dims = [d for d in dims if x.nodes.shape[d] == 1 and d != x.wide]
        wide = None if x.wide is None else x.wide - sum(d < x.wide for d in dims)
        return Array(np.squeeze(x.nodes, tuple(dims)), wide)

    def do_permute(self, x: Array, dims: Sequence[int]) -> Array:
        order = [d % x.nodes.ndim for d in dims]
        wide = None if x.wide is None else order.index(x.wide)
        return Array(np.transpose(x.nodes, order), wide)

    def do_t(self, x: Array) -> Array:
        return self.do_permute(x, range(x.nodes.ndim)[::-1])

    def do_transpose(self, x: Array, a: int, b: int) -> Array:
        order = [*range(x.nodes.ndim)]
        order[a], order[b] = order[b], order[a]
        return self.do_permute(x, order)

    def do_select(self, x: Array, dim: int, index: int) -> Array:
        dim = dim % x.nodes.ndim
        if dim == x.wide:
            raise Unsupported("one column out of all")
        wide = x.wide if x.wide is None or x.wide < dim else x.wide - 1
        picked = np.take(x.nodes, index, dim)
        return Array(picked if isinstance(picked, np.ndarray) else array_of([picked], ()), wide)

    def do_slice(
        self,
        x: Array,
        dim: int = 0,
        start: int | None = None,
        end: int | None = None,
        step: int = 1,
    ) -> Array:
        dim = dim % x.nodes.ndim
        if dim == x.wide:
            if start in (None, 0) and (end is None or end >= WIDTH):
                return x
            raise Unsupported("some of the columns")
        index: list[Any] = [slice(None)] * x.nodes.ndim
        index[dim] = slice(start, end, step)
        return Array(x.nodes[tuple(index)], x.wide)

    def do_unbind(self, x: Array, dim: int = 0) -> list[Array]:
        return [self.do_select(x, dim, i) for i in range(x.nodes.shape[dim])]

    def do_split_with_sizes(self, x: Array, sizes: Sequence[int], dim: int = 0) -> list[Array]:
        ends = np.cumsum(sizes).tolist()
        return [self.do_slice(x, dim, end - n, end) for end, n in zip(ends, sizes)]

    def do_split(self, x: Array, size: int, dim: int = 0) -> list[Array]:
        whole = x.nodes.shape[dim]
        return [self.do_slice(x, dim, i, min(i + size, whole)) for i in range(0, whole, size)]

    def do_slice_backward(
        self, grad: Array, shape: Sequence[int], dim: int, start: int, end: int, step: int
    ) -> Array:
        whole = self.filled(shape, 0.0)
        nodes = whole.nodes.copy()
        if whole.wide is not None and dim % len(shape) == whole.wide:
            return grad
        index: list[Any] = [slice(None)] * nodes.ndim
        index[dim] = slice(start, end, step)
        nodes[tuple(index)] = grad.nodes
        return Array(nodes, whole.wide)

    def do_select_backward(self, grad: Array, shape: Sequence[int], dim: int, index: int) -> Array:
        lifted = self.do_unsqueeze(grad, dim % len(shape))
        index = index % shape[dim]
        return self.do_slice_backward(lifted, shape, dim, index, index + 1, 1)

    def do_cat(self, parts: Sequence[Array], dim: int = 0) -> Array:
        parts = [p for p in parts if p.nodes.shape != (0,)]
        wide = next((p.wide for p in parts if p.wide is not None), None)
        if wide is not None and dim % parts[0].nodes.ndim == wide:
            raise Unsupported("columns side by side")
        return Array(np.concatenate([p.nodes for p in parts], dim), wide)

    def do_stack(self, parts: Sequence[Array], dim: int = 0) -> Array:
        return self.do_cat([self.do_unsqueeze(p, dim) for p in parts], dim)

    # Sums and products.

    def do_sum(self, x: Array, dims: Any = None, keepdim: bool = False, **_: Any) -> Array:
        if isinstance(dims, int):
            dims = [dims]
        axes = sorted({d % x.nodes.ndim for d in dims} if dims else range(x.nodes.ndim))
        nodes, wide = x.nodes, x.wide
        if wide in axes:
            nodes = mapped(self.formula.total, nodes)
        for axis in reversed(axes):
            rows = [np.take(nodes, i, axis) for i in range(nodes.shape[axis])]
            total = rows[0]
            for row in rows[1:]:
                total = mapped(lambda a, b: self.formula.binary("add", a, b), total, row)
            total = total if isinstance(total, np.ndarray) else array_of([total], ())
            nodes = np.expand_dims(total, axis)
        wide = None if wide in axes else wide
        if not keepdim:
            kept = [n for i, n in enumerate(nodes.shape) if i not in axes]
            wide = None if wide is None else wide - sum(a < wide for a in axes)
            nodes = nodes.reshape(kept)
        return Array(nodes, wide)

    def do_mean(self, x: Array, dims: Any = None, keepdim: bool = False, **_: Any) -> Array:
        axes = [dims] if isinstance(dims, int) else dims or range(x.nodes.ndim)
        axes = {d % x.nodes.ndim for d in axes}
        size = math.prod(n for i, n in enumerate(x.nodes.shape) if i in axes)
        total = self.do_sum(x, [*axes], keepdim)
        total = self.binary("div", total, WIDTH) if x.wide in axes else total
        return total if size == 1 else self.binary("div", total, size)

    def do_cumsum(self, x: Array, dim: int, **_: Any) -> Array:
        dim = dim % x.nodes.ndim
        rows = [np.take(x.nodes, i, dim) for i in range(x.nodes.shape[dim])]
        for i, row in enumerate(rows[1:], 1):
            rows[i] = mapped(lambda a, b: self.formula.binary("add", a, b), rows[i - 1], row)
        parts = [r if isinstance(r, np.ndarray) else array_of([r], ()) for r in rows]
        return Array(np.stack(parts, dim), x.wide)

    def do_flip(self, x: Array, dims: Sequence[int]) -> Array:
        return Array(np.flip(x.nodes, tuple(dims)), x.wide)

    def do_mm(self, x: Array, y: Array) -> Array:
        if x.wide == 1 and y.wide == 0:
            return Array(self.formula.outer(x.nodes[:, 0], y.nodes[0]), None)
        if x.wide is None and y.wide == 1:
            return Array(self.formula.product(x.nodes, y.nodes[:, 0])[:, None], 1)
        if x.wide == 0 and y.wide is None:
            return Array(self.formula.product(y.nodes.T, x.nodes[0])[None], 0)
        if x.wide is None and y.wide is None:
            products = self.elementwise(
                lambda a, b: self.formula.binary("mul", a, b),
                Array(x.nodes[:, :, None], None),
                Array(y.nodes[None], None),
            )
            return self.do_sum(products, [1])
        raise Unsupported("a product of columns with each other")

    def do_mv(self, x: Array, y: Array) -> Array:
        return self.do_squeeze(self.do_mm(x, self.do_unsqueeze(y, 1)), 1)

    def do_dot(self, x: Array, y: Array) -> Array:
        return self.do_sum(self.binary("mul", x, y))
