"""A function of columns as arithmetic on single numbers: what `source` writes as C.

A columnwise function has tensors whose last dimension are the n columns of a chunk, and others
(weights, values of a tensor) that all columns share; no column depends on another. It is recorded
by ``make_fx`` at a number of columns that nothing else has, and each of its tensors becomes an array
of nodes: one node for each row of columns, one for each shared number. Views, stacks and expansions
are then only ways to index these arrays. Left are nodes of arithmetic, products of a shared matrix
with rows, and sums over columns.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

WIDTH = 1009  # columns while a function is recorded

# How a number varies: not at all, with the task, with the tensor, or with the column.
CONSTANT, TASK, TENSOR, COLUMN = range(4)


class Unsupported(Exception):
    """The function does something that no kernel can be written for; the message says what."""


@dataclass(frozen=True, eq=False)
class Node:
    """One number, or one number per column. ``args`` are nodes, or what the operation needs.

    Operations: "const", "input", those of `UNARY` and `BINARY`, comparisons (which give masks),
    "where", "row" of a product, and "total", a sum over the columns of a tensor: a number that
    is only known afterwards (``late``).
    """

    index: int
    op: str
    args: tuple[Any, ...]
    varies: int
    late: bool = False
    mask: bool = False


class Array:
    """The nodes of a tensor. ``wide`` is the place of the dimension of columns, of size 1 here."""

    def __init__(self, nodes: np.ndarray, wide: int | None) -> None:
        self.nodes, self.wide = nodes, wide


@dataclass
class Product:
    """``w [A, B]`` (shared) times rows ``x [B]``."""

    w: np.ndarray
    x: tuple[Node, ...]
    level: int = 0


@dataclass
class Outer:
    """Sums over columns of products of rows ``x [A]`` and ``y [B]``."""

    x: tuple[Node, ...]
    y: tuple[Node, ...]


UNARY = {
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "sigmoid": None,
    "tanh": np.tanh,
    "abs": np.abs,
}
BINARY = ("add", "sub", "mul", "div", "max", "min")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


@dataclass
class Program:
    """The nodes of a function and what comes out of it."""

    nodes: list[Node] = field(default_factory=list)
    known: dict[tuple[Any, ...], Node] = field(default_factory=dict)
    made: dict[tuple[Any, ...], int] = field(default_factory=dict)  # products
    products: list[Product] = field(default_factory=list)
    outers: list[Outer] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)

    def node(self, op: str, *args: Any, varies: int | None = None, **kind: bool) -> Node:
        """The node for an operation: the one there is, or a new one."""
        key = (op, *(a.index if isinstance(a, Node) else ("v", a) for a in args))
        if key not in self.known:
            inputs = [a for a in args if isinstance(a, Node)]
            if varies is None:
                varies = max((a.varies for a in inputs), default=CONSTANT)
                kind.setdefault("late", any(a.late for a in inputs))
            made = Node(len(self.nodes), op, args, varies, **kind)
            self.nodes.append(made)
            self.known[key] = made
        return self.known[key]

    def const(self, value: float) -> Node:
        return self.node("const", float(value), repr(float(value)))

    def unary(self, op: str, x: Node) -> Node:
        return self.node(op, x)

    def binary(self, op: str, a: Node, b: Node) -> Node:
        """With what needs no operation left out: adding 0, times 1, minus a negative."""
        x, y = (_value(z) for z in (a, b))
        if x is not None and y is not None and op in ("add", "sub", "mul"):
            f = np.float32
            return self.const(float({"add": f(x) + f(y), "sub": f(x) - f(y)}.get(op, f(x) * f(y))))
        if op in ("add", "sub") and y == 0.0:
            return a
        if op == "add" and x == 0.0:
            return b
        if op in ("mul", "div") and y == 1.0:
            return a
        if op == "mul" and x == 1.0:
            return b
        return self.node(op, a, b)

    def total(self, x: Node) -> Node:
        """The sum of a row over the columns of its tensor."""
        if _value(x) == 0.0:
            return x
        if x.varies < COLUMN:
            raise Unsupported("a sum over columns of a number that they share")
        return self.node("total", x, varies=TENSOR, late=True)

    def product(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Rows ``[A]`` of a product."""
        key = (w.shape, *(n.index for n in w.flat), *(n.index for n in x))
        number = self.made.setdefault(key, len(self.products))
        if number == len(self.products):
            self.products.append(Product(w, tuple(x)))
        made = [self.node("row", number, a, varies=COLUMN) for a in range(len(w))]
        return _array(made, (len(w),))

    def outer(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        number = len(self.outers)
        self.outers.append(Outer(tuple(x), tuple(y)))
        made = [
            self.node("pair", number, a, b, varies=TENSOR, late=True)
            for a in range(len(x))
            for b in range(len(y))
        ]
        return _array(made, (len(x), len(y)))


def _value(x: Node) -> float | None:
    return x.args[0] if x.op == "const" else None


def _array(nodes: Sequence[Node], shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(len(nodes), dtype=object)
    out[:] = nodes
    return out.reshape(shape)


def symbolic(
    graph: fx.GraphModule,
    inputs: Sequence[tuple[str, int]],
    tensors: Sequence[Tensor],
    offsets: Mapping[str, tuple[str, int]],
) -> Program:
    """The program of a recorded graph. ``inputs``: the name and `varies` of each placeholder, whose
    values were ``tensors``; ``offsets``: of an input that lies in another one, its place there.

    Raises:
        Unsupported: an operation that has no kernel.
    """
    return _Reader(graph, offsets).read(inputs, tensors)


class _Reader:
    """Reads a graph node by node. Each method named after an operation makes its array."""

    def __init__(self, graph: fx.GraphModule, offsets: Mapping[str, tuple[str, int]]) -> None:
        self.graph, self.offsets, self.program = graph, offsets, Program()
        self.values: dict[fx.Node, Any] = {}

    def read(self, inputs: Sequence[tuple[str, int]], tensors: Sequence[Tensor]) -> Program:
        given = iter(zip(inputs, tensors, strict=True))
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                (name, varies), value = next(given)
                self.values[node] = self.input(name, varies, value)
            elif node.op == "get_attr":
                self.values[node] = self.constant(getattr(self.graph, str(node.target)))
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            else:
                self.program.outputs = [self.as_array(x) for x in self.arguments(node.args[0])]
        return self.program

    def input(self, name: str, varies: int, value: Tensor) -> Array:
        shape = tuple(value.shape)
        wide = len(shape) - 1 if varies == COLUMN else None
        if wide is not None:
            shape = (*shape[:-1], 1)
        name, first = self.offsets.get(name, (name, 0))
        places = range(first, first + math.prod(shape))
        nodes = [self.program.node("input", name, i, varies=varies) for i in places]
        return Array(_array(nodes, shape), wide)

    def constant(self, value: Tensor) -> Array:
        flat = [self.program.const(x) for x in value.detach().double().reshape(-1).tolist()]
        return Array(_array(flat, tuple(value.shape)), None)

    def arguments(self, args: Any) -> Any:
        if isinstance(args, fx.Node):
            return self.values[args]
        if isinstance(args, list | tuple):
            return [self.arguments(a) for a in args]
        return args

    def call(self, node: fx.Node) -> Any:
        args, kwargs = self.arguments(node.args), {k: self.arguments(v) for k, v in node.kwargs.items()}
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = node.target._schema.name.rpartition("::")[2]  # type: ignore[union-attr]
        method: Callable[..., Any] | None = getattr(self, f"do_{name}", None)
        if method is None and name.endswith("_"):
            # Derivative formulas write into values of their own: later readers see the new one.
            method = getattr(self, f"do_{name[:-1]}", None)
            if method is not None:
                self.values[node.args[0]] = method(*args, **kwargs)  # type: ignore[index]
                return self.values[node.args[0]]  # type: ignore[index]
        if method is None:
            raise Unsupported(f"the operation {name}")
        return method(*args, **kwargs)

    # What follows are operations by their names in torch.

    def as_array(self, x: Any) -> Array:
        if isinstance(x, Array):
            return x
        if isinstance(x, bool | int | float):
            return Array(_array([self.program.const(x)], ()), None)
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
        return Array(_array([make(*row) for row in zip(*flat)], shape), wide)

    def unary(self, op: str, x: Any) -> Array:
        return self.elementwise(lambda a: self.program.unary(op, a), x)

    def binary(self, op: str, x: Any, y: Any) -> Array:
        return self.elementwise(lambda a, b: self.program.binary(op, a, b), x, y)

    def compare(self, op: str, x: Any, y: Any) -> Array:
        return self.elementwise(lambda a, b: self.program.node(op, a, b, mask=True), x, y)

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
        return self.elementwise(lambda a, b: self.program.node("and", a, b, mask=True), x, y)

    do_bitwise_and = do_logical_and

    def do_where(self, mask: Any, x: Any, y: Any) -> Array:
        return self.elementwise(lambda m, a, b: self.program.node("where", m, a, b), mask, x, y)

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
        return Array(_array([self.program.const(value)] * math.prod(sizes), sizes), wide)

    def alike(self, x: Array, value: float) -> Array:
        shape = x.nodes.shape
        return Array(_array([self.program.const(value)] * x.nodes.size, shape), x.wide)

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

    # Views.

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
        return Array(picked if isinstance(picked, np.ndarray) else _array([picked], ()), wide)

    def do_slice(
        self, x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
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
            nodes = _map(self.program.total, nodes)
        for axis in reversed(axes):
            rows = [np.take(nodes, i, axis) for i in range(nodes.shape[axis])]
            total = rows[0]
            for row in rows[1:]:
                total = _map(lambda a, b: self.program.binary("add", a, b), total, row)
            total = total if isinstance(total, np.ndarray) else _array([total], ())
            nodes = np.expand_dims(total, axis)
        wide = None if wide in axes else wide
        if not keepdim:
            kept = [n for i, n in enumerate(nodes.shape) if i not in axes]
            wide = None if wide is None else wide - sum(a < wide for a in axes)
            nodes = nodes.reshape(kept)
        return Array(nodes, wide)

    def do_mm(self, x: Array, y: Array) -> Array:
        if x.wide == 1 and y.wide == 0:
            return Array(self.program.outer(x.nodes[:, 0], y.nodes[0]), None)
        if x.wide is None and y.wide == 1:
            return Array(self.program.product(x.nodes, y.nodes[:, 0])[:, None], 1)
        if x.wide == 0 and y.wide is None:
            return Array(self.program.product(y.nodes.T, x.nodes[0])[None], 0)
        if x.wide is None and y.wide is None:
            products = self.elementwise(
                lambda a, b: self.program.binary("mul", a, b),
                Array(x.nodes[:, :, None], None),
                Array(y.nodes[None], None),
            )
            return self.do_sum(products, [1])
        raise Unsupported("a product of columns with each other")

    def do_mv(self, x: Array, y: Array) -> Array:
        return self.do_squeeze(self.do_mm(x, self.do_unsqueeze(y, 1)), 1)

    def do_dot(self, x: Array, y: Array) -> Array:
        return self.do_sum(self.binary("mul", x, y))


def _map(make: Callable[..., Node], *arrays: Any) -> np.ndarray:
    shape = np.shape(arrays[0])
    flat = [np.asarray(a, dtype=object).reshape(-1) for a in arrays]
    return _array([make(*row) for row in zip(*flat)], shape)
