"""C code for a columnwise formula: one pass over memory, in blocks of 64 columns.

The arithmetic of a block is straight-line code on vectors, cut where products of matrices need
whole rows: a row that is read in another piece, or by a product, lies in a small array that stays
in the first-level cache. Shared numbers are computed once for a task or a tensor; sums over columns
are kept in lanes, and what depends on them is computed after the last column.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lo_framework.native.block import COMPARE, INFIX, Block
from lo_framework.native.nodes import COLUMN, TENSOR, Formula, Node, Unsupported, value_of
from lo_framework.native.signature import Signature

_LARGEST = 40_000  # nodes: beyond, compilers take minutes
# Names of C's functions that are not torch's with an f behind.
_NAMES = {"abs": "fabsf", "max": "fmaxf", "min": "fminf"}


def source(formula: Formula, signature: Signature, per_task: Iterable[int]) -> str:
    """The C source. ``per_task``: the places of the outputs that are summed over a task; others
    without columns are summed over a tensor.
    """
    if len(formula.nodes) > _LARGEST:
        raise Unsupported(f"{len(formula.nodes):,} operations a column")
    prelude = (Path(__file__).parent / "prelude.h").read_text()
    return prelude + _Writer(formula, signature, set(per_task)).write()


class _Writer(Block):
    """The whole file: the block, and the function that runs it over tensors and tasks."""

    def write(self) -> str:
        live = [n for n in self.formula.nodes if n.index in self.used]
        named = ("input", "count")  # C has names for them
        early = [n for n in live if n.varies < COLUMN and not n.late and n.op not in named]
        late = [n for n in live if n.varies < COLUMN and n.late and n.op not in ("total", "pair")]
        columns = [n for n in live if n.varies == COLUMN]
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
            f"  float c[{max(1, len(self.order))}], extra[{max(1, len(self.extras))}];",
        ]
        for k in sorted(self.pairs):
            o = self.formula.outers[k]
            lines.append(f"  static _Thread_local V pair{k}[{len(o.x) * len(o.y)}];")
        for k in sorted(self.products):
            lines.append(f"  float w{k}[{self.formula.products[k].w.size}];")
        task_size = sum(a.nodes.size for a in self.task_outputs)
        tensor_size = sum(a.nodes.size for a in self.tensor_outputs)
        lines += [
            "  const long channel_stride = job->channel_stride;",
            "  (void)channel_stride; (void)total; (void)carried; (void)c; (void)stage;",
            "  (void)in; (void)out; (void)extra;",
            "  for (long k = 0; k < job->tasks; k++) {",
        ]
        for i, _ in enumerate(s.shared):
            lines.append(
                f"    const float *shared{i} = job->shared[{i}] + k * job->shared_step[{i}];"
                f" (void)shared{i};"
            )
        lines += ["    " + self._assign(n) for n in by_task]
        for k in sorted(self.products):
            w = self.formula.products[k].w
            if any(n.varies == TENSOR for n in w.flat):
                continue
            lines += self._filled(f"w{k}", "=", [*w.flat])
        lines += [
            f"    float *sums = job->sums + k * {task_size}; (void)sums;",
            f"    for (long i = 0; i < {task_size}; i++) sums[i] = 0.0f;",
            "    for (long t = 0; t < job->tensors; t++) {",
            "      const float *channels = job->channels + k * job->channel_step + t;",
            "      const float count = job->bounds[t + 1] - job->bounds[t];",
            "      (void)channels; (void)count;",
            f"      for (int i = 0; i < {len(self.totals)}; i++)",
            "        total[i] = splat(0), carried[i] = 0;",
        ]
        for k in sorted(self.pairs):
            lines.append(f"      memset(pair{k}, 0, sizeof pair{k});")
        lines += ["      " + self._assign(n) for n in by_tensor]
        for k in sorted(self.products):
            w = self.formula.products[k].w
            if any(n.varies == TENSOR for n in w.flat):
                lines += self._filled(f"w{k}", "=", [*w.flat])
        nodes = self.formula.nodes
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
            f"          block(in, out, live, c, total, extra{weights}{pairs});",
            f"          for (int r = 0; r < {num_out}; r++) "
            "memcpy(target[r], out[r], left * sizeof(float));",
            "        } else",
            f"          block(in, out, live, c, total, extra{weights}{pairs});",
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
        flat = [n for array in self.task_outputs for n in array.nodes.flat]
        lines += self._filled("sums", "+=", flat)
        return "\n".join([*lines, "    }", "  }", "}"])

    def _filled(self, target: str, sign: str, nodes: list[Node]) -> list[str]:
        """Statements that put numbers into an array; a loop where they lie at equal distances."""
        lines, begin = [], 0
        while begin < len(nodes):
            end, (source, first, step) = begin + 1, (None, 0, 0)
            if (where := self._lies(nodes[begin])) is not None:
                source, first = where
                following = self._lies(nodes[end]) if end < len(nodes) else None
                step = following[1] - first if following and following[0] == source else 0
                while end < len(nodes) and self._lies(nodes[end]) == (
                    source,
                    first + step * (end - begin),
                ):
                    end += 1
            if end - begin > 2:
                value = source.format(f"{first} + i * {step}")  # type: ignore[union-attr]
                head = f"for (int i = 0; i < {end - begin}; i++)"
                lines.append(f"      {head} {target}[{begin} + i] {sign} {value};")
            else:
                end = begin + 1
                if value_of(nodes[begin]) != 0.0 or sign == "=":
                    lines.append(f"      {target}[{begin}] {sign} {self._scalar(nodes[begin])};")
            begin = end
        return lines

    def _lies(self, node: Node) -> tuple[str, int] | None:
        """In which array of C a number is an element, and its place there."""
        if node.op == "input" and node.varies < TENSOR:
            k = [n for n, _ in self.signature.shared].index(node.args[0])
            return f"shared{k}[{{}}]", node.args[1]
        if node.op == "pair":
            k, a, b = node.args
            return f"sum(pair{k}[{{}}])", a * len(self.formula.outers[k].y) + b
        return None

    def _assign(self, node: Node) -> str:
        """A number that the columns share, computed."""
        if node.op == "const":
            return ""
        args = [self._scalar(a) for a in node.args if isinstance(a, Node)]
        op = node.op
        if op in INFIX:
            text = f"{args[0]} {INFIX[op]} {args[1]}"
        elif op in COMPARE:
            return f"const int u{node.index} = {args[0]} {COMPARE[op]} {args[1]};"
        elif op == "and":
            return f"const int u{node.index} = {args[0]} && {args[1]};"
        elif op == "where":
            text = f"{args[0]} ? {args[1]} : {args[2]}"
        elif op == "neg":
            text = f"-{args[0]}"
        elif op == "sigmoid":
            text = f"1.0f / (1.0f + expf(-{args[0]}))"
        else:
            text = f"{_NAMES.get(op, op + 'f')}({', '.join(args)})"
        return f"const float u{node.index} = {text};"
