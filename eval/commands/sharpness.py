"""The command ``eval sharpness``."""

from __future__ import annotations

from lo_framework.eval.commands.frame import Loaded, register_evaluation
from lo_framework.eval.studies.request import SharpnessRequest

EXAMPLES = """\
examples:
  python -m eval sharpness --learned runs/latest/optimizer.safetensors --out runs/sharpness
      mlp on digits: 200 steps, 5 seeds, against tuned AdamW; a few minutes

  python -m eval sharpness --learned runs/a/optimizer.safetensors,runs/sam/optimizer.safetensors \\
          --optimizees mlp,cnn --baselines adamw,sgdm --effort standard --workers 4
      two learned optimizers, more variants of sharpness, four processes

  python -m eval sharpness --learned FILE --radii 0.01,0.1,1 --probe sam:rho=0.1
      other radii; does the update point along the SAM correction with radius 0.1?

DIR gets sharpness.json (every number of every seed), sharpness.html (one page with all tables and
pictures), sharpness.csv (a row for each run) and cells/ (finished parts). A killed run continues
when the same command is given again.
Nothing but measured times depends on --workers. Exit code: 0 if anything worked (what failed is
named), 1 if nothing did, 2 for bad input.
"""


@register_evaluation("sharpness", SharpnessRequest, examples=EXAMPLES)
def sharpness() -> Loaded:
    """Measure how sharp the minima are that learned optimizers and tuned baselines find.

    All optimizers start from the same parameters and see the same batches of a seed. Every run
    is measured after its last step, and at its first step whose training loss is at most that
    of the worst optimizer's last step on the same seed: near a minimum, small sharpness mostly
    means that training has come far. The sample of the training data is the same for all.
    Baselines are tuned as in `eval transfer`, by the final loss.
    """
    from lo_framework.eval.report.sharpness.page import SharpnessReport
    from lo_framework.eval.studies.sharpness import SharpnessEvaluation

    return SharpnessEvaluation, SharpnessReport
