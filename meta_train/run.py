"""One run of meta-training, in a folder: from nothing, from a checkpoint, past dead workers.

A run can be killed at any moment and resumed to the same bits (`trainer`). A worker process that
dies is a kill of a part: the run goes on from its last checkpoint with new workers.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lo_framework import ranks
from lo_framework.commandline import Stopped
from lo_framework.files.lock import exclusive
from lo_framework.inner.engine import Engine, resolved
from lo_framework.learned import LEARNED, LearnedOptimizer, load, register_learned
from lo_framework.meta_train.beginning import Beginning, beginning_at, beginning_with
from lo_framework.meta_train.config import Program
from lo_framework.meta_train.folder import RunFolder
from lo_framework.meta_train.growth import plan_stages
from lo_framework.meta_train.incumbent import Incumbent
from lo_framework.meta_train.presets import make_config
from lo_framework.meta_train.problems import Given
from lo_framework.meta_train.progress import Progress
from lo_framework.meta_train.shards import TaskFailed, build_estimator, build_family
from lo_framework.meta_train.stopping import Signals
from lo_framework.meta_train.trainer import Trainer
from lo_framework.meta_train.workers import Workers, WorkerSetup
from lo_framework.optimizees import Task
from lo_framework.optimizees.variation import Variation, make_variations
from lo_framework.plugin import load_plugins
from lo_framework.processes import UNSTARTED, Died, single_thread
from lo_framework.spec import UserError, canonical

DRAWS = 16  # by which the size of a family that varies is estimated
DEATHS = 3  # of workers without a checkpoint between them: another start would end the same way


def train(
    tasks: str | Task | Sequence[str | Task],
    learned: str | LearnedOptimizer | type[LearnedOptimizer] = "scaled",
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
        spec, start = _learned(learned)
        config = make_config(preset, learned=spec, **settings)
        alone = isinstance(tasks, str) or hasattr(tasks, "loss")
        given: list[Any] = [tasks] if alone else list(tasks)  # type: ignore[arg-type]
        specs = [task for task in given if isinstance(task, str)]
        pool: list[Variation | Given] = []
        if len(specs) < len(given):
            device, where = config.device, (config.datasets, config.vary)
            for task in given:
                if isinstance(task, str):
                    pool += make_variations(task, *where, data_dir=data_dir, device=device)
                else:
                    pool.append(Given(task if device == "cpu" else task.to(device)))
            specs = [each.name for each in pool]
            if twice := {name for name in specs if specs.count(name) > 1}:
                raise UserError(f"two tasks are called {min(twice)!r}: give one another name")
        program = Program(
            out=folder,
            workers=1 if pool else workers,
            resume=resume,
            max_seconds=max_seconds,
            data_dir=data_dir,
            plugins=tuple(plugins),
        )
        setup = WorkerSetup(replace(config, optimizees=",".join(specs)), program, tuple(pool))
        training = MetaTraining(setup, quiet=quiet, start=start)
        training.train()
        return load(training.folder.optimizer)


def _learned(given: Any) -> tuple[str, Beginning | None]:
    """A spec of the kind to train, and what to begin with (None: its own start)."""
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
    return canonical(given.kind, given.config), beginning_with(given)


class MetaTraining:
    """One run in the program's folder, from ``start`` where it is given."""

    def __init__(
        self, setup: WorkerSetup, *, quiet: bool = False, start: Beginning | None = None
    ) -> None:
        self.program, self.pool = setup.program, setup.make_pool()
        self.out, self.quiet, self.start = Path(self.program.out), quiet, start
        # What this machine makes of it is what the run's file says, and all others read.
        config, varied = setup.config, not all(each.is_fixed for each in self.pool)
        steps = config.outer_steps * config.unroll_length
        engine = resolved(config.engine, 0 if varied else steps, config.device)
        Engine.parse(engine)
        self.config = replace(config, engine=engine)
        self.setup = setup._replace(config=self.config)
        problems = setup.make_problems(self.pool)
        self.tasks = [problem.task for problem in problems[: len(self.pool)]]
        if self.config.learn_rho and len(problems) > len(self.pool):
            raise UserError(
                "a radius (--learn-rho) is learned on the families themselves: give --probes none"
            )
        grown, only = start is None and not self.config.start, self.config.only
        steps = self.config.outer_steps
        self.stages = plan_stages(self.config.learned, steps, grown=grown, only=only)
        kinds = [stage.kind for stage in self.stages]
        if self.config.inner_backend == "higher" and kinds != ["hyper-adamw"]:
            raise UserError("--inner-backend higher needs --learned hyper-adamw")
        light, families = self.program.light_state, len(self.pool)
        self.folder = RunFolder(self.out, self.config, self.stages, families, light)
        self._check_memory()
        for stage in self.stages:  # whatever else can be wrong, before minutes are spent
            learned = stage.build()
            if not sum(x.numel() for x in learned.theta().values()):
                raise UserError(
                    f"the learned optimizer {stage.kind!r} has no meta-parameters to train"
                )
            explicit = learned.explicit(learned.theta()) is not None
            if explicit and not self.config.scored_by.only_held_out:
                raise UserError(
                    "a radius (sam_rho) is learned on held-out data only: use --objective valid"
                )
            family = build_family(self.config, self.tasks[0], learned.to(self.config.device))
            build_estimator(self.config, family)

    def _check_memory(self) -> None:
        """Refuse what the parameters of the tasks in flight, and two moments, already overfill."""
        generator = torch.Generator().manual_seed(0)
        count = 0
        for each, task in zip(self.pool, self.tasks, strict=True):
            drawn = [task] if each.is_fixed else [each.draw(generator) for _ in range(DRAWS)]
            count += max(sum(x.numel() for x in t.init(generator)[0].values()) for t in drawn)
        needed, there = 12 * count * self.config.num_tasks, _memory(self.config.device)
        line = (
            f"--num-tasks {self.config.num_tasks}: parameters and moments of its tasks take about "
            f"{needed / 2**30:,.1f} GiB, and {self.config.device} has {there / 2**30:,.1f} GiB"
        )
        if needed > there:
            raise UserError(line)
        if needed > there / 4:
            self.say(line)

    def train(self, signals: Signals | None = None) -> Incumbent:
        """Run (or go on) to the end and save the incumbent; returns it. Of a finished run, only an
        optimizer file that is lost or damaged is made again.

        Raises:
            Stopped: one of the ``signals`` has come; a resume state is written where there is a
                step to go on from.
        """
        signals = signals or Signals()
        resume = self.program.resume or ranks.restarted()
        seconds = self.program.max_seconds
        deadline = None if seconds is None else time.monotonic() + seconds
        with exclusive(self.out):
            if not resume:
                self.folder.refuse_occupied()
            deaths, reached = 0, -1
            while True:
                try:
                    return self._train(resume, deadline, signals)
                except Died as death:
                    if signals.number:  # it was sent to the workers too
                        raise Stopped(signals.number) from None
                    if ranks.others():  # torchrun begins all of them again
                        raise UserError(f"{death}; go on with --out {self.out} --resume") from None
                    if UNSTARTED in str(death):
                        raise UserError(UNSTARTED) from None
                    saved = self.folder.load()
                    step = saved.step if saved else 0
                    deaths, reached = (1 if step > reached else deaths + 1), step
                    line = f"{death} after the checkpoint of step {step}"
                    if deaths == DEATHS:
                        raise UserError(
                            f"{line}, {deaths} times; with fewer --workers, go on with "
                            f"--out {self.out} --resume"
                        ) from death
                    self.say(f"{line}: going on from there with new workers")
                    resume = True

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def _train(self, resume: bool, deadline: float | None, signals: Signals) -> Incumbent:
        saved = self.folder.load() if resume else None
        if saved is not None and saved.record.finished:
            return self.folder.finish(saved)
        self.folder.begin()
        done, total = saved.step if saved else 0, self.config.outer_steps
        shards = len(self.pool) * self.config.shards
        with (
            closing(Progress(self.out, total, done, self.quiet, asdict(self.config))) as progress,
            closing(Workers(self.setup, shards)) as workers,
            closing(self.folder),
        ):
            trainer = Trainer(self.stages, workers, progress, self.folder)
            try:
                if saved is None:
                    trainer.start(self._start())
                else:
                    if saved.warning:
                        progress.say(saved.warning)
                    trainer.resume(saved)
                with signals.noted():
                    trainer.loop(deadline, signals)
                progress.draw(trainer.run.step)
            except TaskFailed as error:
                step = trainer.run.step + 1 if hasattr(trainer, "run") else 0
                raise UserError(
                    f"step {step}: {error}; once it is mended, go on with --out {self.out} --resume"
                ) from error
        if signals.number:
            raise Stopped(signals.number, f"step {trainer.run.step} is saved")
        return trainer.run.incumbent

    def _start(self) -> Beginning | None:
        """What the run begins with; None: its optimizer's own start."""
        config = self.config
        return beginning_at(config.start, config.learned) if config.start else self.start


def _memory(device: str) -> float:
    """Bytes that the device has, infinity where the system does not say."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf
