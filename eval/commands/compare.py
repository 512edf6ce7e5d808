"""Compare optimizers with each other: each tuned over its own grid, or at another one's settings.

All start from the same parameters and see the same batches of a seed. An arm is tuned for each task
on other seeds and without test data, over as many settings as every other arm. `--scaled` adds the
reference at multiples of its tuned learning rate, and `--at-reference` other optimizers at exactly
its tuned settings: what is left between those and the reference is their rule, not their tuning.
"""

from __future__ import annotations

import argparse

from lo_framework.eval.commands.options import add_runs

HELP = "compare baselines with each other: tuned alike, or at one another's settings"
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser, optimizees="mlp,cnn", out="runs/compare", steps=200)
    add = parser.add_argument
    add("--arms", default="none", metavar="SPECS", help="baselines, each tuned (default: none)")
    add(
        "--reference",
        default="adamw",
        metavar="SPEC",
        help="what all are compared with (default: %(default)s)",
    )
    add(
        "--at-reference",
        default="none",
        metavar="SPECS",
        help="baselines at the reference's tuned settings",
    )
    add(
        "--scaled",
        default="",
        metavar="FACTORS",
        help="the reference at these multiples of its learning rate",
    )
    add("--against", default="", metavar="SPECS", help="arms that others are compared with too")
    add(
        "--tuning-seeds", type=int, default=3, help="other seeds, to tune on (default: %(default)s)"
    )
    add(
        "--grid-size",
        type=int,
        metavar="N",
        help="learning rates per schedule (default: the baseline's 7 or more)",
    )
    add(
        "--fresh",
        action="store_true",
        help="forget the finished cells that an earlier run left in DIR",
    )


def run(arguments: argparse.Namespace) -> int:
    from lo_framework.eval.commands.frame import finish, run_study
    from lo_framework.eval.report.transfer import TransferReport
    from lo_framework.eval.studies.compare import Arms, compare_arms, plan_arms
    from lo_framework.spec import split_specs

    def specs(text: str) -> list[str]:
        return [] if text in ("none", "") else split_specs(text)

    def plan() -> Arms:
        return plan_arms(
            arguments.reference,
            specs(arguments.arms),
            specs(arguments.at_reference),
            arguments.scaled,
            specs(arguments.against),
            arguments.grid_size,
        )

    tuning = {"tuning_seeds": arguments.tuning_seeds}
    done = run_study(
        arguments,
        "compare",
        plan,
        lambda arms: arms.labels,
        lambda arms, tasks, **kw: compare_arms(arms, tasks, **tuning, **kw),
    )
    if isinstance(done, int):
        return done
    result, folder = done
    return finish("compare", TransferReport(result), folder)
