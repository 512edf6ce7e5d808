"""C code for a columnwise program: one pass over memory, in blocks of 64 columns.

The arithmetic of a block is straight-line code on vectors, cut where products of matrices need
whole rows: a row that is read in another piece, or by a product, lies in a small array that stays
in the first-level cache. Shared numbers are computed once for a task or a tensor; sums over columns
are kept in lanes, and what depends on them is computed after the last column.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lo_framework.native.symbolic import COLUMN, TENSOR, Array, Node, Program, Unsupported

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_LARGEST = 40_000  # nodes: beyond, compilers take minutes


@dataclass(frozen=True)
class Signature:
    """The order in which a kernel takes its tensors.

    Attributes:
        shared: names and sizes of inputs that a task's columns share.
        channels: values per tensor.
        rows: names and rows of inputs of columns.
        outputs: rows of each output of columns; ``totals``: sizes of what is summed over each
            tensor; ``sums``: sizes of what is summed over a task.
    """

    shared: tuple[tuple[str, int], ...]
    channels: int
    rows: tuple[tuple[str, int], ...]
    outputs: tuple[int, ...]
    totals: tuple[int, ...]
    sums: tuple[int, ...]


def source(program: Program, signature: Signature, per_task: Iterable[int]) -> str:
    """The C source. ``per_task``: the places of the outputs that are summed over a task; others
    without columns are summed over a tensor.
    """
    if len(program.nodes) > _LARGEST:
        raise Unsupported(f"{len(program.nodes):,} operations a column")
    prelude = (Path(__file__).parent / "prelude.h").read_text()
    return prelude + _Writer(program, signature, set(per_task)).write()


class _Writer:
    def __init__(self, program: Program, signature: Signature, per_task: set[int]) -> None:
        self.program, self.signature = program, signature
        self.wide_outputs = [a for a in program.outputs if a.wide is not None]
        narrow = [(i, a) for i, a in enumerate(program.outputs) if a.wide is None]
        self.task_outputs = [a for i, a in narrow if i in per_task]
        self.tensor_outputs = [a for i, a in narrow if i not in per_task]
        self.used = self._reach()
        self.levels = self._levels()

    def _reach(self) -> set[int]:
        """Indices of the nodes that some output depends on; products and pairs that none does are
        left out with them.
        """
        seen: set[int] = set()
        stack = [n for a in self.program.outputs for n in a.nodes.flat]
        self.products, self.pairs = set[int](), set[int]()
        while stack:
            node = stack.pop()
            if node.index in seen:
                continue
            seen.add(node.index)
            if node.op == "row":
                product = self.program.products[node.args[0]]
                if node.args[0] not in self.products:
                    self.products.add(node.args[0])
                    stack += [*product.w.flat, *product.x]
            elif node.op == "pair":
                outer = self.program.outers[node.args[0]]
                if node.args[0] not in self.pairs:
                    self.pairs.add(node.args[0])
                    stack += [*outer.x, *outer.y]
            else:
                stack += [a for a in node.args if isinstance(a, Node)]
        return seen

    def _levels(self) -> dict[int, int]:
        """How many products lie before a row of columns. Nodes come after what they are made of."""
        levels: dict[int, int] = {}
        for node in self.program.nodes:
            if node.index not in self.used or node.varies < COLUMN:
                continue
            if node.op == "row":
                product = self.program.products[node.args[0]]
                product.level = max((levels.get(x.index, 0) for x in product.x), default=0)
                levels[node.index] = product.level + 1
            else:
                inputs = [a for a in node.args if isinstance(a, Node)]
                levels[node.index] = max((levels.get(a.index, 0) for a in inputs), default=0)
        return levels

    def write(self) -> str:
        live = [n for n in self.program.nodes if n.index in self.used]
        early = [n for n in live if n.varies < COLUMN and not n.late and n.op != "input"]
        late = [n for n in live if n.varies < COLUMN and n.late and n.op not in ("total", "pair")]
        columns = [n for n in live if n.varies == COLUMN]
        self.totals = [n for n in live if n.op == "total"]
        self._store(columns)
        parts = [
            "struct job { long tasks, tensors; const long *bounds; const float *const *shared;",
            "  const long *shared_step; const float *channels; long channel_step, channel_stride;",
            "  const float *const *rows; const long *row_step; const long *row_stride;",
            "  float *const *out; const long *out_stride; float *totals, *sums;",
            "  const float *const *in_table; float *const *out_table; };",
            self._block(columns),
            self._run(early, late),
        ]
        return "\n".join(parts) + "\n"

    # Where a number is found.

    def _store(self, columns: list[Node]) -> None:
        """Give a place in memory to what is read in another piece than it is made in."""
        readers: dict[int, set[int]] = defaultdict(set)  # pieces; -1: a product
        for k in self.products:
            for x in self.program.products[k].x:
                readers[x.index].add(-1)
        for k in self.pairs:
            for x in (*self.program.outers[k].x, *self.program.outers[k].y):
                readers[x.index].add(-1)
        for node in reversed(columns):
            # A mask is made again where it is read.
            pieces = {self.levels[node.index]} | (readers[node.index] if node.mask else set())
            for a in node.args:
                if isinstance(a, Node):
                    readers[a.index] |= pieces
        self.stored = {}
        for node in columns:
            elsewhere = readers[node.index] - {self.levels[node.index]}
            if node.op == "row" or (elsewhere and not node.mask):
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
            return _literal(node.args[0])
        if node.op == "input":
            name, i = node.args
            if node.varies == TENSOR:
                return f"channels[{i} * channel_stride]"
            k = [n for n, _ in self.signature.shared].index(name)
            return f"shared{k}[{i}]"
        if node.op == "total":
            k = self.totals.index(node)
            return f"(float)(carried[{k}] + sum(total[{k}]))"
        if node.op == "pair":
            k, a, b = node.args
            return f"sum(pair{k}[{a * len(self.program.outers[k].y) + b}])"
        return f"u{node.index}"

    # One block of columns.

    def _block(self, columns: list[Node]) -> str:
        self.order: dict[int, int] = {}  # shared numbers that the block reads
        body: list[str] = []
        by_level = defaultdict(list)
        for node in columns:
            if node.op not in ("row",):
                by_level[self.levels[node.index]].append(node)
        outputs = self._outputs_by_level()
        highest = max([0, *self.levels.values()])
        for level in range(highest + 1):
            body += self._piece(by_level[level], outputs[level], level)
            for k in sorted(self.products):
                product = self.program.products[k]
                if product.level == level:
                    body += self._product(k)
        for k in sorted(self.pairs):
            body += self._pair(k)
        pairs = "".join(f", V *restrict pair{k}" for k in sorted(self.pairs))
        weights = "".join(f", const float *restrict w{k}" for k in sorted(self.products))
        head = (
            "static void block(const float *const *in, float *const *out, const I *live, "
            f"const float *restrict c, V *restrict total{weights}{pairs}) {{\n"
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

    def _piece(
        self, nodes: list[Node], outputs: list[tuple[int, Node]], level: int
    ) -> list[str]:
        lines: list[str] = []
        self.written: set[int] = set()

        def value(node: Any) -> str:
            """The vector of a node, loaded or made again if it is not at hand."""
            if node.varies < COLUMN:
                if node.op == "const":
                    return _literal(node.args[0])
                return f"c[{self.order.setdefault(node.index, len(self.order))}]"
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
            lines.append(f"put(out[{place}] + v, {_vector(node, text)});")
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
        full = [_vector(a, text) for a, text in zip(node.args, args)]
        if op in _INFIX:
            return f"{args[0]} {_INFIX[op]} {args[1]}"
        if op in _COMPARE:
            return f"{full[0]} {_COMPARE[op]} {full[1]}"
        if op == "and":
            return f"{args[0]} & {args[1]}"
        if op == "neg":
            return f"-{args[0]}"
        if op == "where":
            if node.args[0].varies < COLUMN:
                raise Unsupported("a choice for all columns at once")
            return f"pick({', '.join([args[0], *full[1:]])})"
        return f"v_{op}({', '.join(full)})"

    def _product(self, k: int) -> list[str]:
        product = self.program.products[k]
        a, b = product.w.shape
        rows, lines = [], []
        for x in product.x:
            if x.varies < COLUMN:  # a value of the tensor among the rows
                number = self.order.setdefault(x.index, len(self.order))
                text = _literal(x.args[0]) if x.op == "const" else f"c[{number}]"
                name = f"b{k}_{x.index}"
                if all(name not in line for line in lines):
                    lines.append(f"float {name}[BLOCK] __attribute__((aligned(64)));")
                    lines.append(
                        f"for (int v = 0; v < BLOCK; v += LANES) put({name} + v, splat({text}));"
                    )
                rows.append(name)
            else:
                rows.append(self._row(x))
        places = {
            n.args[1]: self._row(n)
            for n in self.program.nodes
            if n.op == "row" and n.args[0] == k and n.index in self.used
        }
        lines.append(f"const float *x{k}[] = {{{', '.join(rows)}}};")
        spare = f"spare{k}"
        if len(places) < a:
            lines.append(f"float {spare}[BLOCK];")
        targets = ", ".join(places.get(i, spare) for i in range(a))
        lines.append(f"float *y{k}[] = {{{targets}}};")
        lines.append(f"product({a}, {b}, w{k}, x{k}, y{k});")
        return ["{", *("  " + x for x in lines), "}"]

    def _pair(self, k: int) -> list[str]:
        """Rows beyond the last live column count nothing: one side is set to zero there."""
        outer = self.program.outers[k]
        lines = []
        names: dict[int, str] = {}
        for n in (*outer.x, *outer.y):
            if n.index in names:
                continue
            if n.varies < COLUMN:
                number = self.order.setdefault(n.index, len(self.order))
                text = _literal(n.args[0]) if n.op == "const" else f"c[{number}]"
                names[n.index] = f"b{n.index}"
                lines.append(f"float b{n.index}[BLOCK] __attribute__((aligned(64)));")
                lines.append(
                    f"for (int v = 0; v < BLOCK; v += LANES) put(b{n.index} + v, splat({text}));"
                )
            else:
                names[n.index] = self._row(n)
        lines.append(f"float dx[{len(outer.x)}][BLOCK] __attribute__((aligned(64)));")
        pointers = []
        for i, n in enumerate(outer.x):
            lines.append(
                "for (int v = 0; v < BLOCK; v += LANES) "
                f"put(dx[{i}] + v, (V)(live[v / LANES] & (I)at({names[n.index]} + v)));"
            )
            pointers.append(f"dx[{i}]")
        lines.append(f"const float *px[] = {{{', '.join(pointers)}}};")
        lines.append(f"const float *py[] = {{{', '.join(names[n.index] for n in outer.y)}}};")
        lines.append(f"outer({len(outer.x)}, {len(outer.y)}, px, py, pair{k});")
        return ["{", *("  " + x for x in lines), "}"]

    # All blocks of all tensors of all tasks.

    def _run(self, early: list[Node], late: list[Node]) -> str:
        s = self.signature
        num_in, num_out = sum(n for _, n in s.rows), sum(s.outputs)
        by_tensor = [n for n in early if n.varies == TENSOR]
        by_task = [n for n in early if n.varies < TENSOR and n.op != "const"]
        # What is summed over a task is a total of each tensor where it depends on the tensor's
        # values; else lanes go on from tensor to tensor.
        lines = [
            "void run(const struct job *job) {",
            f"  const float *in[{max(1, num_in)}]; float *out[{max(1, num_out)}];",
            f"  static _Thread_local float stage[{num_in + num_out + 1}][BLOCK] "
            "__attribute__((aligned(64)));",
            f"  V total[{max(1, len(self.totals))}]; double carried[{max(1, len(self.totals))}];",
            f"  float c[{max(1, len(self.order))}];",
        ]
        for k in sorted(self.pairs):
            o = self.program.outers[k]
            lines.append(f"  static _Thread_local V pair{k}[{len(o.x) * len(o.y)}];")
        for k in sorted(self.products):
            lines.append(f"  float w{k}[{self.program.products[k].w.size}];")
        task_size = sum(a.nodes.size for a in self.task_outputs)
        tensor_size = sum(a.nodes.size for a in self.tensor_outputs)
        lines += [
            "  const long channel_stride = job->channel_stride;",
            "  (void)channel_stride; (void)total; (void)carried; (void)c; (void)stage; (void)in; (void)out;",
            "  for (long k = 0; k < job->tasks; k++) {",
        ]
        for i, _ in enumerate(s.shared):
            lines.append(
                f"    const float *shared{i} = job->shared[{i}] + k * job->shared_step[{i}];"
                f" (void)shared{i};"
            )
        lines += ["    " + self._assign(n) for n in by_task]
        for k in sorted(self.products):
            w = self.program.products[k].w
            if any(n.varies == TENSOR for n in w.flat):
                continue
            lines += [f"    w{k}[{i}] = {self._scalar(n)};" for i, n in enumerate(w.flat)]
        lines += [
            f"    float *sums = job->sums + k * {task_size}; (void)sums;",
            f"    for (long i = 0; i < {task_size}; i++) sums[i] = 0.0f;",
            "    for (long t = 0; t < job->tensors; t++) {",
            "      const float *channels = job->channels + k * job->channel_step + t;",
            "      (void)channels;",
            f"      for (int i = 0; i < {len(self.totals)}; i++) total[i] = splat(0), carried[i] = 0;",
        ]
        for k in sorted(self.pairs):
            lines.append(f"      memset(pair{k}, 0, sizeof pair{k});")
        lines += ["      " + self._assign(n) for n in by_tensor]
        for k in sorted(self.products):
            w = self.program.products[k].w
            if any(n.varies == TENSOR for n in w.flat):
                lines += [f"      w{k}[{i}] = {self._scalar(n)};" for i, n in enumerate(w.flat)]
        nodes = self.program.nodes
        lines += [f"      c[{i}] = {self._scalar(nodes[n])};" for n, i in self.order.items()]
        weights = "".join(f", w{k}" for k in sorted(self.products))
        pairs = "".join(f", pair{k}" for k in sorted(self.pairs))
        lines += [
            "      const long end = job->bounds[t + 1];",
            "      for (long n = job->bounds[t]; n < end; n += BLOCK) {",
            "        const int left = end - n < BLOCK ? end - n : BLOCK;",
            "        I live[VECTORS];",
            "        for (int i = 0; i < BLOCK; i++) ((int32_t *)live)[i] = i < left ? -1 : 0;",
        ]
        lines += [
            "        if (job->in_table) {",
            "          const long at = n - job->bounds[t];",
            f"          for (int r = 0; r < {num_in}; r++) "
            f"in[r] = job->in_table[t * {num_in} + r] + at;",
            f"          for (int r = 0; r < {num_out}; r++) "
            f"out[r] = job->out_table[t * {num_out} + r] + at;",
            "        } else {",
        ]
        place = 0
        for i, (_, rows) in enumerate(s.rows):
            lines.append(
                f"          for (int r = 0; r < {rows}; r++) in[{place} + r] = job->rows[{i}] + "
                f"k * job->row_step[{i}] + r * job->row_stride[{i}] + n;"
            )
            place += rows
        place = 0
        for i, rows in enumerate(s.outputs):
            lines.append(
                f"          for (int r = 0; r < {rows}; r++) out[{place} + r] = job->out[{i}] + "
                f"(k * {rows} + r) * job->out_stride[{i}] + n;"
            )
            place += rows
        lines.append("        }")
        lines += [
            "        if (left < BLOCK) {",
            f"          float *target[{max(1, num_out)}];",
            f"          for (int r = 0; r < {num_in}; r++) {{",
            "            memset(stage[r], 0, sizeof stage[r]);",
            "            memcpy(stage[r], in[r], left * sizeof(float)); in[r] = stage[r];",
            "          }",
            f"          for (int r = 0; r < {num_out}; r++) {{",
            f"            target[r] = out[r]; out[r] = stage[{num_in} + r];",
            "          }",
            f"          block(in, out, live, c, total{weights}{pairs});",
            f"          for (int r = 0; r < {num_out}; r++) "
            "memcpy(target[r], out[r], left * sizeof(float));",
            "        } else",
            f"          block(in, out, live, c, total{weights}{pairs});",
            "        if ((n / BLOCK) % 1024 == 1023)  /* sums of many numbers lose digits */",
            f"          for (int i = 0; i < {len(self.totals)}; i++) "
            "carried[i] += sum(total[i]), total[i] = splat(0);",
            "      }",
        ]
        lines += ["      " + self._assign(n) for n in late]
        place = 0
        for array in self.tensor_outputs:
            for node in array.nodes.flat:
                lines.append(
                    f"      job->totals[(k * {tensor_size} + {place}) * job->tensors + t] = "
                    f"{self._scalar(node)};"
                )
                place += 1
        place = 0
        for array in self.task_outputs:
            for node in array.nodes.flat:
                if node.op != "const" or node.args[0] != 0.0:
                    lines.append(f"      sums[{place}] += {self._scalar(node)};")
                place += 1
        return "\n".join([*lines, "    }", "  }", "}"])

    def _assign(self, node: Node) -> str:
        """A number that the columns share, computed."""
        if node.op == "const":
            return ""
        args = [self._scalar(a) for a in node.args if isinstance(a, Node)]
        op = node.op
        if op in _INFIX:
            text = f"{args[0]} {_INFIX[op]} {args[1]}"
        elif op in _COMPARE:
            return f"const int u{node.index} = {args[0]} {_COMPARE[op]} {args[1]};"
        elif op == "and":
            return f"const int u{node.index} = {args[0]} && {args[1]};"
        elif op == "where":
            text = f"{args[0]} ? {args[1]} : {args[2]}"
        elif op == "neg":
            text = f"-{args[0]}"
        elif op == "sigmoid":
            text = f"1.0f / (1.0f + expf(-{args[0]}))"
        else:
            text = f"{ {'abs': 'fabsf', 'max': 'fmaxf', 'min': 'fminf'}.get(op, op + 'f') }({', '.join(args)})"
        return f"const float u{node.index} = {text};"


def _literal(x: float) -> str:
    if math.isnan(x):
        return "NAN"
    if math.isinf(x):
        return "INFINITY" if x > 0 else "-INFINITY"
    return f"({x!r}f)" if "." in repr(x) or "e" in repr(x) else f"({x!r}.0f)"


def _vector(node: Any, text: str) -> str:
    """The operand as a vector, where a shared number would not do."""
    return f"splat({text})" if isinstance(node, Node) and node.varies < COLUMN else text


__all__ = ["Array", "Signature", "source"]
