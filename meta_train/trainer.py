"""The outer loop: meta-gradients, validation, growth, checkpoints.

All that a run carries (theta, Adam's moments, every shard's unroll, every generator, the incumbent)
is in its `RunState` and in the workers' shards, and goes into every checkpoint; nothing depends on
time or on the number of workers.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Sequence
from typing import Any

from lo_framework.absorb.absorption import decompose
from lo_framework.estimators import ESTIMATORS
from lo_framework.inner.teacher import fading
from lo_framework.learned import LearnedOptimizer, rebuild
from lo_framework.learned.base import Theta
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.meta_train import record
from lo_framework.meta_train.beginning import Beginning
from lo_framework.meta_train.folder import RunFolder, RunState, Saved
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.incumbent import (
    Incumbent,
    Quality,
    is_plain,
    log_score,
    measure,
    tuned_start,
    with_lr,
)
from lo_framework.meta_train.judges import ByFamilies, ByProbes, Judge, not_finite
from lo_framework.meta_train.outer import AVERAGING, LONG_AVERAGING, OuterOptimizer, Radius
from lo_framework.meta_train.progress import INCUMBENT, Progress
from lo_framework.meta_train.shards import Tensors
from lo_framework.meta_train.stopping import Signals
from lo_framework.meta_train.workers import ShardHost, Workers
from lo_framework.processes import Died
from lo_framework.spec import UserError, describe

LIGHT_EPISODES = 10**6  # those of a run that goes on from a light state are far from the first
FAR = 2.0  # times the incumbent's score
PATIENCE = 3  # validations without a better optimizer before the run goes back to the incumbent

# The line of an outer step in the log, and the points of curves that are not in it.
Row = tuple[dict[str, Any], dict[str, float]]


class Trainer:
    """One run between the ``workers`` that compute and the ``folder`` that keeps."""

    run: RunState

    def __init__(
        self, stages: Sequence[Stage], workers: Workers, progress: Progress, folder: RunFolder
    ) -> None:
        self.config, self.stages = workers.config, stages
        self.workers, self.progress, self.folder = workers, progress, folder
        self.tasks = [problem.task for problem in workers.problems[: len(workers.pool)]]
        self.saved = False
        self.unrolls = bool(ESTIMATORS.parse(self.config.estimator)[0].facts.get("unrolls"))
        self.nonfinite = dict.fromkeys((task.name for task in self.tasks), 0.0)
        probed = len(workers.problems) > len(workers.pool)
        self.judge: Judge = ByProbes(workers) if probed else ByFamilies(workers)

    @property
    def stage(self) -> Stage:
        return self.stages[self.run.stage]

    def start(self, begun: Beginning | None = None) -> None:
        """AdamW's learning rate, the reference of all scores, and the first stage's start, which is
        ``begun`` where it is given.
        """
        theta = None if begun is None else begun.theta
        first = self.stages[0]
        learned = first.build()
        if isinstance(self.judge, ByProbes):
            self.progress.say(f"tuning AdamW on probes: {', '.join(self.judge.names)}")
            reference = self.judge.reference()
            lr, theta, quality = self.judge.start(first, theta)
            self.progress.say(f"the start has lr {lr:g}; scores below 1 are better than AdamW")
        else:
            lr, reference, theta, quality = self._start_by_families(first, learned, theta)
        value = self.judge.score(quality, reference)
        incumbent = Incumbent(first.kind, first.config, value, 0, quality, theta)
        learned.load_theta(theta)
        outer, weighting = self._outer(learned, first), self.config.make_weighting()
        self.run = RunState(0, 0, outer, incumbent, reference, lr, True, self._radius(), weighting)
        self.run.began_with = {} if begun is None else begun.record
        self._build(None)

    def _start_by_families(
        self, first: Stage, learned: LearnedOptimizer, theta: Theta | None
    ) -> tuple[float, Quality, Theta, Quality]:
        self.progress.say("tuning AdamW's learning rate as the start and the yardstick")
        lr, reference = tuned_start(self.workers)
        self.progress.say(
            f"the best AdamW for all families has lr {lr:g}; scores below 1 are better than it"
        )
        for name in not_finite(self.judge, reference):
            self.progress.say(
                f"{name}: the loss is not finite under AdamW at any learning rate: are its data "
                "and its loss? Nothing can be learned from its scores"
            )
        plain = theta is None and is_plain(learned)
        if theta is None:
            theta = learned.theta()
            if isinstance(learned, HyperAdamW):
                theta["default"] = with_lr(theta["default"], learned.config, lr)
        # A plain start is the same function as the reference.
        quality = reference if plain else self.judge.measure(first, [theta])[0]
        return lr, reference, theta, quality

    def resume(self, saved: Saved) -> None:
        """Go on from a state; raises UserError where its parts are not those of this run."""
        try:
            record, incumbent = saved.record, saved.incumbent()
            features = incumbent.config.get("feature_version")
            self.stages = [stage.reading(features) for stage in self.stages]
            stage = self.stages[record.stage]
            step = stage.begin + record.outer_done
            measured = [set(q) for q in (*record.reference, *record.incumbent.quality)]
            expected = [set(self.judge.metrics)] * 2 * len(self.judge.names)
            if step != saved.step or step > stage.end or measured != expected:
                raise ValueError("its step or its families are not the run's")
            outer = self._outer(stage.build(), stage)
            outer.load(saved.part("outer"), record.outer_done)
            radius, weighting = self._radius(), self.config.make_weighting()
            for group, learner in (("radius", radius), ("weighting", weighting)):
                if learner is not None:
                    learner.load(saved.part(group))
            rebuild(incumbent.kind, incumbent.config, incumbent.theta)
            known = (record.reference, record.start_lr, record.repeatable, radius, weighting)
            self.run = RunState(step, record.stage, outer, incumbent, *known)
            self.run.resumed, self.run.curve = record.resumed, [*map(list, record.curve)]
            self.run.began_with = record.began_with
            parts = {n: saved.part(f"shard.{n}") for n in range(self.workers.shards)}
            fresh = LIGHT_EPISODES * sum(bool(x["light"]) for x in record.resumed)
            self._build(None if saved.light else parts, episode=fresh)
        except (Died, UserError):
            raise
        except Exception as error:  # a file that was made by hand: its digest is right
            raise UserError(
                f"the state in {str(self.folder.out)!r} does not fit this run: {describe(error)}"
            ) from error

    def loop(self, deadline: float | None, signals: Signals) -> None:
        """Outer steps to the end, to the ``deadline`` (of `time.monotonic`) or to a signal."""
        run, config = self.run, self.config
        while run.step < config.outer_steps and not signals.number:
            if deadline is not None and time.monotonic() > deadline:
                self.progress.say(
                    f"out of time at step {run.step}: this run cannot be repeated exactly"
                )
                run.repeatable = False
                break
            self._advance()
        if run.step and run.step < config.outer_steps and not signals.number:
            self._validate()
        for name, count in self.nonfinite.items():
            if count:
                self.progress.say(
                    f"{name}: losses or gradients that are not finite were left out of the "
                    f"meta-gradient, {count:.3g} of {run.step} steps' worth"
                )
        self.folder.save_optimizer(run)
        self.folder.save(run, self._shards(), finished=run.step == config.outer_steps)

    def _advance(self) -> None:
        """One outer step, or one phase of the search for a radius, with what falls due after it."""
        run, config = self.run, self.config
        if run.step == self.stage.end:
            self._grow()
        started, before = time.monotonic(), run.step
        rows = [self._step()] if run.radius is None else self._phase(run.radius)
        run.step += len(rows)
        last = run.step in (self.stage.end, config.outer_steps)
        if last or _passed(config.validate_every, before, run.step):
            rows[-1][0].update(self._validate())
            rows[-1][1][INCUMBENT] = run.incumbent.score
            run.curve.append([run.step, run.incumbent.score])
        seconds = (time.monotonic() - started) / len(rows)
        rate = self.workers.shards * config.tasks_per_shard * config.unroll_length / seconds
        for step, (row, points) in enumerate(rows, before + 1):
            self._tell(step, row)
            row |= {"step": step, "score": run.incumbent.score, "seconds": seconds, "rate": rate}
            self.progress.step(row, record.curves(row) | points)
        if _passed(config.checkpoint_every, before, run.step) and run.step < config.outer_steps:
            self._save(seconds * config.checkpoint_every)

    def _save(self, between: float) -> None:
        """A resume state; of the first one, its cost beside the seconds ``between`` two of them."""
        began = time.monotonic()
        size = self.folder.save(self.run, self._shards(), finished=False)
        if not self.saved:
            share = (time.monotonic() - began) / max(between, 1e-9)
            self.progress.say(f"a resume state is {size / 1e6:.2g} MB, {share:.1%} of the time")
        self.saved = True

    def _tell(self, step: int, row: dict[str, Any]) -> None:
        """Count what was not finite, and say so at its first time."""
        for name, metrics in row["families"].items():
            share = metrics.get("nonfinite", 0.0)
            if share and not self.nonfinite[name]:
                self.progress.say(
                    f"step {step}: {name}: {share:.0%} of the tasks have losses or gradients that "
                    "are not finite; they are left out"
                )
            self.nonfinite[name] += share

    def _step(self) -> Row:
        """One outer step: the mean over families of the mean over shards, in a fixed order."""
        run, stage = self.run, self.stage
        weights = None if run.weighting is None else run.weighting.weights()
        teaching = fading(run.outer.done / (stage.end - stage.begin), self.config.teacher)
        answers = self.workers.everywhere(ShardHost.estimate, run.outer.theta, teaching, weights)
        by_shard = ChainMap(*answers)
        grads, metrics, plains = zip(*(by_shard[shard] for shard in range(self.workers.shards)))
        grad = record.mean(grads)
        absorption = self.config.absorption
        if absorption is not None and absorption.alpha:
            grad = decompose(record.mean(plains), grad, absorption.alpha)
        families = record.by_family(metrics, [task.name for task in self.tasks], self.config.shards)
        outcome = run.outer.step(grad)
        row = record.row(stage, families, outcome)
        if run.weighting is not None:
            record.weigh(row, run.weighting, self.config.scored_by.names)
        return row, record.step_sizes(stage, run.outer.theta, self.tasks)

    def _phase(self, radius: Radius) -> list[Row]:
        """Some outer steps in two branches that differ in the radius; the run goes on in the better
        one (`radius`).
        """
        run, stage = self.run, self.stage
        count = min(radius.config.phase, stage.end - run.step)
        shards, outer = self._shards(), run.outer
        eps, rhos = radius.pair()
        branches = []
        for rho in rhos:
            run.outer = self._outer(stage.build(), stage)
            run.outer.load(outer.dump(), outer.done)
            self._build(shards, rho)
            rows = [self._step() for _ in range(count)]
            for row, _ in rows:
                row["rho"] = rho
            quality = measure(self.workers, stage, [run.outer.average])[0]
            loss = log_score(quality, run.reference, {"valid": 1.0})
            branches.append((loss, run.outer, self._shards(), rows))
        losses = [branch[0] for branch in branches]
        radius.learn(eps, losses)
        best = losses.index(min(losses))
        _, run.outer, shards, rows = branches[best]
        if best == 0:  # the workers are in the other branch
            self._build(shards, rhos[0])
        return rows

    def _validate(self) -> dict[str, Any]:
        """Save theta if it is the best so far. For the log: ``unscored``, the problems on which its
        loss is not finite, and what else there is to say of the judgement.
        """
        run, stage = self.run, self.stage
        # Theta itself is ahead, its average is calmer: early on the one is better, later the other.
        thetas = [
            {name: x.clone() for name, x in source.items()}
            for source in (run.outer.theta, run.outer.average)
        ]
        judge, reference, incumbent = self.judge, run.reference, run.incumbent
        qualities = judge.measure(stage, thetas)
        known = not_finite(judge, reference) + not_finite(judge, incumbent.quality)
        sick = [[n for n in not_finite(judge, q) if n not in known] for q in qualities]
        vetoes = [judge.veto(q, incumbent.quality, reference) for q in qualities]
        # One that is not finite where the incumbent is cannot win, however well it does elsewhere.
        ranks = [
            (bool(sick[i]), bool(vetoes[i]), judge.score(q, reference), i)
            for i, q in enumerate(qualities)
        ]
        last = self.config.keep == "last"  # the average, however well it does
        failed, vetoed, value, best = ranks[1] if last else min(ranks)
        told: dict[str, Any] = {"unscored": sick[best]} if sick[best] else {}
        told |= judge.details(qualities[best], reference)
        if (value < incumbent.score and not (failed or vetoed)) or (last and not failed):
            theta, quality = thetas[best], qualities[best]
            run.incumbent = Incumbent(stage.kind, stage.config, value, run.step, quality, theta)
            run.outer.stale = 0
            self.folder.save_optimizer(run)
            return told
        if vetoed and value < incumbent.score:
            self.progress.say(f"step {run.step}: score {value:.3f}, but {vetoes[best]}: not kept")
        for name in sick[best]:
            self.progress.say(f"step {run.step}: {name}: the loss in validation is not finite")
        run.outer.stale += 1
        # Unrolled gradients explode now and then: go back. Estimates from perturbations do not;
        # they are noisy, and slow to show what they learn.
        lost = self.unrolls or failed or value > FAR * incumbent.score
        if run.outer.stale >= PATIENCE and lost and run.step < stage.end:
            run.outer.back_to(self._grown(stage).theta())
            self.progress.say(
                f"step {run.step}: score {value:.3f}, back to the incumbent "
                f"({run.incumbent.score:.3f}) at half the pace"
            )
        return told

    def _grow(self) -> None:
        """Grow: a new kind that starts as the function that the incumbent is."""
        run = self.run
        run.stage += 1
        run.outer = self._outer(self._grown(self.stage), self.stage)
        self._build(None)
        self.progress.say(
            f"step {run.step}: {run.incumbent.kind} (score {run.incumbent.score:.3f}) grows into "
            f"{self.stage.kind}"
        )

    def _grown(self, stage: Stage) -> LearnedOptimizer:
        """The stage's kind as the same function as the incumbent."""
        incumbent = self.run.incumbent
        learned = stage.build()
        learned.grow_from(rebuild(incumbent.kind, incumbent.config, incumbent.theta))
        return learned

    def _outer(self, learned: LearnedOptimizer, stage: Stage) -> OuterOptimizer:
        steps = stage.end - stage.begin
        averaging = AVERAGING if self.unrolls else LONG_AVERAGING
        return OuterOptimizer(learned, self.config.outer_lr, self.config.clip, steps, averaging)

    def _radius(self) -> Radius | None:
        config, absorption = self.config.radius, self.config.absorption
        if config is None or absorption is None:
            return None
        return Radius(config, absorption.radius, self.config.seed)

    def _build(
        self, shards: dict[int, Tensors] | None, rho: float | None = None, episode: int = 0
    ) -> None:
        """Set every worker up for the stage, with shards that begin ``episode`` or with these."""
        parts = [
            None if shards is None else {shard: shards[shard] for shard in numbers}
            for numbers in self.workers.parts
        ]
        self.workers.call(ShardHost.build, [(self.stage, part, rho, episode) for part in parts])

    def _shards(self) -> dict[int, Tensors]:
        return dict(ChainMap(*self.workers.everywhere(ShardHost.dump)))


def _passed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after]."""
    return after // every > before // every
