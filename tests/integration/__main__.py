"""``python -m tests.integration`` writes docs/integrations.md: every optimizer in every loop."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from lo_framework.errors import UserError
from lo_framework.eval.report.table import Table
from lo_framework.eval.running.provenance import version
from tests.integration.loops import BATCHES, LOOPS, NEEDS, STEPS, plain
from tests.integration.optimizers import OPTIMIZERS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/integrations.md"
TEXT = """\
# In every loop the steps of a plain one

A small language model (an embedding, two linear layers, a LayerNorm, a head) is trained for {steps}
steps in a plain loop and in the loops of others, by `python -m tests.integration`, which writes
this page; `make test-loops` asserts the same. The first entry of a cell is the largest distance of
the final weights from those of the plain loop; the second is that of a run which was saved after
{batches} steps and went on in new objects. FSDP2, tensor parallelism and
`torch.distributed.checkpoint` are in [distributed.md](distributed.md); recipes in
[use/](use/index.md), and what is refused or said once in [loops.md](loops.md).

{table}

"no closure": the loop calls `step()` without one, as many loops under DDP do, and SAM refuses that:
"{refusal}". There it makes its step in [two halves](explicit.md#loops-that-run-no-closure).
In a DDP loop of your own it takes a closure as elsewhere ([use/ddp.md](use/ddp.md)).

{versions}
"""


def cell(loop: str, name: str) -> str:
    make = OPTIMIZERS[name]
    out = []
    with tempfile.TemporaryDirectory() as folder:
        expected = plain(make, Path(folder), False)
        for interrupted in (False, True):
            try:
                found = LOOPS[loop](make, Path(folder), interrupted)
            except UserError as error:
                return f"refused: {error}"
            gap = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
            out.append(f"{gap:.0e}" if gap else "0")
    return ", ".join(out)


def main() -> None:
    warnings.simplefilter("ignore")
    table, refusal = Table("", *OPTIMIZERS), ""
    for loop in LOOPS:
        cells = []
        for name in OPTIMIZERS:
            print(f"{loop}: {name}", file=sys.stderr, flush=True)
            text = cell(loop, name)
            if text.startswith("refused"):
                refusal, text = text.removeprefix("refused: "), "no closure"
            cells.append(text)
        table.add(loop, *cells)
    packages = ["torch", *dict.fromkeys(NEEDS.values())]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    values = {"steps": STEPS, "batches": BATCHES, "refusal": refusal, "versions": versions}
    DOCUMENT.write_text(TEXT.format(table=table.markdown(), **values), "utf-8")


if __name__ == "__main__":
    main()
