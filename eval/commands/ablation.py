"""Vary the options of one optimizer, two at a time, and show heat maps of what each pair does.

All cells start from the same parameters and see the same batches of a seed; none is tuned. Beside
them stand references: by default AdamW with a constant step size, at the one that the cells start
from and at its tuned one. What the optimizer counts of itself (blocks whose step size oscillates,
collapses or explodes, skipped meta-gradients) is marked in the cells.
"""

from __future__ import annotations

import argparse

from lo_framework.eval.commands.options import add_runs

HELP = "vary the options of one optimizer, two at a time: heat maps with diagnostics"
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser, optimizees="mlp", out="runs/ablation", steps=500)
    add = parser.add_argument
    add(
        "--baseline",
        default="torch-metaoptimize",
        metavar="SPEC",
        help="what is varied (default: %(default)s)",
    )
    add(
        "--panels",
        metavar="NAME[,NAME...]",
        help="some of the panels known for the baseline (default: all)",
    )
    add(
        "--panel",
        action="append",
        default=[],
        metavar="ROW=a/b,COLUMN=c/d",
        help="a panel of your own; repeatable",
    )
    add(
        "--references",
        metavar="SPECS",
        help="baselines beside it, or none (default: AdamW, fixed and tuned)",
    )
    add(
        "--tuning-seeds",
        type=int,
        default=3,
        help="other seeds, to tune references on (default: %(default)s)",
    )
    add(
        "--fresh",
        action="store_true",
        help="forget the finished cells that an earlier run left in DIR",
    )


def run(arguments: argparse.Namespace) -> int:
    from lo_framework.eval.commands.frame import finish, run_study
    from lo_framework.eval.report.ablation import AblationReport
    from lo_framework.eval.running.tuning import make_grid
    from lo_framework.eval.studies.ablation import ablate
    from lo_framework.eval.studies.panels import Study, find_study
    from lo_framework.spec import split_specs

    given = arguments.references
    references = None if given is None else [] if given == "none" else split_specs(given)

    def plan() -> Study:
        for label in references or ():
            make_grid(label)
        return find_study(arguments.baseline, arguments.panels, arguments.panel)

    more = dict(references=references, tuning_seeds=arguments.tuning_seeds)
    done = run_study(
        arguments,
        "ablation",
        plan,
        lambda study: references or [study.baseline],
        lambda study, tasks, **kw: ablate(study, tasks, **more, **kw),
    )
    if isinstance(done, int):
        return done
    result, folder = done
    return finish("ablation", AblationReport(result), folder)
