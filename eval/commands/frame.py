"""The frame of the commands: input checked before a run, finished cells kept, the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lo_framework.eval.report.text import visible
from lo_framework.eval.running import protocol
from lo_framework.eval.running.plan import plan_of
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.store import CellStore
from lo_framework.eval.studies.transfer import check
from lo_framework.protocols import Task

if TYPE_CHECKING:
    from lo_framework.eval.report.base import Report

CELLS = "cells"
R = TypeVar("R")


def check_input(
    arguments: argparse.Namespace, tasks: Sequence[Task], optimizers: Sequence[str]
) -> None:
    """What an evaluation would refuse only once its folder is made.

    Raises:
        UserError: a task or an optimizer given twice, steps, seeds or workers out of range.
    """
    check(tasks, optimizers, arguments.steps, arguments.workers)
    protocol.report_seeds(arguments.seeds, arguments.seed_offset)
    if hasattr(arguments, "tuning_seeds"):
        protocol.tuning_seeds(arguments.tuning_seeds, arguments.seed_offset)


def run_study(
    arguments: argparse.Namespace,
    name: str,
    plan: Callable[[], Any],
    optimizers: Callable[[Any], Sequence[str]],
    compute: Callable[..., R],
) -> tuple[R, Path] | int:
    """Set up, compute and keep finished cells; the exit code of an interrupted run.

    Args:
        plan: what can be wrong with the input, checked before anything is computed or any folder
            made; given on.
        optimizers: of ``plan()``, those that a person may have given twice.
        compute: ``(plan(), tasks, **options of `drive`)``.
    """
    from lo_framework.eval.report.base import prepare
    from lo_framework.optimizees import make_tasks
    from lo_framework.plugin import load_plugins

    load_plugins(arguments.plugin)
    planned = plan()
    tasks = make_tasks(
        arguments.optimizees, arguments.datasets, arguments.data_dir, arguments.device
    )
    check_input(arguments, tasks, optimizers(planned))
    folder = prepare(arguments.out)
    store = CellStore(
        folder / CELLS, plan_of(tasks, arguments.device, arguments.plugin), fresh=arguments.fresh
    )
    progress = Progress(mode=arguments.progress, title=name)
    options = {
        key: getattr(arguments, key)
        for key in ("steps", "seeds", "seed_offset", "workers", "data_dir")
    }
    options |= dict(
        plugins=arguments.plugin, command=arguments.words, progress=progress, store=store
    )
    try:
        result = compute(planned, tasks, **options)
    except KeyboardInterrupt:
        progress.close()
        again = "the same command continues from the finished cells"
        print(f"eval {name}: interrupted; {again}", file=sys.stderr)
        return 130
    finally:
        progress.close()
    if store.reused:
        print(f"{store.reused} finished cells of an earlier run were used again", file=sys.stderr)
    return result, folder


def finish(name: str, report: Report[Any], folder: Path) -> int:
    """Save and print a report, and what failed on stderr; returns the exit code."""
    written = report.save(folder)
    print(report.plain())
    print(f"\n{report.listing(written)}")
    for line in report.failures():
        print(f"eval {name}: failed: {visible(line)}", file=sys.stderr)
    return 0 if report.worked() else 1
