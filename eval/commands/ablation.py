"""The command ``eval ablation``."""

from __future__ import annotations

from lo_framework.eval.commands.frame import Loaded, register_evaluation
from lo_framework.eval.studies.request import AblationRequest

EXAMPLES = """\
examples:
  python -m eval ablation --out runs/ablation
      MetaOptimize on mlp and digits, 500 steps, 5 seeds: base x meta (from a small and a large step
      size), gamma x meta_lr, meta_every x blocks

  python -m eval ablation --panels gamma-meta_lr,meta_every-blocks --optimizees mlp,cnn --workers 2
      two of the panels, two problems

  python -m eval ablation --baseline torch-metaoptimize:base=lion,lr=1e-4,meta_lr=0.03 \\
          --panel meta_lr=0.01/0.03/0.1,lr=1e-6/1e-5/1e-4
      a panel of your own: rows, then columns; further single values are fixed (,blocks=node)

  python -m eval ablation --baseline adamw:cosine=1 --panel lr=0.003/0.01/0.03,weight_decay=0/0.1
      any baseline of `eval transfer` will do

DIR gets ablation.json (every number of every seed), ablation.csv (a row for each cell), ablation.md
(one report: references, heat maps, tables), a PNG for each problem, and cells/ (finished parts: a
killed run continues when the same command is given again). Nothing but measured times depends on
--workers. Exit code: 0 if anything worked (what failed is named), 1 if nothing did, 2 for bad
input.
"""


@register_evaluation("ablation", AblationRequest, examples=EXAMPLES)
def ablation() -> Loaded:
    """Vary the options of one optimizer, two at a time: heat maps with diagnostics.

    All cells start from the same parameters and see the same batches of a seed; none is tuned.
    Beside them stand references: by default AdamW with a constant step size, at the one that
    the cells start from and at its tuned one. What the optimizer counts of itself (blocks whose
    step size oscillates, collapses or explodes, skipped meta-gradients) is marked in the cells.
    """
    from lo_framework.eval.report.ablation import AblationReport
    from lo_framework.eval.studies.ablation import AblationEvaluation

    return AblationEvaluation, AblationReport
