"""The problems on which a run is validated: its families as they are named, and probes.

Probes are fixed problems outside of the ranges that a run trains on (`RunConfig.probes`): what does
well there has learned more than its pool. Nothing is ever reported on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from lo_framework.meta_train.config import RunConfig
from lo_framework.optimizees import Task, make_tasks
from lo_framework.optimizees.variation import Variation
from lo_framework.spec import UserError, shown, split_specs

VALIDATION_SEED = 30_000  # tuning and reports use other ranges; see eval
PROBE_SEEDS = 2
STEPS = 200  # of a probe that does not say it

# Wider, deeper, of more channels or blocks, longer, and of fewer inputs than what a varied family
# is by default; where losses rise early, they do so on small tables first.
# None is among the problems that results are about (`eval score`, the README).
USUAL = (
    "mlp-relu:hidden=256x256@100",
    "mlp-relu:hidden=48x48x48x48x48@150",
    "mlp:hidden=32,layers=6,act=relu,norm=layer,residual=1@150",
    "cnn:channels=32x64@100",
    "mlp@1000",
    "mlp-relu:hidden=32,batch=12/teacher:inputs=3,rows=256,outputs=3@100",
)


@dataclass(frozen=True)
class Given:
    """A task that is an object, in place of a variation: it stays as it is."""

    task: Task
    is_fixed: ClassVar = True

    @property
    def name(self) -> str:
        return self.task.name

    def named(self) -> Task:
        return self.task

    def draw(self, generator: torch.Generator) -> Task:
        return self.task

    def covers(self, optimizee: str, dataset: str) -> bool:
        return False


Pool = Sequence[Variation | Given]


class Problem(NamedTuple):
    """A task with the length and the seeds of its episodes in validation."""

    name: str
    task: Task
    steps: int
    seeds: range


def family_problems(config: RunConfig, pool: Pool) -> list[Problem]:
    """Every family, as it is named."""
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + config.validation_seeds)
    tasks = [each.named() for each in pool]
    return [Problem(task.name, task, config.named_steps, seeds) for task in tasks]


def probes(config: RunConfig, pool: Pool, data_dir: str | None = None) -> list[Problem]:
    """The probes of a run; none where nothing varies and none are given.

    Raises:
        UserError: one that cannot be read or made, that is given twice or that is in the pool.
    """
    usual = not config.probes
    if config.probes == "none" or (usual and all(each.is_fixed for each in pool)):
        return []
    made: dict[str, Problem] = {}
    for text in USUAL if usual else split_specs(config.probes):
        optimizee, dataset, steps = _read(text)
        try:
            (task,) = make_tasks([optimizee], [dataset], data_dir, config.device)
        except UserError as error:
            raise UserError(f"--probes: {error}") from None
        name = f"{task.name}@{steps}"
        inside = [x.name for x in pool if x.covers(optimizee, dataset)]
        if inside and steps <= config.episode[1]:
            if not usual:
                raise UserError(f"--probes: {name} is in the pool, among {shown(inside[0])}")
        elif name in made:
            raise UserError(f"--probes: {name} is given twice")
        else:
            seeds = range(VALIDATION_SEED, VALIDATION_SEED + PROBE_SEEDS)
            made[name] = Problem(name, task, steps, seeds)
    if not made:
        raise UserError("the usual probes are all in the pool: give --probes of your own, or none")
    return [*made.values()]


def _read(text: str) -> tuple[str, str, int]:
    """Optimizee, data set and steps of ``mlp:hidden=256/digits@200``."""
    spec, at, steps = text.partition("@")
    optimizee, _, dataset = spec.partition("/")
    if at and not (steps.isdecimal() and 0 < int(steps) <= 10**7):
        raise UserError(f"--probes: {shown(text)}: expected steps after @, as mlp:hidden=256@200")
    return optimizee, dataset or "digits", int(steps or STEPS)
