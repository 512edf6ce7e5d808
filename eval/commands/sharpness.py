"""Measure how sharp the minima are that learned optimizers and tuned baselines find.

All optimizers start from the same parameters and see the same batches of a seed. Every run is
measured after its last step, and at its first step whose training loss is at most that of the
worst optimizer's last step on the same seed: near a minimum, small sharpness mostly means that
training has come far. The sample of the training data is the same for all. Baselines are tuned as
in `eval transfer`, by the final loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lo_framework.eval.commands.options import add_common, baselines_of, common
from lo_framework.eval.running.progress import Progress
from lo_framework.spec import UserError

if TYPE_CHECKING:
    from lo_framework.eval.running.learned_files import Loaded
    from lo_framework.eval.sharpness.settings import Settings
    from lo_framework.protocols import Task

HELP = "how sharp the minima are that learned optimizers and tuned baselines find"
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
CELLS = "cells"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lo_framework.eval.sharpness.settings import EFFORTS, PROBE, RADII

    add_common(parser, optimizees="mlp", baselines="adamw", out="runs/sharpness")
    add, radii = parser.add_argument, ",".join(f"{r:g}" for r in RADII)
    add("--radii", default=radii, help="l2 radii of the neighbourhoods (default: %(default)s)")
    add(
        "--effort",
        default="quick",
        help=f"{', '.join(EFFORTS)}: how much is measured (default: %(default)s)",
    )
    add(
        "--probe",
        default=PROBE,
        help="regularizer that updates are compared with, or none (default: %(default)s)",
    )
    add(
        "--fresh",
        action="store_true",
        help="forget the finished cells that an earlier run left in DIR",
    )


def run(arguments: argparse.Namespace) -> int:
    from lo_framework.eval.commands.frame import check_input, finish
    from lo_framework.eval.report.base import prepare
    from lo_framework.eval.report.sharpness.page import SharpnessReport
    from lo_framework.eval.running.learned_files import load_learned
    from lo_framework.eval.running.store import CellStore
    from lo_framework.eval.running.tuning import make_grid
    from lo_framework.eval.sharpness.probe import check_probe
    from lo_framework.eval.sharpness.settings import Settings, check_effort, parse_radii
    from lo_framework.eval.studies.sharpness import evaluate
    from lo_framework.optimizees import make_tasks
    from lo_framework.plugin import load_plugins

    load_plugins(arguments.plugin)
    effort = check_effort(arguments.effort)
    settings = Settings(
        steps=arguments.steps,
        radii=parse_radii(arguments.radii),
        effort=effort,
        probe=check_probe(arguments.probe),
    )
    baselines = baselines_of(arguments)
    for label in baselines:
        make_grid(label, arguments.grid_size)
    learned = load_learned(arguments.learned)
    tasks = make_tasks(
        arguments.optimizees, arguments.datasets, arguments.data_dir, arguments.device
    )
    check_tasks(tasks)
    if arguments.seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {arguments.seeds}")
    check_input(arguments, tasks, [*learned, *baselines])
    folder = prepare(arguments.out)
    store = CellStore(
        folder / CELLS, plan_of(arguments, settings, tasks, learned), fresh=arguments.fresh
    )
    progress = Progress(mode=arguments.progress, title="sharpness")
    try:
        result = evaluate(
            tasks,
            {label: loaded.optimizer for label, loaded in learned.items()},
            settings=settings,
            **common(arguments, learned),
            progress=progress,
            store=store,
        )
    except KeyboardInterrupt:
        progress.close()
        print(
            "eval sharpness: interrupted; the same command continues from the finished cells",
            file=sys.stderr,
        )
        return 130
    finally:
        progress.close()
    if store.reused:
        print(f"{store.reused} finished cells of an earlier run were used again", file=sys.stderr)
    return finish("sharpness", SharpnessReport(result), folder)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises UserError: there is nothing to measure."""
    import torch

    for task in tasks:
        params, _ = task.init(torch.Generator().manual_seed(0))
        params = {
            name: x.detach().requires_grad_() for name, x in params.items() if x.is_floating_point()
        }
        if not params:
            raise UserError(
                f"{task.name}: the model has no parameters that need gradients, so nothing to measure"
            )


def plan_of(
    arguments: argparse.Namespace,
    settings: Settings,
    tasks: Sequence[Task],
    learned: Mapping[str, Loaded],
) -> dict[str, Any]:
    """Everything that decides the numbers."""
    from lo_framework.eval.running import plan
    from lo_framework.eval.running.store import digest

    common = plan.plan_of(tasks, arguments.device, arguments.plugin)
    return {
        "steps": settings.steps,
        "seeds": arguments.seeds,
        "radii": [f"{r:g}" for r in settings.radii],
        "effort": settings.effort,
        "probe": settings.probe,
        "baselines": arguments.baselines,
        "tuning-seeds": arguments.tuning_seeds,
        "grid-size": arguments.grid_size,
        "seed-offset": arguments.seed_offset,
        "optimizees": [task.name for task in tasks],
        "device": common["device"],
        "learned": {
            label: digest(Path(loaded.path).read_bytes()) for label, loaded in learned.items()
        },
        **common,
    }
