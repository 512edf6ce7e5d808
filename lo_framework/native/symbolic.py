"""A function of columns as arithmetic on single numbers: what `source` writes as C.

A columnwise function has tensors whose last dimension are the n columns of a chunk, and others
(weights, values of a tensor) that all columns share; no column depends on another. It is recorded
by ``make_fx`` at a number of columns that nothing else has, and each of its tensors becomes an
array of nodes: one for each row of columns, one for each shared number. Views, stacks, expansions
are then only ways to index these arrays. Left are nodes of arithmetic, products of a shared matrix
with rows, and sums over columns.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from lo_framework.native.nodes import COLUMN, Array, Formula, Unsupported, array_of
from lo_framework.native.views import Views


def symbolic(
    graph: fx.GraphModule,
    inputs: Sequence[tuple[str, int]],
    tensors: Sequence[Tensor],
    offsets: Mapping[str, tuple[str, int]],
    joined: bool = False,
) -> Formula:
    """The formula of a recorded graph. ``inputs``: the name and `varies` of each placeholder, whose
    values were ``tensors``; ``offsets``: of an input that lies in another one, its place there.
    ``joined``: see `Formula`.

    Raises:
        Unsupported: an operation that has no kernel.
    """
    return _Reader(graph, offsets, joined).read(inputs, tensors)


class _Reader(Views):
    """Reads a graph node by node; methods named after operations make their arrays."""

    def __init__(
        self, graph: fx.GraphModule, offsets: Mapping[str, tuple[str, int]], joined: bool
    ) -> None:
        self.graph, self.offsets, self.formula = graph, offsets, Formula(joined=joined)
        self.values: dict[fx.Node, Any] = {}

    def read(self, inputs: Sequence[tuple[str, int]], tensors: Sequence[Tensor]) -> Formula:
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
                self.formula.outputs = [self.as_array(x) for x in self.arguments(node.args[0])]
        return self.formula

    def input(self, name: str, varies: int, value: Tensor) -> Array:
        shape = tuple(value.shape)
        wide = len(shape) - 1 if varies == COLUMN else None
        if wide is not None:
            shape = (*shape[:-1], 1)
        name, first = self.offsets.get(name, (name, 0))
        places = range(first, first + math.prod(shape))
        nodes = [self.formula.node("input", name, i, varies=varies) for i in places]
        return Array(array_of(nodes, shape), wide)

    def constant(self, value: Tensor) -> Array:
        flat = [self.formula.const(x) for x in value.detach().double().reshape(-1).tolist()]
        return Array(array_of(flat, tuple(value.shape)), None)

    def arguments(self, args: Any) -> Any:
        if isinstance(args, fx.Node):
            return self.values[args]
        if isinstance(args, list | tuple):
            return [self.arguments(a) for a in args]
        return args

    def call(self, node: fx.Node) -> Any:
        args, kwargs = (
            self.arguments(node.args),
            {k: self.arguments(v) for k, v in node.kwargs.items()},
        )
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
