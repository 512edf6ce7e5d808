"""Arithmetic on single numbers and rows of numbers, as a list of nodes without repetitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WIDTH = 1009  # columns while a function is recorded

# How a number varies: not at all, with the task, with the tensor, or with the column.
CONSTANT, TASK, TENSOR, COLUMN = range(4)


class Unsupported(Exception):
    """The function does something that no kernel can be written for; the message says what."""


@dataclass(frozen=True, eq=False)
class Node:
    """One number, or one number per column. ``args`` are nodes, or what the operation needs.

    Operations: "const", "input", functions, arithmetic, comparisons (which give masks), "where",
    "row" of a product, "count" of the columns, and "total", a sum over the columns of a tensor: a
    number that is only known afterwards (``late``); "spread" is such a sum as a row.
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


@dataclass
class Formula:
    """The nodes of a function and what comes out of it."""

    nodes: list[Node] = field(default_factory=list)
    known: dict[tuple[Any, ...], Node] = field(default_factory=dict)
    made: dict[tuple[Any, ...], int] = field(default_factory=dict)  # products
    products: list[Product] = field(default_factory=list)
    outers: list[Outer] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)
    # Whether all columns of a tensor lie in one block, so that a sum over them can be read by them.
    joined: bool = False

    def node(self, op: str, *args: Any, varies: int | None = None, **kind: bool) -> Node:
        """The node for an operation: the one there is, or a new one."""
        key = (op, *(a.index if isinstance(a, Node) else ("v", a) for a in args))
        if key not in self.known:
            inputs = [a for a in args if isinstance(a, Node)]
            if varies is None:
                varies = max((a.varies for a in inputs), default=CONSTANT)
                kind.setdefault("late", any(a.late for a in inputs))
                if varies == COLUMN and kind["late"]:
                    raise Unsupported("columns that depend on a sum over columns")
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
        x, y = (value_of(z) for z in (a, b))
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
        if value_of(x) == 0.0:
            return x
        if x.varies < COLUMN:
            return self.binary("mul", x, self.count())
        if self.joined:
            return self.node("spread", x)
        return self.node("total", x, varies=TENSOR, late=True)

    def count(self) -> Node:
        """How many columns the tensor has."""
        return self.node("count", varies=TENSOR)

    def product(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Rows ``[A]`` of a product. What the columns share among ``x`` is multiplied once for all
        of them.
        """
        wide = np.array([n.varies == COLUMN for n in x])
        if not wide.all():
            rows = self.product(w[:, wide], x[wide]) if wide.any() else [None] * len(w)
            return array_of([self._plus(r, a, x, ~wide) for r, a in zip(rows, w)], (len(w),))
        key = (w.shape, *(n.index for n in w.flat), *(n.index for n in x))
        number = self.made.setdefault(key, len(self.products))
        if number == len(self.products):
            self.products.append(Product(w, tuple(x)))
        made = [self.node("row", number, a, varies=COLUMN) for a in range(len(w))]
        return array_of(made, (len(w),))

    def _plus(self, row: Node | None, w: np.ndarray, x: np.ndarray, some: np.ndarray) -> Node:
        """A row and the products of ``some`` numbers that the columns share."""
        parts = [self.binary("mul", a, b) for a, b in zip(w[some], x[some])]
        total = parts[0]
        for part in parts[1:]:
            total = self.binary("add", total, part)
        return total if row is None else self.binary("add", row, total)

    def outer(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Sums over columns of all products of a row of ``x`` with a row of ``y``."""
        for rows, others in ((x, y), (y, x)):
            wide = np.array([n.varies == COLUMN for n in others])
            if not wide.all():
                sums = [self.total(n) for n in rows]
                table = np.empty((len(rows), len(others)), dtype=object)
                if wide.any():
                    table[:, wide] = self.outer(rows, others[wide])
                for j in np.flatnonzero(~wide):
                    table[:, j] = [self.binary("mul", total, others[j]) for total in sums]
                return table if rows is x else table.T
        number = len(self.outers)
        self.outers.append(Outer(tuple(x), tuple(y)))
        made = [
            self.node("pair", number, a, b, varies=TENSOR, late=True)
            for a in range(len(x))
            for b in range(len(y))
        ]
        return array_of(made, (len(x), len(y)))


def value_of(x: Node) -> float | None:
    return x.args[0] if x.op == "const" else None


def array_of(nodes: Sequence[Node], shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(len(nodes), dtype=object)
    out[:] = nodes
    return out.reshape(shape)


def mapped(make: Callable[..., Node], *arrays: Any) -> np.ndarray:
    shape = np.shape(arrays[0])
    flat = [np.asarray(a, dtype=object).reshape(-1) for a in arrays]
    return array_of([make(*row) for row in zip(*flat)], shape)
