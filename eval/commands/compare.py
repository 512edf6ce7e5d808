"""The command ``eval compare``."""

from __future__ import annotations

from lo_framework.eval.commands.frame import Loaded, register_evaluation
from lo_framework.eval.studies.request import CompareRequest

EXAMPLES = """\
examples:
  python -m eval compare --arms metaoptimize,sgdm --seeds 10
      two optimizers against tuned AdamW on mlp and cnn

  python -m eval compare --arms metaadamw,metaadamw:online=false,head_scale=0.1 \\
          --at-reference metaadamw,metaadamw:online=false,head_scale=0.1 --scaled 0.5,0.75,1.25,1.5
      is it MetaAdamW's rule, its training, or the learning rate that it changes?

DIR gets transfer.json, transfer.md and curves.png, as `eval transfer` writes them (`eval report`
shows them again; arms.png where there are too many for curves), and cells/ (finished parts: a
killed run continues when the same command is given again). Nothing but measured times depends on
--workers. Exit code: 0 if anything worked (what failed is named), 1 if nothing did, 2 for bad
input.
"""


@register_evaluation("compare", CompareRequest, examples=EXAMPLES)
def compare() -> Loaded:
    """Compare baselines with each other: tuned alike, or at one another's settings.

    All start from the same parameters and see the same batches of a seed. An arm is tuned for
    each task on other seeds and without test data, over as many settings as every other arm.
    `--scaled` adds the reference at multiples of its tuned learning rate, and `--at-reference`
    other optimizers at exactly its tuned settings: what is left between those and the reference
    is their rule, not their tuning.
    """
    from lo_framework.eval.report.transfer import TransferReport
    from lo_framework.eval.studies.compare import CompareEvaluation

    return CompareEvaluation, TransferReport
