"""What decides that an optimizer is better: its run's own families, or probes.

By families, the score is relative to one AdamW for all of them (`incumbent.score`). By probes it is
the geometric mean of their ratios to AdamW tuned for each, with a veto: a mean alone would trade
one kind of problem away for another twice. Below 1 is better than AdamW in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.incumbent import (
    PROBE_LOSSES,
    PROBED,
    START_LRS,
    WEIGHTS,
    WORST_RATIO,
    Quality,
    log_ratio,
    measure,
    score,
    with_lr,
)
from lo_framework.meta_train.workers import Workers

LRS = (0.002, 0.005, 0.01, 0.02, 0.05)  # of AdamW with a cosine, on every probe
BEST_RATIO = 0.1
RISE = 0.5  # weight of an early rise of the loss beyond AdamW's
HIGHEST = 1.5  # ratio of a probe, once all have been below it
SLACK = 1.2  # how much worse a probe may become when the incumbent changes


class Judge(Protocol):
    """``reference`` is what the run keeps of AdamW, to compare any quality with."""

    names: list[str]
    metrics: tuple[str, ...]

    def measure(self, stage: Stage, thetas: list[Theta]) -> list[Quality]: ...
    def score(self, quality: Quality, reference: Quality) -> float: ...

    def veto(self, quality: Quality, best: Quality, reference: Quality) -> str:
        """Why an optimizer of this quality cannot follow one of quality ``best``, whatever its
        score; empty where it can.
        """

    def details(self, quality: Quality, reference: Quality) -> dict[str, Any]:
        """What the log says of a quality that was compared."""


class ByFamilies:
    """On validation seeds of the families themselves."""

    metrics: tuple[str, ...] = tuple(WEIGHTS)

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.names = [problem.name for problem in workers.problems[: len(workers.pool)]]

    def measure(self, stage: Stage, thetas: list[Theta]) -> list[Quality]:
        return measure(self.workers, stage, thetas)

    def score(self, quality: Quality, reference: Quality) -> float:
        return score(quality, reference)

    def veto(self, quality: Quality, best: Quality, reference: Quality) -> str:
        return ""

    def details(self, quality: Quality, reference: Quality) -> dict[str, Any]:
        return {}


class ByProbes:
    """On the probes of the run."""

    metrics: tuple[str, ...] = PROBED

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.names = [problem.name for problem in workers.problems[len(workers.pool) :]]

    def measure(self, stage: Stage, thetas: list[Theta]) -> list[Quality]:
        return measure(self.workers, stage, thetas, probes=True)

    def reference(self) -> Quality:
        """AdamW's best losses on each probe over a grid of learning rates, and its rise where the
        final loss is best.
        """
        stage = _AdamW("adamw", {})
        settings = [{"lr": lr, "cosine": 1.0} for lr in LRS]
        tried = self.measure(stage, make_thetas(stage.build(), settings))
        best = []
        for each in zip(*tried, strict=True):
            final = min(each, key=lambda losses: losses["final"])
            best.append(
                final | {name: min(losses[name] for losses in each) for name in PROBE_LOSSES}
            )
        return best

    def start(self, stage: Stage, theta: Theta | None) -> tuple[float, Theta, Quality]:
        """The stage's start and its quality: ``theta`` where that is given, else the kind's own
        with the learning rate, where it has one, that does best on the probes together.
        """
        learned = stage.build()
        config, own = learned.config, learned.theta()
        tuned = theta is None and "default" in own and {"lr", "gain"} <= vars(config).keys()
        lrs = START_LRS if tuned else (1.0,)
        thetas = [theta or own]
        if tuned:
            thetas = [own | {"default": with_lr(own["default"], config, lr)} for lr in lrs]
        qualities = self.measure(stage, thetas)
        # Against the best of all settings, so that clipped ratios decide nothing.
        best = [
            {name: min(losses[name] for losses in each) for name in self.metrics}
            for each in zip(*qualities, strict=True)
        ]
        scores = [self.score(quality, best) for quality in qualities]
        chosen = min(range(len(scores)), key=scores.__getitem__)
        return lrs[chosen], thetas[chosen], qualities[chosen]

    def ratios(self, quality: Quality, reference: Quality) -> list[float]:
        """Per probe: the geometric mean of its mean, final and held-out loss over AdamW's, times a
        part of what its loss rises early on beyond AdamW's.
        """
        out = []
        for losses, best in zip(quality, reference, strict=True):
            logs = [log_ratio(losses[name], best[name], BEST_RATIO) for name in PROBE_LOSSES]
            rise = max(0.0, log_ratio(losses["rise"], best["rise"], BEST_RATIO))
            out.append(min(WORST_RATIO, math.exp(sum(logs) / len(logs) + RISE * rise)))
        return out

    def score(self, quality: Quality, reference: Quality) -> float:
        ratios = self.ratios(quality, reference)
        return math.exp(sum(map(math.log, ratios)) / len(ratios))

    def veto(self, quality: Quality, best: Quality, reference: Quality) -> str:
        before, after = self.ratios(best, reference), self.ratios(quality, reference)
        passed = max(before) <= HIGHEST
        for name, old, new in zip(self.names, before, after, strict=True):
            if passed and new > HIGHEST:
                return f"{name} is at {new:.2f} of tuned AdamW, above {HIGHEST:g}"
            if new > SLACK * old:
                return f"{name} is at {new:.2f} of tuned AdamW, and was at {old:.2f}"
        return ""

    def details(self, quality: Quality, reference: Quality) -> dict[str, Any]:
        return {"probes": dict(zip(self.names, self.ratios(quality, reference), strict=True))}


def not_finite(judge: Judge, quality: Quality) -> list[str]:
    """The problems on which some loss is not finite."""
    return [
        name
        for name, losses in zip(judge.names, quality, strict=True)
        if not all(map(math.isfinite, losses.values()))
    ]


@dataclass(frozen=True)
class _AdamW(Stage):
    """The baseline in place of a learned optimizer."""

    def build(self) -> LearnedOptimizer:
        return make_baseline(self.kind)
