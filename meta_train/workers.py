"""The workers of a run: hosts of virtual shards (`shards`), in this process or in several of one
thread each.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from lo_framework import ranks
from lo_framework.episode import Place
from lo_framework.estimators.base import MetaGradient
from lo_framework.flat_task import FlatTask
from lo_framework.inner.rollout import Rollout, rollout
from lo_framework.inner.step import Family
from lo_framework.learned.base import Theta
from lo_framework.meta_train.config import Program, RunConfig
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.problems import Pool, Problem, family_problems, probes
from lo_framework.meta_train.shards import Shard, Tensors, named
from lo_framework.optimizees.variation import make_variations
from lo_framework.plugin import load_plugins
from lo_framework.processes import Child, Died, Peer, RemoteTraceback, Wire
from lo_framework.spec import UserError, describe

VALIDATION_CHUNK = 8
EARLY = 30  # steps in which the loss should not rise

R = TypeVar("R")


class WorkerSetup(NamedTuple):
    """Recipe of a worker's tasks; how a run is carried out does not decide its bits."""

    config: RunConfig
    program: Program = Program()
    pool: Pool = ()  # in place of specs; it stays in this process

    def make_pool(self) -> Pool:
        """The families of the run."""
        config, program = self.config, self.program
        names = (config.optimizees, config.datasets, config.vary)
        return self.pool or make_variations(*names, data_dir=program.data_dir, device=config.device)

    def make_problems(self, pool: Pool) -> list[Problem]:
        """What the run is validated on: first a problem for every family, then probes."""
        config = self.config
        return family_problems(config, pool) + probes(config, pool, self.program.data_dir)


class Unit(NamedTuple):
    """A piece of validation: all thetas on one problem for a few seeds."""

    problem: int
    chunk: int


class ShardHost:
    """Holds these ``shards`` (numbers; shard s is of family s // config.shards)."""

    def __init__(self, setup: WorkerSetup, shards: list[int]) -> None:
        load_plugins(setup.program.plugins)
        here = ranks.place()
        if setup.config.device == "cuda" and here is not None:  # each rank of a machine its own
            setup = setup._replace(config=replace(setup.config, device=f"cuda:{here.local}"))
        self.config = setup.config
        self.numbers = shards
        self.pool = setup.make_pool()
        self.problems = setup.make_problems(self.pool)
        self.shards: dict[int, Shard] = {}

    def build(
        self,
        stage: Stage,
        tensors: dict[int, Tensors] | None,
        rho: float | None = None,
        episode: int = 0,
    ) -> None:
        """Shards of one stage; they begin ``episode``, or go on from ``tensors`` of a resume
        state.
        """
        self.shards = {}
        for number in self.numbers:
            family = number // self.config.shards
            variation, task = self.pool[family], self.problems[family].task
            shard = self.shards[number] = Shard(self.config, variation, task, number, stage, rho)
            shard.begin(episode) if tensors is None else shard.load(tensors[number])

    def estimate(
        self, theta: Theta, teaching: float = 0.0, weights: tuple[float, ...] | None = None
    ) -> dict[int, MetaGradient]:
        """One truncation of every shard here, by shard.

        ``teaching``, ``weights``: the teacher's share, and those of the objective's terms, in this
        outer step.
        """
        if weights is not None:
            self.config.scored_by.weights = weights  # every estimator here has this objective
        theta = {name: x.to(self.config.device) for name, x in theta.items()}
        return {
            number: tree_map_only(Tensor, Tensor.cpu, shard.estimate(theta, teaching))
            for number, shard in self.shards.items()
        }

    def validate(
        self, stage: Stage, thetas: list[Theta], units: list[Unit]
    ) -> dict[Unit, tuple[dict[str, list[list[float]]], float]]:
        """Full episodes on fixed seeds. Per unit: mean training, final training and final
        validation loss, and how far the loss rises early on, as a ratio to the first, of each theta
        from each seed; and what the unit took, in seconds.
        """
        learned = stage.build().to(self.config.device)
        here = [tree_map(lambda x: x.to(self.config.device), theta) for theta in thetas]
        out = {}
        for unit in units:
            started = time.perf_counter()
            problem, first = self.problems[unit.problem], unit.chunk * VALIDATION_CHUNK
            with named(problem.name):
                done = rollout(
                    problem.task,
                    learned,
                    here,
                    problem.seeds[first : first + VALIDATION_CHUNK],
                    problem.steps,
                    splits=("train", "valid"),
                )
            valid = done.final["valid.loss"]
            if self.config.score == "regularized":
                valid = valid + self._rise(Family(problem.task, learned), done)
            start = done.train[..., :EARLY]
            losses = {
                "mean": done.train.mean(-1).tolist(),
                "final": done.final["train.loss"].tolist(),
                "valid": valid.tolist(),
                "rise": (start.amax(-1) / start[..., 0].clamp_min(1e-12)).tolist(),
            }
            out[unit] = losses, time.perf_counter() - started
        return out

    def _rise(self, family: Family, done: Rollout) -> Tensor:
        """What the absorbed regularizer adds to the validation loss ``[C, S]`` where runs ended."""
        assert self.config.absorption is not None
        params, buffers = tree_map(lambda x: x.flatten(0, 1), (done.params, done.buffers))
        batch = tuple(x.expand(len(params), *x.shape) for x in family.task.full("valid"))
        noise = torch.zeros(len(params), dtype=torch.int64, device=params.device)
        place = Place(params, buffers, batch, noise)
        rise = self.config.absorption.rise(FlatTask(family.task, family.layout), place)
        rise = torch.where(torch.isfinite(rise), rise, torch.inf)  # of a run that diverged
        return rise.reshape(done.alive.shape)

    def dump(self) -> dict[int, Tensors]:
        """Everything the shards here carry, on the CPU."""
        return {number: shard.dump() for number, shard in self.shards.items()}


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
        self.seconds: dict[tuple[str, int], float] = {}  # least of a unit, by kind and problem
        # Objects of a script's own are in this process alone.
        self.ranks = () if setup.pool else ranks.others()
        self.num = len(self.ranks) + 1 if self.ranks else min(setup.program.workers, shards)
        self.parts = [list(range(w, shards, self.num)) for w in range(self.num)]
        self.local: ShardHost | None = None  # of the first part, unless all are elsewhere
        self.peers: list[Peer] = []
        if self.num == 1 or self.ranks:
            self.local = ShardHost(setup, self.parts[0])
            self.pool, self.problems = self.local.pool, self.local.problems
        else:
            self.pool = setup.make_pool()
            self.problems = setup.make_problems(self.pool)
        try:
            if self.ranks:
                elsewhere = zip(self.ranks, self.parts[1:])
                self.peers = [rank.begin(_serve, setup, part) for rank, part in elsewhere]
            elif self.num > 1:
                for part in self.parts:
                    self.peers.append(Child(_serve, setup, part))
        except BaseException:
            self.close()
            raise

    def call(self, method: Callable[..., R], arguments: list[tuple[Any, ...]]) -> list[R]:
        """Call a method of `ShardHost` in every worker, each with its own arguments; answers in
        the order of workers.

        Raises:
            Died: a worker process is no more.
        """
        first = 0 if self.local is None else 1
        worker = first
        try:
            for worker, peer in enumerate(self.peers, first):
                peer.send((method.__name__, arguments[worker]))
            answers = [] if self.local is None else [method(self.local, *arguments[0])]
            for worker, peer in enumerate(self.peers, first):
                status, answer = peer.receive() or peer.receive()
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
        for peer in self.peers:
            peer.close()
