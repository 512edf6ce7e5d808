"""The outer loop: stages, meta-gradients, validation, checkpoints.

A run can be killed at any moment and resumed to the same bits: all that it carries (theta, Adam's
moments, every shard's unroll, every generator, the incumbent) is written at every checkpoint, and
nothing depends on time or on the number of workers.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lo_framework.absorption import decompose
from lo_framework.checkpoint import load_latest_state, save_optimizer, save_state
from lo_framework.files.atomic import atomic_write_text, clean_temporaries
from lo_framework.files.lock import exclusive
from lo_framework.learned import LearnedOptimizer
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.meta_train import record
from lo_framework.meta_train.config import difference
from lo_framework.meta_train.growth import Stage, build_learned, plan_stages
from lo_framework.meta_train.host import Setup, build_estimator
from lo_framework.meta_train.incumbent import (
    Incumbent,
    is_plain,
    measure,
    score,
    tuned_start,
    with_lr,
)
from lo_framework.meta_train.outer import Outer
from lo_framework.meta_train.progress import Progress
from lo_framework.meta_train.radius import Radius, RadiusConfig, held_out
from lo_framework.meta_train.state import Run, incumbent_of, merged, pack, part
from lo_framework.meta_train.workers import Workers
from lo_framework.objectives import make_objective
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError, build_config, parse_spec

PATIENCE = 3  # validations without a better optimizer before the run goes back to the incumbent


class MetaTraining:
    """One run in the folder ``out``."""

    def __init__(self, setup: Setup, out: Path, *, workers: int = 1, quiet: bool = False) -> None:
        self.setup, self.config, self.out, self.quiet = setup, setup.config, out, quiet
        self.tasks = make_tasks(
            self.config.optimizees, self.config.datasets, setup.data_dir, self.config.device
        )
        self.stages = plan_stages(self.config.learned, self.config.outer_steps)
        if self.config.inner_backend == "higher" and [s.kind for s in self.stages] != [
            "hyper-adamw"
        ]:
            raise UserError("--inner-backend higher needs --learned hyper-adamw")
        if workers < 1:
            raise UserError(f"--workers must be at least 1, not {workers}")
        self.num_workers = workers
        absorption = self.config.absorption
        self.alpha = absorption.alpha if absorption is not None else 0.0
        _, options = (
            parse_spec(f"rho:{self.config.learn_rho}") if self.config.learn_rho else ("", {})
        )
        self.radius_config = build_config(RadiusConfig, options, owner="--learn-rho")
        self.shards = len(self.tasks) * self.config.shards
        self._check()

    def _check(self) -> None:
        """Whatever else can be wrong is found now, before anything is written and minutes are
        spent.
        """
        objective = make_objective(self.config.objective)
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

    def train(self, *, resume: bool = False, max_seconds: float | None = None) -> Incumbent:
        """Run (or go on) to the end and save the incumbent; returns it. A finished run is left as
        it is.
        """
        with exclusive(self.out):
            return self._train(resume, max_seconds)

    def _train(self, resume: bool, max_seconds: float | None) -> Incumbent:
        begun = time.monotonic()
        saved = load_latest_state(self.out / "state") if resume else None
        if not resume and self._occupied():
            raise UserError(
                f"{str(self.out)!r} already holds a run: go on with it (--resume) or choose another --out"
            )
        if saved is not None:
            self._same_run(saved.meta)
            if saved.meta["finished"]:
                return incumbent_of(saved.tensors, saved.meta)
        clean_temporaries(self.out)  # of a killed run
        atomic_write_text(
            self.out / "config.json", json.dumps(asdict(self.config), indent=2) + "\n"
        )
        with contextlib.ExitStack() as stack:
            progress = Progress(
                self.out, self.config.outer_steps, saved.step if saved else 0, self.quiet
            )
            stack.callback(progress.close)
            workers = Workers(self.setup, self.shards, self.num_workers)
            stack.callback(workers.close)
            if saved is None:
                run = self._start(workers, progress)
            else:
                if saved.warning:
                    progress.say(saved.warning)
                run = self._load(workers, saved.tensors, saved.meta)
            self._loop(run, workers, progress, begun, max_seconds)
        return run.incumbent

    def _start(self, workers: Workers, progress: Progress) -> Run:
        """AdamW's learning rate, the reference of all scores, and the first stage's start."""
        progress.say("tuning AdamW's learning rate as the start and the yardstick")
        lr, reference = tuned_start(workers, self.config, len(self.tasks))
        progress.say(
            f"the best AdamW for all families has lr {lr:g}; scores below 1 are better than it"
        )
        first = self.stages[0]
        learned = first.build()
        theta = learned.theta()
        if isinstance(learned, HyperAdamW):
            theta["default"] = with_lr(theta["default"], learned.config, lr)
        if is_plain(learned):
            quality = reference  # the same function
        else:
            quality = measure(
                workers, self.config, len(self.tasks), first.kind, first.config, [theta]
            )[0]
        incumbent = Incumbent(
            theta, first.kind, first.config, score(quality, reference), 0, quality
        )
        learned.load_theta(theta)
        self._build(workers, first, None)
        known = (reference, lr, True, self._radius(), self.config.make_weighting())
        return Run(0, 0, self._outer(learned, first), incumbent, *known)

    def _build(
        self,
        workers: Workers,
        stage: Stage,
        tensors: dict[int, dict[str, Tensor]] | None,
        rho: float | None = None,
    ) -> None:
        parts: list[tuple[Any, ...]] = []
        for mine in workers.parts:
            own = None if tensors is None else {shard: tensors[shard] for shard in mine}
            parts.append((stage.kind, stage.config, stage.index, own, rho))
        workers.call("build", parts)

    def _loop(
        self,
        run: Run,
        workers: Workers,
        progress: Progress,
        begun: float,
        max_seconds: float | None,
    ) -> None:
        config = self.config
        while run.step < config.outer_steps:
            if max_seconds is not None and time.monotonic() - begun > max_seconds:
                progress.say(
                    f"stopped after {max_seconds:g} s at step {run.step}: this run cannot be repeated exactly"
                )
                run.repeatable = False
                break
            stage = self.stages[run.stage]
            if run.step == stage.end:
                self._next_stage(run, workers, progress)
                stage = self.stages[run.stage]
            started, before = time.monotonic(), run.step
            rows = (
                [self._step(run, workers, stage)]
                if run.radius is None
                else self._phase(run, workers, stage)
            )
            run.step += len(rows)
            if _passed(config.validate_every, before, run.step) or run.step in (
                stage.end,
                config.outer_steps,
            ):
                self._validate(run, workers, stage, progress)
                rows[-1][1]["validation/incumbent"] = run.incumbent.score
            seconds = (time.monotonic() - started) / len(rows)
            steps = self.shards * config.tasks_per_shard * config.unroll_length
            for step, (row, curves) in enumerate(rows, before + 1):
                row |= {
                    "step": step,
                    "score": run.incumbent.score,
                    "seconds": seconds,
                    "rate": steps / seconds,
                }
                curves["rate/inner_steps_per_second"] = row["rate"]
                progress.step(row, curves)
            if _passed(config.checkpoint_every, before, run.step) and run.step < config.outer_steps:
                self._save(run, workers, finished=False)
        if run.step and run.step < config.outer_steps:
            self._validate(run, workers, self.stages[run.stage], progress)
        self._save_optimizer(run)
        self._save(run, workers, finished=run.step == config.outer_steps)

    def _step(
        self, run: Run, workers: Workers, stage: Stage
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """One outer step: the mean over families of the mean over shards, summed in a fixed order."""
        weights = () if run.weighting is None else (run.weighting.weights(),)
        answers = workers.everywhere("estimate", run.outer.theta, *weights)
        by_shard = {int(shard): answer for part in answers for shard, answer in part.items()}
        grads, metrics, plains = zip(*(by_shard[shard] for shard in range(self.shards)))
        grad = record.mean(grads)
        if self.alpha:
            grad = decompose(record.mean(plains), grad, self.alpha)
        families = record.by_family(metrics, [task.name for task in self.tasks], self.config.shards)
        outcome = run.outer.step(grad)
        row = record.row(stage, families, outcome)
        curves = record.weigh(row, run.weighting) if run.weighting is not None else {}
        return row, curves | record.curves(families, outcome) | record.step_sizes(
            stage, run.outer.theta, self.tasks
        )

    def _phase(
        self, run: Run, workers: Workers, stage: Stage
    ) -> list[tuple[dict[str, Any], dict[str, float]]]:
        """Some outer steps in two branches that differ in the radius; the run goes on in the better
        one (`radius`).
        """
        radius = run.radius
        assert radius is not None
        count = min(radius.config.phase, stage.end - run.step)
        outer, shards, done = run.outer.dump(), merged(workers.everywhere("dump")), run.outer.done
        outer = {name: x.clone() for name, x in outer.items()}
        eps, rhos = radius.pair()
        branches = []
        for rho in rhos:
            run.outer = self._outer(stage.build(), stage)
            run.outer.load(
                {name: x.clone() for name, x in outer.items()}, done
            )  # Adam writes into what it loads
            self._build(workers, stage, shards, rho)
            rows = [self._step(run, workers, stage) for _ in range(count)]
            for row, curves in rows:
                row["rho"] = curves["regularizer/rho"] = rho
            theta = run.outer.average
            quality = measure(
                workers, self.config, len(self.tasks), stage.kind, stage.config, [theta]
            )[0]
            branches.append(
                (
                    held_out(quality, run.reference),
                    run.outer,
                    merged(workers.everywhere("dump")),
                    rows,
                )
            )
        radius.learn(eps, [branch[0] for branch in branches])
        best = min(range(2), key=lambda b: branches[b][0])
        if best == 0:  # the workers are in the other branch
            self._build(workers, stage, branches[0][2], rhos[0])
        run.outer = branches[best][1]
        return branches[best][3]

    def _radius(self) -> Radius | None:
        absorption = self.config.absorption
        if not self.config.learn_rho or absorption is None:
            return None
        return Radius(self.radius_config, absorption.radius, self.config.seed)

    def _validate(self, run: Run, workers: Workers, stage: Stage, progress: Progress) -> None:
        # Theta itself is ahead, its average is calmer: early on the one is better, later the other.
        thetas = [
            {name: x.clone() for name, x in source.items()}
            for source in (run.outer.theta, run.outer.average)
        ]
        qualities = measure(workers, self.config, len(self.tasks), stage.kind, stage.config, thetas)
        value, best = min((score(quality, run.reference), i) for i, quality in enumerate(qualities))
        theta, quality = thetas[best], qualities[best]
        if value < run.incumbent.score:
            run.incumbent = Incumbent(theta, stage.kind, stage.config, value, run.step, quality)
            run.outer.stale = 0
            self._save_optimizer(run)
            return
        run.outer.stale += 1
        if (
            run.outer.stale >= PATIENCE and run.step < stage.end
        ):  # unrolled gradients explode now and then: go back
            run.outer.back_to(self._grown(run.incumbent, stage).theta())
            found = run.incumbent.score
            progress.say(
                f"step {run.step}: score {value:.3f}, back to the incumbent ({found:.3f}) at half the pace"
            )

    def _next_stage(self, run: Run, workers: Workers, progress: Progress) -> None:
        """Grow: a new kind that starts as the function that the incumbent is."""
        run.stage += 1
        stage = self.stages[run.stage]
        run.outer = self._outer(self._grown(run.incumbent, stage), stage)
        self._build(workers, stage, None)
        progress.say(
            f"step {run.step}: {run.incumbent.kind} (score {run.incumbent.score:.3f}) grows into {stage.kind}"
        )

    def _outer(self, learned: LearnedOptimizer, stage: Stage) -> Outer:
        return Outer(learned, self.config.outer_lr, self.config.clip, stage.end - stage.begin)

    @staticmethod
    def _grown(incumbent: Incumbent, stage: Stage) -> LearnedOptimizer:
        """The stage's kind as the same function as the incumbent."""
        smaller, learned = build_learned(incumbent.kind, incumbent.config), stage.build()
        smaller.load_theta(incumbent.theta)
        learned.grow_from(smaller)
        return learned

    def _occupied(self) -> bool:
        """There is something in the folder that a new run would overwrite."""
        log = self.out / "metrics.jsonl"
        made = any((self.out / name).exists() for name in ("state", "optimizer.safetensors"))
        return made or (log.exists() and log.stat().st_size > 0)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _save_optimizer(self, run: Run) -> None:
        best = run.incumbent
        summary = {
            "score": best.score,
            "found_at_step": best.step,
            "steps": run.step,
            "reference_lr": run.start_lr,
            "quality": best.quality,
            "reference": run.reference,
            "repeatable": run.repeatable,
            "run": asdict(self.config),
            "torch": torch.__version__,
        }
        save_optimizer(
            self.out / "optimizer.safetensors",
            best.theta,
            kind=best.kind,
            config=best.config,
            summary=summary,
        )

    def _save(self, run: Run, workers: Workers, *, finished: bool) -> None:
        tensors, meta = pack(run, merged(workers.everywhere("dump")))
        fixed = {"config": asdict(self.config), "torch": torch.__version__, "stages": self._plan()}
        save_state(self.out / "state", run.step, tensors, {**meta, **fixed, "finished": finished})

    def _same_run(self, meta: dict[str, Any]) -> None:
        changed = difference(meta["config"], self.config)
        if changed:
            raise UserError(
                f"--resume needs the settings of the run in {str(self.out)!r}: {changed}"
            )
        if meta.get("stages") != self._plan():
            raise UserError(
                f"the run in {str(self.out)!r} was begun by another release, with other stages"
            )
        if meta["torch"] != torch.__version__:
            raise UserError(
                f"--resume needs torch {meta['torch']}, with which the run began; this is {torch.__version__}"
            )

    def _plan(self) -> list[list[Any]]:
        return [[stage.kind, stage.begin, stage.end] for stage in self.stages]

    def _load(self, workers: Workers, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Run:
        stage = self.stages[meta["stage"]]
        outer = self._outer(stage.build(), stage)
        outer.load(part(tensors, "outer"), meta["outer_done"])
        shards = {shard: part(tensors, f"shard.{shard}") for shard in range(self.shards)}
        self._build(workers, stage, shards)
        radius, weighting = self._radius(), self.config.make_weighting()
        for group, learner in (("radius", radius), ("weighting", weighting)):
            if learner is not None:
                learner.load(part(tensors, group))
        known = (meta["reference"], meta["start_lr"], meta["repeatable"], radius, weighting)
        return Run(
            stage.begin + meta["outer_done"],
            meta["stage"],
            outer,
            incumbent_of(tensors, meta),
            *known,
        )


def _passed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after]."""
    return after // every > before // every
