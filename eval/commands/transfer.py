"""The command ``eval transfer``."""

from __future__ import annotations

from lo_framework.eval.commands.frame import Loaded, register_evaluation
from lo_framework.eval.studies.request import TransferRequest

EXAMPLES = """\
examples:
  python -m eval transfer --learned runs/latest/optimizer.safetensors --out runs/transfer
      mlp and cnn on digits: 200 steps, 5 seeds, against tuned AdamW and SGD with momentum

  python -m eval transfer --learned runs/a/optimizer.safetensors,runs/b/optimizer.safetensors \\
          --steps 1000 --seeds 10 --workers 4
      two learned optimizers, five times as long as they were meta-trained for

  python -m eval transfer --learned FILE --optimizees mlp:hidden=64x64,act=relu,cnn:norm=batch \\
          --datasets digits,mnist:size=8 --data-dir data
      two optimizees x two data sets that it never saw

  python -m eval transfer --learned FILE --baselines adamw:weight_decay=0.1,sgdm:lr=0.1
      options of a baseline hold for its whole grid; one that is usually tuned (lr, cosine) is
      then left as given

DIR gets transfer.json (every number of every seed), transfer.md (the tables) and curves.png.
Nothing but the measured times depends on --workers. Exit code: 0 if anything worked (what failed
is named), 1 if nothing did, 2 for bad input.
"""


@register_evaluation("transfer", TransferRequest, examples=EXAMPLES)
def transfer() -> Loaded:
    """Train unseen problems with learned optimizers and with tuned AdamW, SGD, ...

    All optimizers start from the same parameters and see the same batches of a seed. Every baseline
    is tuned for each task over its grid (learning rates x {constant, cosine}) on other seeds and
    without test data; a grid whose best learning rate is at its edge is extended. Each number of a
    baseline comes from the setting that was best for that metric.
    """
    from lo_framework.eval.report.transfer import TransferReport
    from lo_framework.eval.studies.transfer import TransferEvaluation

    return TransferEvaluation, TransferReport
