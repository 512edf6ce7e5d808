"""The command ``eval robustness``."""

from __future__ import annotations

from lo_framework.eval.commands.frame import Loaded, register_evaluation
from lo_framework.eval.studies.request import RobustnessRequest

EXAMPLES = """\
examples:
  python -m eval robustness --out runs/robustness
      mlp on digits, 1000 steps, 5 seeds: MetaOptimize at three meta step sizes and AdamW with a
      constant one, from step sizes 1e-7 to 1e-2

  python -m eval robustness --optimizers adamw,metaoptimize:base=lion,meta_lr=0.03 \\
          --lrs 1e-5,1e-4,1e-3
      other optimizers (any baselines of `eval transfer`), three step sizes

  python -m eval robustness --optimizees mlp,cnn --datasets digits,fashion_mnist:size=8 \\
          --data-dir data --seeds 10 --per-decade 1 --workers 2
      four problems, ten seeds, a step size per decade

DIR gets robustness.json (every number of every seed), robustness.csv (a row per step size),
robustness.md (the tables), robustness.png and cells/ (finished parts: a killed run continues when
the same command is given again). Nothing but measured times depends on --workers. Exit code: 0 if
anything worked (what failed is named), 1 if nothing did, 2 for bad input.
"""


@register_evaluation("robustness", RobustnessRequest, examples=EXAMPLES)
def robustness() -> Loaded:
    """Train from a grid of step sizes without tuning: how much does the first guess matter?

    All optimizers start from the same parameters and see the same batches of a seed. Nothing is
    chosen: every optimizer is shown at every step size. `lr` of `metaoptimize` is its alpha0, from
    which it moves by at most a factor exp(meta_lr) a step: from 1e-7 to 1e-2 in ln(1e5) / meta_lr
    steps, which is 11,500 at meta_lr 1e-3 and 380 at 3e-2.
    """
    from lo_framework.eval.report.robustness import RobustnessReport
    from lo_framework.eval.studies.robustness import RobustnessEvaluation

    return RobustnessEvaluation, RobustnessReport
