"""A virtual shard: a fixed number of tasks of one family with a random generator of its own.

Which process holds it does not matter to its bits, so neither does the number of workers. Where its
family varies, all of its tasks are copies of one problem, which is drawn anew when their episode
ends. What is drawn is a function of the run's seed, the stage, the shard and the number of the
episode: beside the unroll, that number is all that a resume state needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lo_framework.estimators import ESTIMATORS, Estimator, Unroller
from lo_framework.estimators.base import MetaGradient
from lo_framework.estimators.state import UnrollState, state_from_tensors, state_to_tensors
from lo_framework.eval.baselines import make_baseline
from lo_framework.inner.engine import resolved
from lo_framework.inner.step import Family
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.meta_train.config import RunConfig
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.problems import Given
from lo_framework.optimizees import Task
from lo_framework.optimizees.augmentation import Reparametrised
from lo_framework.optimizees.variation import Variation
from lo_framework.spec import UserError, describe

TEACHER = "adamw:law=true"
_STREAM = 0x5EED
_EPISODES = 0x9E3779B97F4A7C15  # odd: seeds of a shard's episodes lie far apart

Tensors = dict[str, Tensor]


class TaskFailed(UserError):
    """An error in a task or in the optimizer that runs on it."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Errors of a person's code, sys.exit among them, as one line that names the task."""
    try:
        yield
    except TaskFailed:
        raise
    except (Exception, SystemExit) as error:
        raise TaskFailed(f"{name}: {describe(error)}") from error


def build_family(
    config: RunConfig,
    task: Task,
    learned: LearnedOptimizer,
    rho: float | None = None,
    varied: bool = False,
) -> Family:
    """The family of one shard. ``rho``: of the absorbed regularizer, where it is being learned;
    ``varied``: whether another problem comes after this one.
    """
    if config.augment > 1:  # for meta-training only: validation and reports see the task as it is
        task = Reparametrised(task, config.augment)
    absorption = config.absorption
    if absorption is not None and rho is not None:
        absorption = absorption.with_radius(rho)
    steps = config.outer_steps * config.unroll_length
    engine = resolved(config.engine, steps, config.device, varied)
    teacher = make_baseline(TEACHER).to(config.device) if config.teacher else None
    return Family(task, learned, engine, absorption, teacher)


def build_estimator(config: RunConfig, family: Family, episode: int | None = None) -> Estimator:
    """The estimator of one shard, with the inner loop that ``--inner-backend`` names. ``episode``:
    see `Unroller`.
    """
    num, truncation = config.tasks_per_shard, config.truncation
    unroller = Unroller(family, config.scored_by, truncation, num, episode=episode)
    if config.inner_backend == "higher":
        from lo_framework.estimators.higher import make_higher

        return make_higher(config.estimator, unroller)
    return ESTIMATORS.build(config.estimator, unroller)


class Shard:
    """Shard ``number`` of a run, in one stage; `begin` or `load` makes it ready. ``task``: the
    family's as it is named, which is what a fixed one has.
    """

    estimator: Estimator
    state: UnrollState

    def __init__(
        self,
        config: RunConfig,
        variation: Variation | Given,
        task: Task,
        number: int,
        stage: Stage,
        rho: float | None = None,
    ) -> None:
        self.config, self.variation, self.task, self.rho = config, variation, task, rho
        self.learned = stage.build().to(config.device)
        self.seed = (config.seed * 1_000_003 + stage.index * 10_007 + number) * 2 + _STREAM
        self.episode = 0

    def begin(self, episode: int = 0) -> None:
        """Begin that episode; of a fixed family, the first episodes of all tasks."""
        generator = self._build(episode)
        self.state = self.estimator.init_state(self.learned.theta(), generator)

    def estimate(self, theta: Theta, teaching: float = 0.0) -> MetaGradient:
        """One truncation, of the next episode where that of all tasks is over. ``teaching``: the
        teacher's share of its steps.
        """
        if not self.variation.is_fixed and self.state.over:
            longer = self.estimator.unroller.prolonged(self.state)
            if longer is not None:
                self.state = longer
            else:
                with named(self.variation.name):
                    self.begin(self.episode + 1)
        self.estimator.unroller.teaching = teaching
        started = time.perf_counter()
        with named(self.task.name):
            estimate, self.state = self.estimator.estimate(theta, self.state)
        if self.family.choice is not None:
            self.family.choice.tell(time.perf_counter() - started)
        return estimate

    def dump(self) -> Tensors:
        """All that the shard carries, on the CPU."""
        tensors = state_to_tensors(self.state)
        if not self.variation.is_fixed:
            tensors["episode"] = torch.tensor(self.episode)
        return tensors

    def load(self, tensors: Tensors) -> None:
        """Go on from the tensors of `dump`; clocks stay on the host."""
        self._build(0 if self.variation.is_fixed else int(tensors["episode"]))
        rest = {name: x for name, x in tensors.items() if name != "episode"}
        self.state = state_from_tensors(rest, self.config.device)

    def _build(self, episode: int) -> torch.Generator:
        """Draw the episode's task and build its estimator, in place of the one before and all that
        it has recorded. Returns the generator of what else the episode draws.
        """
        self.episode, common = episode, None
        generator = torch.Generator().manual_seed((self.seed + episode * _EPISODES) % 2**63)
        if not self.variation.is_fixed:
            self.task, common = self.variation.draw(generator), episode
        varied = not self.variation.is_fixed
        self.family = build_family(self.config, self.task, self.learned, self.rho, varied)
        self.estimator = build_estimator(self.config, self.family, common)
        return generator
