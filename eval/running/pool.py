"""Computes cells, in this process or in several of one thread each, and drives the plans that ask
for them.

A plan is a generator: it yields a list of cells, receives what they gave, may ask for more, and
returns its result. Plans do not wait for each other, so no worker idles while one has yet to choose
its settings.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from lo_framework.eval.running.cells import Failure
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.scaled import SUFFIX, Scaled
from lo_framework.eval.running.store import CellStore
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.optimizees.task import Task
from lo_framework.processes import Child, Died, Peer, Wire, single_thread
from lo_framework.ranks import Rank, others
from lo_framework.spec import UserError, describe

R = TypeVar("R")
Outcome = Any  # what the plan's cells give (`eval.running.cells.Measured`), or a `Failure`
REPORT_EVERY = 0.2  # seconds between a worker's messages about its progress


class Cell(Protocol):
    """One task under one optimizer, and how to compute what is asked of it. Travels to other
    processes.
    """

    @property
    def task(self) -> str: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def work(self) -> int: ...
    def compute(
        self, task: Task, optimizer: LearnedOptimizer, on_step: Callable[[int], None]
    ) -> Outcome: ...


Plan = Generator[list[Any], list[Outcome], R]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a worker process builds tasks and optimizers again.

    A task's name is the spec that makes it; the rest is here.

    Attributes:
        learned: label -> kind and config; one of these with `scaled.SUFFIX` is its tuned form, and
            any other label is a baseline's spec.
    """

    learned: Mapping[str, tuple[str, dict[str, Any]]]
    data_dir: str | None = None
    device: str = "cpu"
    plugins: tuple[str, ...] = ()


@dataclass
class Workshop:
    """Tasks and optimizers by name, with which cells are computed. In a worker process: empty, with
    a recipe.
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    optimizers: dict[str, LearnedOptimizer] = field(default_factory=dict)
    recipe: Recipe | None = None

    def compute(self, cell: Cell, on_step: Callable[[int], None]) -> Outcome:
        """The outcome of the cell. An error in it is a `Failure`, which costs this cell alone."""
        try:
            task = self._task(cell.task)
            # The caller's may live on another device, and stays as it is.
            optimizer = copy.deepcopy(self._optimizer(cell.optimizer)).to(task.device)
            return cell.compute(task, optimizer, on_step)
        except BrokenPipeError:  # nobody reads our progress: that ends the program, not a cell
            raise
        except (Exception, SystemExit) as error:
            return Failure(reason=describe(error))

    def _task(self, name: str) -> Task:
        if name not in self.tasks and self.recipe is not None:
            from lo_framework.optimizees import make_tasks

            spec, _, dataset = name.partition("/")
            (task,) = make_tasks(
                [spec], [dataset or "digits"], self.recipe.data_dir, self.recipe.device
            )
            self.tasks[name] = task
        return self.tasks[name]

    def _optimizer(self, label: str) -> LearnedOptimizer:
        if label not in self.optimizers and self.recipe is not None:
            from lo_framework.eval.baselines import make_baseline
            from lo_framework.learned import make_learned

            whole = label.removesuffix(SUFFIX)
            if label in self.recipe.learned:
                kind, config = self.recipe.learned[label]
                self.optimizers[label] = make_learned(kind, **config)
            elif whole in self.recipe.learned:
                self.optimizers[label] = Scaled(self._optimizer(whole))
            else:
                self.optimizers[label] = make_baseline(label)
        return self.optimizers[label]


def drive(
    plans: Mapping[Any, Plan[R]],
    workshop: Workshop,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    store: CellStore | None = None,
    alone: bool = False,
) -> dict[Any, R]:
    """Run all plans to their end; results by the same names, in the same order.

    What ``store`` has of an earlier run is not computed again; it is handed every outcome but
    failures, as they come. ``alone``: one cell at a time, each in a fresh process, so that costs
    can be measured.
    """
    progress = progress or Progress(mode="none")
    results: dict[Any, R] = {}
    waiting: dict[Any, list[Outcome | None]] = {}
    queue: deque[Item] = deque()

    def advance(name: str, outcomes: list[Outcome] | None) -> None:
        while True:
            try:
                cells = next(plans[name]) if outcomes is None else plans[name].send(outcomes)
            except StopIteration as stop:
                results[name] = stop.value
                return
            known = [None if store is None else store.get(cell) for cell in cells]
            progress.estimate -= sum(
                cell.work for cell, got in zip(cells, known) if got is not None
            )
            if not all(got is not None for got in known):
                break
            outcomes = known
        waiting[name] = known
        missing = [(name, i, cell) for i, cell in enumerate(cells) if known[i] is None]
        progress.expect(sum(cell.work for _, _, cell in missing))
        queue.extend(missing)

    for name in plans:
        advance(name, None)
    ranks = _elsewhere(workshop)
    if alone:
        source = _alone(queue, workshop, progress)
    elif workers == 1 and not ranks:
        source = _here(queue, workshop, progress)
    else:
        source = _there(queue, workshop, workers, progress, ranks)
    with single_thread(), closing(source):
        for (name, i, cell), outcome in source:
            if store is not None and not isinstance(outcome, Failure):
                store.put(cell, outcome)
            waiting[name][i] = outcome
            if all(got is not None for got in waiting[name]):
                advance(name, waiting.pop(name))
    return {name: results[name] for name in plans}


Item = tuple[str, int, Cell]
Source = Generator[tuple[Item, Outcome], None, None]


def _here(queue: deque[Item], workshop: Workshop, progress: Progress) -> Source:
    while queue:
        item = queue.popleft()
        yield item, workshop.compute(item[2], progress.advance)


def _alone(queue: deque[Item], workshop: Workshop, progress: Progress) -> Source:
    while queue:
        yield from _there(deque([queue.popleft()]), workshop, 1, progress)


def _there(
    queue: deque[Item],
    workshop: Workshop,
    workers: int,
    progress: Progress,
    ranks: tuple[Rank, ...] = (),
) -> Source:
    """Compute them in processes: idle ones get the next cell; one that dies costs its cell and is
    replaced.

    Raises:
        Died: a process ends before it is ready, as all others would.
    """
    if workshop.recipe is None:
        raise UserError(
            "more than one worker needs tasks that their names can build again; use workers=1"
        )
    busy: dict[Any, tuple[Peer, Item]] = {}  # by pipe
    idle: list[Peer] = [rank.begin(_serve, workshop.recipe) for rank in ranks]
    workers = len(ranks) + 1 if ranks else workers
    try:
        while queue or busy:
            while queue and len(busy) < workers:
                child = idle.pop() if idle else Child(_serve, workshop.recipe)
                item = queue.popleft()
                with suppress(Died):  # seen below
                    child.send(item[2])
                busy[child.pipe] = (child, item)
            for pipe in wait(list(busy)):
                child, item = busy[pipe]
                try:
                    message = child.receive()
                except Died as death:
                    if not child.started or ranks:  # torchrun begins all of them again
                        raise
                    del busy[pipe]
                    child.close()
                    yield item, Failure(reason=f"its process died ({death})")
                    continue
                if message is None:  # it is ready
                    continue
                if isinstance(message, int):
                    progress.advance(message)
                    continue
                del busy[pipe]
                idle.append(child)
                yield item, message
    finally:
        for child in [*idle, *(child for child, _ in busy.values())]:
            child.close()


def _elsewhere(workshop: Workshop) -> tuple[Rank, ...]:
    """The other ranks of a torchrun, where they can build what cells need; this one hands out,
    writes, and has a process of its own that computes.
    """
    return others() if workshop.recipe is not None else ()


def _serve(pipe: Connection, recipe: Recipe) -> None:
    """A worker: cells in, numbers of finished task-steps and then an outcome out."""
    from lo_framework.plugin import load_plugins

    workshop = Workshop(recipe=recipe)
    broken = ""
    try:
        load_plugins(recipe.plugins)
    except Exception as error:
        broken = describe(error)
    pending, told = 0, time.monotonic()

    def on_step(n: int) -> None:
        nonlocal pending, told
        pending += n
        if time.monotonic() - told > REPORT_EVERY:
            pipe.send(pending)
            pending, told = 0, time.monotonic()

    while True:
        cell = pipe.recv()
        outcome = Failure(reason=broken) if broken else workshop.compute(cell, on_step)
        pipe.send(pending)
        pending = 0
        pipe.send_bytes(Wire.dumps(outcome))
