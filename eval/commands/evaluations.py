"""The evaluations as commands; what is heavy is imported when one is called."""

from __future__ import annotations

from lo_framework.eval.commands.frame import Loaded, register_evaluation
from lo_framework.eval.studies.request import (
    AblationRequest,
    CompareRequest,
    RobustnessRequest,
    ScoreRequest,
    SharpnessRequest,
    TransferRequest,
)

ABLATION_EXAMPLES = """\
examples:
  lo-eval ablation --out runs/ablation
      MetaOptimize on mlp and digits, 500 steps, 5 seeds: base x meta (from a small and a large step
      size), gamma x meta_lr, meta_every x blocks

  lo-eval ablation --panels gamma-meta_lr,meta_every-blocks --optimizees mlp,cnn --workers 2
      two of the panels, two problems

  lo-eval ablation --baseline torch-metaoptimize:base=lion,lr=1e-4,meta_lr=0.03 \\
          --panel meta_lr=0.01/0.03/0.1,lr=1e-6/1e-5/1e-4
      a panel of your own: rows, then columns; further single values are fixed (,blocks=node)

  lo-eval ablation --baseline adamw:cosine=1 --panel lr=0.003/0.01/0.03,weight_decay=0/0.1
      any baseline of `eval transfer` will do

DIR gets ablation.json (every number of every seed), ablation.csv (a row for each cell), ablation.md
(one report: references, heat maps, tables), a PNG for each problem, and cells/ (finished parts: a
killed run continues when the same command is given again). Nothing but measured times depends on
--workers.
"""


@register_evaluation("ablation", AblationRequest, examples=ABLATION_EXAMPLES)
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


COMPARE_EXAMPLES = """\
examples:
  lo-eval compare --arms metaoptimize,sgdm --seeds 10
      two optimizers against tuned AdamW on mlp and cnn

  lo-eval compare --arms metaadamw,metaadamw:online=false,head_scale=0.1 \\
          --at-reference metaadamw,metaadamw:online=false,head_scale=0.1 --scaled 0.5,0.75,1.25,1.5
      is it MetaAdamW's rule, its training, or the learning rate that it changes?

  lo-eval compare --optimizees wikitext --arms muon,sam,learned:general --data-dir data \\
          --tuning-seeds 1 --grid-size 5 --choose-by validation --costs
      five settings each, one of them reported; general as it is, and with a tuned step; time and
      memory of a step, each measured in a process of its own

DIR gets transfer.json, transfer.html, transfer.md and curves.png, as `eval transfer` writes them
(`eval report` shows them again; arms.png where there are too many for curves), and cells/ (finished
parts: a killed run continues when the same command is given again). Nothing but measured times
depends on --workers.
"""


@register_evaluation("compare", CompareRequest, examples=COMPARE_EXAMPLES)
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


ROBUSTNESS_EXAMPLES = """\
examples:
  lo-eval robustness --out runs/robustness
      mlp on digits, 1000 steps, 5 seeds: MetaOptimize at three meta step sizes and AdamW with a
      constant one, from step sizes 1e-7 to 1e-2

  lo-eval robustness --optimizers adamw,metaoptimize:base=lion,meta_lr=0.03 \\
          --lrs 1e-5,1e-4,1e-3
      other optimizers (any baselines of `eval transfer`), three step sizes

  lo-eval robustness --optimizees mlp,cnn --datasets digits,fashion_mnist:size=8 \\
          --data-dir data --seeds 10 --per-decade 1 --workers 2
      four problems, ten seeds, a step size per decade

DIR gets robustness.json (every number of every seed), robustness.csv (a row per step size),
robustness.md (the tables), robustness.png and cells/ (finished parts: a killed run continues when
the same command is given again). Nothing but measured times depends on --workers.
"""


@register_evaluation("robustness", RobustnessRequest, examples=ROBUSTNESS_EXAMPLES)
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


SCORE_EXAMPLES = """\
examples:
  lo-eval score runs/latest/optimizer.safetensors general --workers 2
      the shipped suite at three seeds, against tuned AdamW's stored results; beside a trained
      optimizer the one that is shipped

  lo-eval score runs/a/optimizer.safetensors runs/b/optimizer.safetensors \\
          --baselines adamw:lr=0.01,cosine=1 --seeds 5
      two optimizers, and AdamW at one setting for all problems

  lo-eval score --tune --suite mine.json
  lo-eval score --verify --suite mine.json FILE
      a suite of your own: tuned AdamW's results go into mine.adamw.json; later runs check them

A suite is a JSON file: {"problems": [{"name": "wide", "axis": "width",
"optimizee": "mlp-relu:hidden=512x512", "dataset": "digits", "steps": 200}, ...]}

DIR gets score.json (every number of every seed), score.csv (a row for each problem, optimizer and
seed), score.html (one page with all tables and pictures), score.md (the tables), score.png and
cells/ (finished parts: a killed run continues when the same command is given again). Nothing but
measured times depends on --workers.
"""


@register_evaluation("score", ScoreRequest, examples=SCORE_EXAMPLES)
def score() -> Loaded:
    """Score learned optimizers, untuned, on a fixed suite of problems that they never saw.

    Everything is relative to AdamW, tuned on each problem over learning rates x {constant, cosine}
    on seeds of their own. Its results are stored beside the suite, so only the learned optimizers
    run; --tune makes them. Speed-up: the steps that AdamW takes to its own final loss over the
    steps to that loss. The last line sums up: interquartile means over problems with intervals.
    """
    from lo_framework.eval.report.score import ScoreReport
    from lo_framework.eval.studies.score import ScoreEvaluation

    return ScoreEvaluation, ScoreReport


SHARPNESS_EXAMPLES = """\
examples:
  lo-eval sharpness --learned runs/latest/optimizer.safetensors --out runs/sharpness
      mlp on digits: 200 steps, 5 seeds, against tuned AdamW; a few minutes

  lo-eval sharpness --learned runs/a/optimizer.safetensors,runs/sam/optimizer.safetensors \\
          --optimizees mlp,cnn --baselines adamw,sgdm --effort standard --workers 4
      two learned optimizers, more variants of sharpness, four processes

  lo-eval sharpness --learned FILE --radii 0.01,0.1,1 --probe sam:rho=0.1
      other radii; does the update point along the SAM correction with radius 0.1?

DIR gets sharpness.json (every number of every seed), sharpness.html (one page with all tables and
pictures), sharpness.csv (a row for each run) and cells/ (finished parts). A killed run continues
when the same command is given again.
Nothing but measured times depends on --workers.
"""


@register_evaluation("sharpness", SharpnessRequest, examples=SHARPNESS_EXAMPLES)
def sharpness() -> Loaded:
    """Measure how sharp the minima are that learned optimizers and tuned baselines find.

    All optimizers start from the same parameters and see the same batches of a seed. Every run
    is measured after its last step, and at its first step whose training loss is at most that
    of the worst optimizer's last step on the same seed: near a minimum, small sharpness mostly
    means that training has come far. The sample of the training data is the same for all.
    Baselines are tuned as in `eval transfer`, by the final loss in training or in validation.
    """
    from lo_framework.eval.report.sharpness.page import SharpnessReport
    from lo_framework.eval.studies.sharpness import SharpnessEvaluation

    return SharpnessEvaluation, SharpnessReport


TRANSFER_EXAMPLES = """\
examples:
  lo-eval transfer --learned runs/latest/optimizer.safetensors --out runs/transfer
      mlp and cnn on digits: 200 steps, 5 seeds, against tuned AdamW and SGD with momentum

  lo-eval transfer --learned runs/a/optimizer.safetensors,runs/b/optimizer.safetensors \\
          --steps 1000 --seeds 10 --workers 4
      two learned optimizers, five times as long as they were meta-trained for

  lo-eval transfer --learned FILE --optimizees mlp:hidden=64x64,act=relu,cnn:norm=batch \\
          --datasets digits,mnist:size=8 --data-dir data
      two optimizees x two data sets that it never saw

  lo-eval transfer --learned FILE --baselines adamw:weight_decay=0.1,sgdm:lr=0.1
      options of a baseline hold for its whole grid; one that is usually tuned (lr, cosine) is
      then left as given

  lo-eval transfer --learned FILE --baselines adamw,adamw:law=true,muon --step-scales none
      Muon beside AdamW, and AdamW untuned; the learned optimizer as it is, without a tuned step

DIR gets transfer.json (every number of every seed), transfer.html (one page with all tables and
pictures), transfer.md (the tables) and curves.png.
Nothing but the measured times depends on --workers.
"""


@register_evaluation("transfer", TransferRequest, examples=TRANSFER_EXAMPLES)
def transfer() -> Loaded:
    """Train unseen problems with learned optimizers and with tuned AdamW, SGD, ...

    All optimizers start from the same parameters and see the same batches of a seed. Every baseline
    is tuned for each task over its grid (learning rates x {constant, cosine}) on other seeds and
    without test data; a grid whose best learning rate is at its edge is extended. Each number of a
    baseline comes from the setting that was best for that metric. Every learned optimizer has two
    rows: zero-shot, and with its whole update times one number that is tuned likewise.
    """
    from lo_framework.eval.report.transfer import TransferReport
    from lo_framework.eval.studies.transfer import TransferEvaluation

    return TransferEvaluation, TransferReport
