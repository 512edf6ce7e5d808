"""The incumbent: the best learned optimizer so far on validation seeds; it is what a run saves.

The score is relative to AdamW with the one learning rate that suits the run's tasks best (found on
the same seeds before meta-training starts): the geometric mean, over families, of the ratios of
mean training loss, final validation loss and final training loss, with the weights below. Below 1
is better than that AdamW. No test data enter.
"""

from __future__ import annotations

import math
from collections import ChainMap
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch

from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.workers import VALIDATION_CHUNK, ShardHost, Unit, Workers
from lo_framework.schema import AnyNumber, Range

WEIGHTS = {"mean": 0.3, "valid": 0.5, "final": 0.2}
PROBE_LOSSES = ("mean", "final", "valid")
PROBED = (*PROBE_LOSSES, "rise")
WORST_RATIO = 10.0  # what a diverged run counts as
BEST_RATIO = 1e-3  # no single loss near zero decides
TINY_LOSS = 1e-12  # below it losses are the same
START_LRS = (0.003, 0.01, 0.02, 0.05, 0.1)

Quality = list[dict[str, float]]  # per family or probe


@dataclass(frozen=True)
class IncumbentRecord:
    """Kind and config of the best optimizer so far, and when it was found."""

    kind: str
    config: dict[str, Any]
    score: AnyNumber
    step: Annotated[int, Range(low=0)]
    quality: list[dict[str, AnyNumber]]


@dataclass(frozen=True)
class Incumbent(IncumbentRecord):
    """The best optimizer so far with its weights (on the CPU)."""

    theta: Theta


def measure(
    workers: Workers, stage: Stage, thetas: list[Theta], *, probes: bool = False
) -> list[Quality]:
    """Validation quality of each theta of the stage's kind, on all families or on all probes:
    averages over seeds, infinite where a run diverged. All workers share it.
    """
    metrics = PROBED if probes else tuple(WEIGHTS)
    numbers = (
        range(len(workers.problems))[len(workers.pool) :] if probes else range(len(workers.pool))
    )
    chunks = {
        n: range(math.ceil(len(workers.problems[n].seeds) / VALIDATION_CHUNK)) for n in numbers
    }
    units = [Unit(n, c) for n in numbers for c in chunks[n]]
    took = {n: workers.seconds.get((stage.kind, n), workers.problems[n].steps) for n in numbers}
    shares = balanced(units, [took[unit.problem] for unit in units], workers.num)
    merged = ChainMap(*workers.call(ShardHost.validate, [(stage, thetas, x) for x in shares]))
    for unit, (_, seconds) in merged.items():
        key, each = (stage.kind, unit.problem), seconds / len(thetas)
        workers.seconds[key] = min(each, workers.seconds.get(key, each))

    def mean(theta: int, problem: int, name: str) -> float:
        losses = [x for c in chunks[problem] for x in merged[Unit(problem, c)][0][name][theta]]
        return sum(losses) / len(losses)

    return [
        [{name: mean(theta, problem, name) for name in metrics} for problem in numbers]
        for theta in range(len(thetas))
    ]


def balanced(units: list[Unit], costs: list[float], num: int) -> list[list[Unit]]:
    """Share ``units`` out among ``num`` workers so that all end at nearly the same time: the
    costliest first, each to the worker that has the least to do.
    """
    shares: list[list[Unit]] = [[] for _ in range(num)]
    loads = [0.0] * num
    for cost, unit in sorted(zip(costs, units), key=lambda each: -each[0]):
        least = loads.index(min(loads))
        shares[least].append(unit)
        loads[least] += cost
    return shares


def score(quality: Quality, reference: Quality) -> float:
    """Weighted geometric mean of ratios to ``reference``; lower is better."""
    return math.exp(log_score(quality, reference, WEIGHTS))


def log_score(quality: Quality, reference: Quality, weights: dict[str, float]) -> float:
    """Mean over problems of the weighted sum of log ratios to ``reference``."""
    total = 0.0
    for losses, yardstick in zip(quality, reference, strict=True):
        for name, weight in weights.items():
            total += weight * log_ratio(losses[name], yardstick[name])
    return total / len(quality)


def log_ratio(loss: float, reference: float, best: float = BEST_RATIO) -> float:
    """log(loss / reference) within bounds (``best``: the lower one), 0 for equals, whatever the
    sign of the losses.

    A negative ``reference`` (a likelihood, a noisy minibatch) has no ratio: there it is the
    difference over its size, the same near equality.
    """
    if reference > 0 or not math.isfinite(loss - reference):
        ratio = max(loss, TINY_LOSS) / max(reference, TINY_LOSS)
        return math.log(min(max(ratio, best), WORST_RATIO) if math.isfinite(ratio) else WORST_RATIO)
    change = (loss - reference) / max(-reference, TINY_LOSS)
    return min(max(change, math.log(best)), math.log(WORST_RATIO))


def tuned_start(workers: Workers) -> tuple[float, Quality]:
    """AdamW's best common learning rate on the validation seeds, and its quality: the yardstick of
    every score.
    """
    plain = HyperAdamW(HyperAdamW.Config())
    thetas = []
    for lr in START_LRS:
        theta = {name: torch.zeros_like(x) for name, x in plain.theta().items()}
        theta["default"] = with_lr(theta["default"], plain.config, lr)
        thetas.append(theta)
    qualities = measure(workers, Stage("hyper-adamw", {}), thetas)
    # Each is compared with the best of all settings, family by family, so that no family owns the
    # choice.
    best = [
        {name: min(losses[name] for losses in family) for name in WEIGHTS}
        for family in zip(*qualities, strict=True)
    ]
    scores = [score(q, best) for q in qualities]
    chosen = scores.index(min(scores))
    return START_LRS[chosen], qualities[chosen]


def is_plain(learned: LearnedOptimizer) -> bool:
    """It starts as the AdamW that :func:`tuned_start` measured: no setting but the learning rate
    differs.
    """
    if type(learned) is not HyperAdamW:
        return False
    plain = HyperAdamW.Config()
    return replace(learned.config, lr=plain.lr, gain=plain.gain) == plain


def with_lr(default: torch.Tensor, config: Any, lr: float) -> torch.Tensor:
    """hyper-adamw's ``default`` row such that the learning rate is ``lr``."""
    default = default.clone()
    default[0] = math.log(lr / config.lr) / config.gain
    return default
