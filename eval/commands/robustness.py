"""Train from every step size of a fixed grid, without tuning: who gets away with a bad first guess?

All optimizers start from the same parameters and see the same batches of a seed. Nothing is
chosen: every optimizer is shown at every step size. `lr` of `metaoptimize` is its alpha0, from
which it moves by at most a factor exp(meta_lr) a step: from 1e-7 to 1e-2 in ln(1e5) / meta_lr
steps, which is 11,500 at meta_lr 1e-3 and 380 at 3e-2.
"""

from __future__ import annotations

import argparse

from lo_framework.eval.commands.options import add_runs

HELP = "train from a grid of step sizes without tuning: how much does the first guess matter?"
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
      four problems, ten seeds, a step size a decade

DIR gets robustness.json (every number of every seed), robustness.csv (a row for each step size),
robustness.md (the tables), robustness.png and cells/ (finished parts: a killed run continues when
the same command is given again). Nothing but measured times depends on --workers. Exit code: 0 if
anything worked (what failed is named), 1 if nothing did, 2 for bad input.
"""
OPTIMIZERS = "adamw,metaoptimize:meta_lr=0.001,metaoptimize:meta_lr=0.01,metaoptimize:meta_lr=0.03"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser, optimizees="mlp", out="runs/robustness", steps=1000)
    add = parser.add_argument
    about = "baselines, lr left out (default: adamw, and metaoptimize at meta_lr 0.001, 0.01, 0.03)"
    add("--optimizers", default=OPTIMIZERS, metavar="SPEC[,SPEC...]", help=about)
    add("--lrs", default="1e-7:1e-2", help="step sizes: FROM:TO or a list (default: %(default)s)")
    add(
        "--per-decade",
        type=int,
        default=2,
        metavar="N",
        help="step sizes a decade of FROM:TO (default: %(default)s)",
    )
    add(
        "--fresh",
        action="store_true",
        help="forget the finished cells that an earlier run left in DIR",
    )


def run(arguments: argparse.Namespace) -> int:
    from lo_framework.eval.commands.frame import finish, run_study
    from lo_framework.eval.report.robustness import RobustnessReport
    from lo_framework.eval.studies.robustness import check_specs, step_sizes, sweep
    from lo_framework.spec import split_specs

    def plan() -> tuple[list[str], tuple[float, ...]]:
        specs, lrs = (
            split_specs(arguments.optimizers),
            step_sizes(arguments.lrs, arguments.per_decade),
        )
        check_specs(specs, lrs)
        return specs, lrs

    done = run_study(
        arguments,
        "robustness",
        plan,
        lambda p: p[0],
        lambda p, tasks, **options: sweep(tasks, *p, **options),
    )
    if isinstance(done, int):
        return done
    result, folder = done
    return finish("robustness", RobustnessReport(result), folder)
