"""What the commands share: options in a spec, finished cells, input checked before a run, the frame
of a run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lo_framework.eval import protocol
from lo_framework.eval.baselines import BASELINES, make_baseline
from lo_framework.eval.evaluation import check
from lo_framework.eval.parallel import Outcome
from lo_framework.eval.progress import Progress
from lo_framework.eval.provenance import provenance
from lo_framework.eval.runner import Failure
from lo_framework.eval.sharpness.store import CellStore, digest
from lo_framework.eval.statistics import Array
from lo_framework.protocols import Task
from lo_framework.spec import UserError, canonical, parse_spec

CELLS = "cells"
R = TypeVar("R")


def with_options(spec: str, changed: Mapping[str, str]) -> str:
    """The shortest spec of the same baseline with some options changed; equal settings give equal
    specs.

    Raises:
        UserError: an unknown baseline or option, or a value that cannot be; the line names the
            whole spec.
    """
    name, options = parse_spec(spec)
    merged = {**options, **changed}
    text = (
        f"{name}:{','.join(f'{key}={value}' for key, value in merged.items())}" if merged else name
    )
    try:
        config = make_baseline(text).config
    except UserError as error:
        raise UserError(f'"{text}": {error}') from None
    return canonical(name, config)


def canonical_spec(spec: str) -> str:
    return with_options(spec, {})


def options_of(spec: str) -> dict[str, Any]:
    """All options of a baseline's spec with their values, defaults included."""
    make_baseline(spec)  # or one line that says why not
    return asdict(make_baseline(spec).config)


def known_options(spec: str) -> list[str]:
    return [option.name for option in fields(BASELINES[parse_spec(spec)[0]].Config)]


def by_setting(outcomes: Sequence[Outcome]) -> tuple[dict[str, Array], Array] | Failure:
    """Metrics and counts ``[C, S]`` and where runs diverged ``[C, S]``, of cells that share their C
    settings.
    """
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return outcome
    tables = [outcome.metrics | outcome.extra for outcome in outcomes]
    # One cell may have counts that another lacks, as where all of its runs diverged at once.
    names = dict.fromkeys(name for table in tables for name in table)
    missing = [np.full(outcome.diverged.shape, np.nan) for outcome in outcomes]
    joined = {n: np.concatenate([t.get(n, nan) for t, nan in zip(tables, missing)]) for n in names}
    return joined, np.concatenate([outcome.diverged for outcome in outcomes])


def plan_of(tasks: Sequence[Task], device: str, plugins: Sequence[str]) -> dict[str, Any]:
    """What decides a cell's numbers beside the cell itself: data, code, versions, device."""
    data = {}
    for task in tasks:
        tensors = [x for split in ("train", "valid", "test") for x in task.full(split)]
        data[task.name] = digest(
            *(x.detach().cpu().contiguous().numpy().tobytes() for x in tensors)
        )
    root = Path(__file__).resolve().parents[1]
    names = (
        "baselines",
        "explicit",
        "meta_adamw",
        "meta_optimize",
        "runner",
        "torch_metaoptimize",
        "torch_runs",
    )
    files = [root / "eval" / f"{name}.py" for name in names]
    files += [
        path
        for room in ("optimizees", "regularizers", "lo_framework")
        for path in (root / room).rglob("*.py")
    ]
    return {
        "device": device,
        "plugin": {
            path: digest(Path(path).read_bytes()) for path in plugins if Path(path).is_file()
        },
        "data of": data,
        "versions": provenance()["versions"],
        "code": digest(*(path.read_bytes() for path in sorted(files))),
    }


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
    from lo_framework.eval.report import files
    from lo_framework.optimizees import make_tasks
    from lo_framework.plugin import load_plugins

    load_plugins(arguments.plugin)
    planned = plan()
    tasks = make_tasks(
        arguments.optimizees, arguments.datasets, arguments.data_dir, arguments.device
    )
    check_input(arguments, tasks, optimizers(planned))
    folder = files.prepare(arguments.out)
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
