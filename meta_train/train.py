"""Meta-training from a script, with specs or with objects of one's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lo_framework.learned import LEARNED, LearnedOptimizer, rebuild, register_learned
from lo_framework.meta_train.config import Program
from lo_framework.meta_train.host import WorkerSetup
from lo_framework.meta_train.presets import make_config
from lo_framework.meta_train.run import MetaTraining
from lo_framework.optimizees import Task, make_tasks
from lo_framework.plugin import load_plugins
from lo_framework.processes import single_thread
from lo_framework.spec import UserError, canonical


def train(
    tasks: str | Task | Sequence[str | Task],
    learned: str | LearnedOptimizer | type[LearnedOptimizer] = "attention-mlp",
    *,
    out: str | os.PathLike[str] | None = None,
    preset: str = "quick",
    workers: int = 1,
    resume: bool = False,
    max_seconds: float | None = None,
    data_dir: str | None = None,
    plugins: Sequence[str] = (),
    quiet: bool = False,
    **settings: Any,
) -> LearnedOptimizer:
    """The learned optimizer that did best on validation seeds, as ``python -m meta_train`` finds
    it.

    Args:
        tasks: specs (``"mlp,cnn"``), tasks (of `task_from_module`), or a list of both. With tasks
            that are objects, everything runs in this process, whatever ``workers`` says.
        learned: a spec, a class of one's own, or an optimizer, which is trained on from the weights
            that it has.
        out: folder of the run; without it nothing is kept.
        preset, workers, resume, max_seconds, data_dir, plugins: as on the command line.
        quiet: tell nothing on stderr.
        settings: fields of `lo_framework.meta_train.config.RunConfig`, as ``outer_steps=20``.

    Raises:
        UserError: bad input, in one line.
    """
    load_plugins(plugins)
    kept = nullcontext(os.fspath(out)) if out is not None else tempfile.TemporaryDirectory()
    with kept as folder, single_thread():
        program = Program(
            preset=preset,
            out=folder,
            workers=workers,
            resume=resume,
            max_seconds=max_seconds,
            data_dir=data_dir,
            plugins=tuple(plugins),
        )
        spec, start = _learned(learned)
        alone = isinstance(tasks, str) or hasattr(tasks, "loss")
        given: list[Any] = [tasks] if alone else list(tasks)  # type: ignore[arg-type]
        specs = [task for task in given if isinstance(task, str)]
        objects: list[Task] = []
        if len(specs) < len(given):
            where = (settings.get("datasets", "digits"), data_dir, settings.get("device", "cpu"))
            for task in given:
                objects += make_tasks(task, *where) if isinstance(task, str) else [task]
            specs = [task.name for task in objects]
            if twice := {name for name in specs if specs.count(name) > 1}:
                raise UserError(f"two tasks are called {min(twice)!r}: give one another name")
        config = make_config(preset, optimizees=",".join(specs), learned=spec, **settings)
        setup = WorkerSetup(config, data_dir, program.plugins, tuple(objects))
        count = 1 if objects else workers
        run = MetaTraining(setup, Path(folder), workers=count, quiet=quiet, start=start)
        best = run.train(resume=resume, max_seconds=max_seconds)
    return rebuild(best.kind, best.config, best.theta)


def _learned(given: Any) -> tuple[str, Any]:
    """A spec of the kind to train, and the weights to start from (None: its own start)."""
    if isinstance(given, str):
        return given, None
    kind = given if isinstance(given, type) else type(given)
    if not issubclass(kind, LearnedOptimizer):
        raise UserError(f"learned: expected a spec, a LearnedOptimizer or its class, not {given!r}")
    if not getattr(kind, "kind", ""):
        raise UserError(f'{kind.__name__} needs a name: kind = "my-optimizer" in the class')
    if kind.kind not in LEARNED or given is kind:
        register_learned(kind)
    if given is kind:
        return kind.kind, None
    return canonical(given.kind, given.config), {n: x.clone() for n, x in given.theta().items()}
