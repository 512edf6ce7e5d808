"""What the code of a formula needs to know about its nodes before it can be written."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from lo_framework.native.nodes import COLUMN, TENSOR, Formula, Node
from lo_framework.native.signature import Signature


class Analysis:
    """What is used, in which piece of a block it is computed, and where it is found."""

    def __init__(self, formula: Formula, signature: Signature, per_task: set[int]) -> None:
        self.formula, self.signature = formula, signature
        self.wide_outputs = [a for a in formula.outputs if a.wide is not None]
        narrow = [(i, a) for i, a in enumerate(formula.outputs) if a.wide is None]
        self.task_outputs = [a for i, a in narrow if i in per_task]
        self.tensor_outputs = [a for i, a in narrow if i not in per_task]
        self.used = self._reach()
        nodes = [n for n in formula.nodes if n.index in self.used]
        self.totals = [n for n in nodes if n.op == "total"]
        self.levels = self._levels()
        # Sums over columns that are rows too: any of their columns has the number.
        flat = [n for a in (*self.task_outputs, *self.tensor_outputs) for n in a.nodes.flat]
        self.extras = [*dict.fromkeys(n for n in flat if n.varies == COLUMN)]

    def _reach(self) -> set[int]:
        """Indices of the nodes that some output depends on; products and pairs that none does are
        left out with them.
        """
        seen: set[int] = set()
        stack = [n for a in self.formula.outputs for n in a.nodes.flat]
        self.products, self.pairs = set[int](), set[int]()
        while stack:
            node = stack.pop()
            if node.index in seen:
                continue
            seen.add(node.index)
            if node.op == "row":
                product = self.formula.products[node.args[0]]
                if node.args[0] not in self.products:
                    self.products.add(node.args[0])
                    stack += [*product.w.flat, *product.x]
            elif node.op == "pair":
                outer = self.formula.outers[node.args[0]]
                if node.args[0] not in self.pairs:
                    self.pairs.add(node.args[0])
                    stack += [*outer.x, *outer.y]
            else:
                stack += [a for a in node.args if isinstance(a, Node)]
        return seen

    def _levels(self) -> dict[int, int]:
        """How many products and sums lie before a row of columns. Nodes come after what they are
        made of.
        """
        levels: dict[int, int] = {}
        for node in self.formula.nodes:
            if node.index not in self.used or node.varies < COLUMN:
                continue
            if node.op == "row":
                product = self.formula.products[node.args[0]]
                product.level = max((levels.get(x.index, 0) for x in product.x), default=0)
                levels[node.index] = product.level + 1
            else:
                inputs = [a for a in node.args if isinstance(a, Node)]
                before = max((levels.get(a.index, 0) for a in inputs), default=0)
                levels[node.index] = before + (node.op == "spread")
        return levels

    # Where a number is found.

    def _store(self, columns: list[Node]) -> None:
        """Give a place in memory to what is read in another piece than it is made in."""
        readers: dict[int, set[int]] = defaultdict(set)  # pieces; -1: a product
        for k in self.products:
            for x in self.formula.products[k].x:
                readers[x.index].add(-1)
        for k in self.pairs:
            for x in (*self.formula.outers[k].x, *self.formula.outers[k].y):
                readers[x.index].add(-1)
        for node in (*columns, *self.extras):
            if node.op == "spread":
                readers[node.args[0].index].add(-1)
        for node in self.extras:
            readers[node.index].add(-1)
        for node in reversed(columns):
            # A mask is made again where it is read.
            pieces = {self.levels[node.index]} | (readers[node.index] if node.mask else set())
            for a in node.args:
                if isinstance(a, Node):
                    readers[a.index] |= pieces
        self.stored: dict[int, int] = {}
        for node in columns:
            elsewhere = readers[node.index] - {self.levels[node.index]}
            if node.op in ("row", "spread") or (elsewhere and not node.mask):
                self.stored[node.index] = len(self.stored)

    def _row(self, node: Node) -> str:
        """A pointer to the block's row of a node of columns."""
        return f"s[{self.stored[node.index]}]"

    def _place(self, node: Node) -> int:
        name, i = node.args[0], node.args[1]
        first = 0
        for other, rows in self.signature.rows:
            if other == name:
                return first + i
            first += rows
        raise KeyError(name)

    def _scalar(self, node: Node) -> str:
        """A number that the columns share, in C."""
        if node.op == "const":
            return literal(node.args[0])
        if node.op == "input":
            name, i = node.args
            if node.varies == TENSOR:
                return f"channels[{i} * channel_stride]"
            k = [n for n, _ in self.signature.shared].index(name)
            return f"shared{k}[{i}]"
        if node.op == "total":
            k = self.totals.index(node)
            return f"(float)(carried[{k}] + sum(total[{k}]))"
        if node.op == "count":
            return "count"
        if node.varies == COLUMN:
            return f"extra[{self.extras.index(node)}]"
        if node.op == "pair":
            k, a, b = node.args
            return f"sum(pair{k}[{a * len(self.formula.outers[k].y) + b}])"
        return f"u{node.index}"


def literal(x: float) -> str:
    if math.isnan(x):
        return "NAN"
    if math.isinf(x):
        return "INFINITY" if x > 0 else "-INFINITY"
    return f"({x!r}f)" if "." in repr(x) or "e" in repr(x) else f"({x!r}.0f)"


def vector(node: Any, text: str) -> str:
    """The operand as a vector, where a shared number would not do."""
    return f"splat({text})" if isinstance(node, Node) and node.varies < COLUMN else text
