"""The workers of a run: hosts of virtual shards, in this process or in several of one thread each.

A virtual shard is a fixed number of tasks of one family with a random generator of its own. Which
process holds it does not matter to its bits, so neither does the number of workers.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lo_framework.estimators import ESTIMATORS, Estimator, Unroller
from lo_framework.estimators.truncation import state_from_tensors, state_to_tensors
from lo_framework.inner.rollout import rollout
from lo_framework.inner.step import Family
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.meta_train.config import Program, RunConfig
from lo_framework.meta_train.growth import Stage
from lo_framework.optimizees import Task, make_tasks
from lo_framework.optimizees.augmentation import Reparametrised
from lo_framework.plugin import load_plugins
from lo_framework.processes import Child, Died, RemoteTraceback, Wire
from lo_framework.spec import UserError, describe

VALIDATION_SEED = 30_000  # tuning and reports use other ranges; see eval
VALIDATION_CHUNK = 8
_STREAM = 0x5EED

R = TypeVar("R")
Tensors = dict[str, Tensor]


class WorkerSetup(NamedTuple):
    """Recipe of a worker's tasks; how a run is carried out does not decide its bits."""

    config: RunConfig
    program: Program = Program()
    tasks: tuple[Task, ...] = ()  # objects in place of specs; they stay in this process

    def make_tasks(self) -> list[Task]:
        config, data_dir = self.config, self.program.data_dir
        if self.tasks:
            return [t if config.device == "cpu" else t.to(config.device) for t in self.tasks]
        return make_tasks(config.optimizees, config.datasets, data_dir, config.device)


class TaskFailed(UserError):
    """An error in a task or in the optimizer that runs on it."""


@contextmanager
def named(task: Task) -> Iterator[None]:
    """Errors of a person's code, sys.exit among them, as one line that names the task."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise TaskFailed(f"{task.name}: {describe(error)}") from error


class Unit(NamedTuple):
    """A piece of validation: one theta on one family for a few seeds."""

    theta: int
    family: int
    chunk: int


def build_estimator(
    config: RunConfig,
    task: Task,
    learned: LearnedOptimizer,
    rho: float | None = None,
) -> Estimator:
    """The estimator of one shard, with the inner loop that ``--inner-backend`` names.

    ``rho``: of the absorbed regularizer, where it is being learned.
    """
    if config.augment > 1:  # for meta-training only: validation and reports see the task as it is
        task = Reparametrised(task, config.augment)
    absorption = config.absorption
    if absorption is not None and rho is not None:
        absorption = absorption.with_radius(rho)
    family = Family(task, learned, config.engine, absorption)
    shard = Unroller(family, config.scored_by, config.truncation, config.tasks_per_shard)
    if config.inner_backend == "higher":
        from lo_framework.estimators.higher import make_higher

        return make_higher(config.estimator, shard)
    return ESTIMATORS.build(config.estimator, shard)


class ShardHost:
    """Holds these ``shards`` (numbers; shard s is of family s // config.shards)."""

    def __init__(self, setup: WorkerSetup, shards: list[int]) -> None:
        load_plugins(setup.program.plugins)
        self.config = setup.config
        self.shards = shards
        self.tasks = setup.make_tasks()
        self.estimators: dict[int, Estimator] = {}
        self.states: dict[int, Any] = {}

    def build(
        self, stage: Stage, tensors: dict[int, Tensors] | None, rho: float | None = None
    ) -> None:
        """Estimators of one stage; worker states fresh, or from ``tensors`` of a resume state."""
        config = self.config
        self.estimators, self.states = {}, {}
        for shard in self.shards:
            learned = stage.build().to(config.device)
            estimator = build_estimator(config, self.tasks[shard // config.shards], learned, rho)
            self.estimators[shard] = estimator
            if tensors is None:
                seed = (config.seed * 1_000_003 + stage.index * 10_007 + shard) * 2 + _STREAM
                generator = torch.Generator().manual_seed(seed % 2**63)
                self.states[shard] = estimator.init_state(learned.theta(), generator)
            else:  # clocks stay on the host
                self.states[shard] = state_from_tensors(tensors[shard], config.device)

    def estimate(
        self, theta: Theta, weights: tuple[float, ...] | None = None
    ) -> dict[int, tuple[Theta, dict[str, float], Theta | None]]:
        """One truncation of every shard here: meta-gradient, metrics and the plain meta-gradient
        (GSAM) by shard.

        ``weights``: of the objective's terms, in this outer step.
        """
        if weights is not None:
            self.config.scored_by.weights = weights  # every estimator here has this objective
        theta = {name: x.to(self.config.device) for name, x in theta.items()}
        out = {}
        for shard in self.shards:
            with named(self.tasks[shard // self.config.shards]):
                estimate, self.states[shard] = self.estimators[shard].estimate(
                    theta, self.states[shard]
                )
            out[shard] = tuple(tree_map_only(Tensor, Tensor.cpu, estimate))
        return out

    def validate(
        self, stage: Stage, thetas: list[Theta], units: list[Unit]
    ) -> dict[Unit, dict[str, list[float]]]:
        """Full episodes on fixed seeds. Per unit and seed: mean training, final training and final
        validation loss.
        """
        learned = stage.build().to(self.config.device)
        out = {}
        for unit in units:
            first = unit.chunk * VALIDATION_CHUNK
            seeds = range(first, min(first + VALIDATION_CHUNK, self.config.validation_seeds))
            theta = {name: x.to(self.config.device) for name, x in thetas[unit.theta].items()}
            task = self.tasks[unit.family]
            with named(task):
                done = rollout(
                    task,
                    learned,
                    [theta],
                    [VALIDATION_SEED + s for s in seeds],
                    self.config.episode[1],
                    splits=("train", "valid"),
                )
            out[unit] = {
                "mean": done.train.mean(-1)[0].tolist(),
                "final": done.final["train.loss"][0].tolist(),
                "valid": done.final["valid.loss"][0].tolist(),
            }
        return out

    def dump(self) -> dict[int, Tensors]:
        """Everything the shards here carry, on the CPU."""
        return {
            shard: {n: x.cpu() for n, x in state_to_tensors(self.states[shard]).items()}
            for shard in self.shards
        }


def _serve(pipe: Connection, setup: WorkerSetup, shards: list[int]) -> None:
    host: ShardHost | None = None
    while True:
        method, arguments = pipe.recv()
        try:
            if host is None:
                host = ShardHost(setup, shards)
            answer: Any = ("ok", getattr(host, method)(*arguments))
        except Exception as error:
            kind = type(error) if isinstance(error, UserError) else RuntimeError
            answer = (kind, (describe(error), traceback.format_exc()))
        pipe.send_bytes(Wire.dumps(answer))


class Workers:
    """The workers for ``shards`` virtual shards; with one, everything runs in this process."""

    def __init__(self, setup: WorkerSetup, shards: int) -> None:
        self.config, self.shards = setup.config, shards
        self.num = min(setup.program.workers, shards)
        self.parts = [list(range(w, shards, self.num)) for w in range(self.num)]
        self.local: ShardHost | None = None
        self.children: list[Child] = []
        if self.num == 1:
            self.local = ShardHost(setup, self.parts[0])
            return
        try:
            for part in self.parts:
                self.children.append(Child(_serve, setup, part))
        except BaseException:
            self.close()
            raise

    def call(self, method: Callable[..., R], arguments: list[tuple[Any, ...]]) -> list[R]:
        """Call a method of `ShardHost` in every worker, each with its own arguments; answers in
        the order of workers.

        Raises:
            Died: a worker process is no more.
        """
        if self.local is not None:
            return [method(self.local, *arguments[0])]
        answers: list[R] = []
        try:
            for worker, child in enumerate(self.children):
                child.send((method.__name__, arguments[worker]))
            for worker, child in enumerate(self.children):
                status, answer = child.receive() or child.receive()
                if status != "ok":
                    line, text = answer
                    whose = "" if issubclass(status, UserError) else f"worker {worker} failed: "
                    raise status(whose + line) from RemoteTraceback(text)
                answers.append(answer)
        except Died as error:
            raise Died(f"worker {worker} ended unexpectedly ({error})") from None
        return answers

    def everywhere(self, method: Callable[..., R], *arguments: Any) -> list[R]:
        return self.call(method, [arguments] * self.num)

    def close(self) -> None:
        """End the processes, in the middle of their work if need be: they hold nothing that is not
        here.
        """
        for child in self.children:
            child.close()
