"""The C function for one block of columns."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lo_framework.native.analysis import Analysis, literal, vector
from lo_framework.native.nodes import COLUMN, Node

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


class Block(Analysis):
    """Straight-line pieces between products; what a piece leaves for others lies in `s`."""

    def _block(self, columns: list[Node]) -> str:
        self.order: dict[int, int] = {}  # shared numbers that the block reads
        body: list[str] = []
        by_level = defaultdict(list)
        for node in columns:
            if node.op not in ("row", "spread"):
                by_level[self.levels[node.index]].append(node)
        outputs = self._outputs_by_level()
        highest = max([0, *self.levels.values()])
        for level in range(highest + 1):
            body += self._piece(by_level[level], outputs[level], level)
            for k in sorted(self.products):
                product = self.formula.products[k]
                if product.level == level:
                    body += self._product(k)
            for node in columns:
                if node.op == "spread" and self.levels[node.index] == level + 1:
                    row, total = self._row(node.args[0]), self._row(node)
                    body.append(f"spread({row}, live, {total});")
        for k in sorted(self.pairs):
            body += self._pair(k)
        body += [f"extra[{i}] = {self._row(n)}[0];" for i, n in enumerate(self.extras)]
        pairs = "".join(f", V *restrict pair{k}" for k in sorted(self.pairs))
        weights = "".join(f", const float *restrict w{k}" for k in sorted(self.products))
        head = (
            "static void block(const float *const *in, float *const *out, const I *live, "
            "const float *restrict c, V *restrict total, float *restrict extra"
            f"{weights}{pairs}) {{\n"
            f"  float s[{max(1, len(self.stored))}][BLOCK] __attribute__((aligned(64)));"
        )
        return "\n".join([head, *("  " + line for line in body), "}"])

    def _outputs_by_level(self) -> dict[int, list[tuple[int, Node]]]:
        """(place, node) of the rows that are written, by the piece that writes them."""
        out: dict[int, list[tuple[int, Node]]] = defaultdict(list)
        place = 0
        for array in self.wide_outputs:
            for node in array.nodes.flat:
                out[self.levels.get(node.index, 0)].append((place, node))
                place += 1
        return out

    def _piece(self, nodes: list[Node], outputs: list[tuple[int, Node]], level: int) -> list[str]:
        lines: list[str] = []
        self.written: set[int] = set()

        def value(node: Any) -> str:
            """The vector of a node, loaded or made again if it is not at hand."""
            if node.varies < COLUMN:
                return self._shared(node)
            if node.index not in self.written:
                self.written.add(node.index)
                if node.index in self.stored and node not in wanted:
                    lines.append(f"V x{node.index} = at({self._row(node)} + v);")
                else:
                    text, kind = self._expression(node, value), "I" if node.mask else "V"
                    lines.append(f"{kind} x{node.index} = {text};")
                    if node.index in self.stored:
                        lines.append(f"put({self._row(node)} + v, x{node.index});")
            return f"x{node.index}"

        wanted = set(nodes)
        for node in nodes:
            value(node)
        for place, node in outputs:
            text = value(node)
            lines.append(f"put(out[{place}] + v, {vector(node, text)});")
        for t, total in enumerate(self.totals):
            x = total.args[0]
            if self.levels[x.index] == level:
                text = value(x)
                lines.append(f"total[{t}] += (V)(live[v / LANES] & (I){text});")
        if not lines:
            return []
        return ["for (int v = 0; v < BLOCK; v += LANES) {", *("  " + x for x in lines), "}"]

    def _expression(self, node: Node, value: Any) -> str:
        op = node.op
        if op == "input":  # read once, before anything is written: outputs may lie on inputs
            return f"at(in[{self._place(node)}] + v)"
        args = [value(a) for a in node.args]
        full = [vector(a, text) for a, text in zip(node.args, args)]
        if op in INFIX:
            return f"{args[0]} {INFIX[op]} {args[1]}"
        if op in COMPARE:
            return f"{full[0]} {COMPARE[op]} {full[1]}"
        if op == "and":
            return f"{args[0]} & {args[1]}"
        if op == "neg":
            return f"-{args[0]}"
        if op == "where":
            if node.args[0].varies < COLUMN:
                return f"{args[0]} != 0.0f ? {full[1]} : {full[2]}"
            return f"pick({', '.join([args[0], *full[1:]])})"
        return f"v_{op}({', '.join(full)})"

    def _spread(self, node: Node, lines: list[str]) -> str:
        """The row of a node; of a number that the columns share, one that `lines` make."""
        if node.varies == COLUMN:
            return self._row(node)
        name = f"b{node.index}"
        if not any(line.startswith(f"float {name}[") for line in lines):
            lines.append(f"float {name}[BLOCK] __attribute__((aligned(64)));")
            text = f"splat({self._shared(node)})"
            lines.append(f"for (int v = 0; v < BLOCK; v += LANES) put({name} + v, {text});")
        return name

    def _shared(self, node: Node) -> str:
        """A number that the columns share, as a block sees it."""
        if node.op == "const":
            return literal(node.args[0])
        return f"c[{self.order.setdefault(node.index, len(self.order))}]"

    def _product(self, k: int) -> list[str]:
        product, lines = self.formula.products[k], list[str]()
        outputs, inputs = product.w.shape
        rows = [self._spread(x, lines) for x in product.x]
        places = {
            n.args[1]: self._row(n)
            for n in self.formula.nodes
            if n.op == "row" and n.args[0] == k and n.index in self.used
        }
        lines.append(f"const float *x{k}[] = {{{', '.join(rows)}}};")
        if len(places) < outputs:
            lines.append(f"float spare{k}[BLOCK];")
        targets = ", ".join(places.get(i, f"spare{k}") for i in range(outputs))
        lines.append(f"float *y{k}[] = {{{targets}}};")
        lines.append(f"product({outputs}, {inputs}, w{k}, x{k}, y{k});")
        return ["{", *("  " + x for x in lines), "}"]

    def _pair(self, k: int) -> list[str]:
        """What lies beyond the last live column counts nothing: it is set to zero on both sides,
        for it may be NaN.
        """
        outer, lines = self.formula.outers[k], list[str]()
        rows = [self._spread(n, lines) for n in outer.x]
        columns = [self._spread(n, lines) for n in outer.y]
        lines.append(f"float dx[{len(rows)}][BLOCK] __attribute__((aligned(64)));")
        for i, row in enumerate(rows):
            value = f"(V)(live[v / LANES] & (I)at({row} + v))"
            lines.append(f"for (int v = 0; v < BLOCK; v += LANES) put(dx[{i}] + v, {value});")
        pointers = ", ".join(f"dx[{i}]" for i in range(len(rows)))
        lines.append(f"float *py[] = {{{', '.join(columns)}}};")
        lines.append(f"if (!live[VECTORS - 1][LANES - 1]) clear({len(columns)}, live, py);")
        lines.append(f"const float *px[] = {{{pointers}}};")
        lines.append(f"outer({len(rows)}, {len(columns)}, px, (const float *const *)py, pair{k});")
        return ["{", *("  " + x for x in lines), "}"]
