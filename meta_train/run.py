"""One run of meta-training, in a folder: from nothing, from a checkpoint, past dead workers.

A run can be killed at any moment and resumed to the same bits (`trainer`). A worker process that
dies is a kill of a part: the run goes on from its last checkpoint with new workers.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from pathlib import Path

import torch

from lo_framework.files.lock import exclusive
from lo_framework.learned.base import Theta
from lo_framework.meta_train.folder import RunFolder
from lo_framework.meta_train.growth import plan_stages
from lo_framework.meta_train.host import TaskFailed, WorkerSetup, build_estimator
from lo_framework.meta_train.incumbent import Incumbent
from lo_framework.meta_train.progress import Progress
from lo_framework.meta_train.trainer import Trainer
from lo_framework.meta_train.workers import Workers
from lo_framework.processes import UNSTARTED, Died
from lo_framework.spec import UserError

DEATHS = 3  # of workers without a checkpoint between them: another start would end the same way


class MetaTraining:
    """One run in the folder ``out``, from the weights ``start`` where they are given."""

    def __init__(
        self,
        setup: WorkerSetup,
        out: Path,
        *,
        workers: int = 1,
        quiet: bool = False,
        start: Theta | None = None,
    ) -> None:
        self.setup, self.config, self.out, self.quiet = setup, setup.config, out, quiet
        self.start = start
        self.tasks = setup.make_tasks()
        self.stages = plan_stages(self.config.learned, self.config.outer_steps, grown=start is None)
        if self.config.inner_backend == "higher" and [s.kind for s in self.stages] != [
            "hyper-adamw"
        ]:
            raise UserError("--inner-backend higher needs --learned hyper-adamw")
        if workers < 1:
            raise UserError(f"--workers must be at least 1, not {workers}")
        self.num_workers = workers
        self.folder = RunFolder(out, self.config, self.stages)
        self._check()

    def _check(self) -> None:
        """Find whatever else can be wrong, before anything is written and minutes are spent."""
        self._check_memory()
        objective = self.config.scored_by
        for stage in self.stages:
            learned = stage.build()
            if not sum(x.numel() for x in learned.theta().values()):
                raise UserError(
                    f"the learned optimizer {stage.kind!r} has no meta-parameters to train"
                )
            if learned.explicit(learned.theta()) is not None and not objective.only_held_out:
                raise UserError(
                    "a radius (sam_rho) is learned on held-out data only: use --objective valid"
                )
            build_estimator(self.config, self.tasks[0], learned.to(self.config.device), objective)

    def _check_memory(self) -> None:
        """Refuse what the parameters of the tasks in flight, and two moments, already overfill."""
        generator = torch.Generator().manual_seed(0)
        count = sum(sum(x.numel() for x in task.init(generator)[0].values()) for task in self.tasks)
        needed, there = 12 * count * self.config.num_tasks, _memory(self.config.device)
        line = (
            f"--num-tasks {self.config.num_tasks}: parameters and moments of its tasks take about "
            f"{needed / 2**30:,.1f} GiB, and {self.config.device} has {there / 2**30:,.1f} GiB"
        )
        if needed > there:
            raise UserError(line)
        if needed > there / 4:
            self.say(line)

    def train(self, *, resume: bool = False, max_seconds: float | None = None) -> Incumbent:
        """Run (or go on) to the end and save the incumbent; returns it. Of a finished run, only an
        optimizer file that is lost or damaged is made again.
        """
        deadline = None if max_seconds is None else time.monotonic() + max_seconds
        with exclusive(self.out):
            if not resume:
                self.folder.refuse_occupied()
            deaths, reached = 0, -1
            while True:
                try:
                    return self._train(resume, deadline)
                except Died as death:
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

    def _train(self, resume: bool, deadline: float | None) -> Incumbent:
        saved = self.folder.load() if resume else None
        if saved is not None and saved.record.finished:
            return self.folder.finish(saved)
        self.folder.begin()
        with contextlib.ExitStack() as stack:
            done = saved.step if saved else 0
            progress = Progress(self.out, self.config.outer_steps, done, self.quiet)
            stack.callback(progress.close)
            workers = Workers(self.setup, len(self.tasks) * self.config.shards, self.num_workers)
            stack.callback(workers.close)
            trainer = Trainer(self.config, self.tasks, self.stages, workers, progress, self.folder)
            try:
                if saved is None:
                    trainer.start(self.start)
                else:
                    if saved.warning:
                        progress.say(saved.warning)
                    trainer.resume(saved)
                trainer.loop(deadline)
            except TaskFailed as error:
                step = trainer.run.step + 1 if hasattr(trainer, "run") else 0
                raise UserError(
                    f"step {step}: {error}; once it is mended, go on with --out {self.out} --resume"
                ) from error
        return trainer.run.incumbent


def _memory(device: str) -> float:
    """Bytes that the device has, infinity where the system does not say."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf
