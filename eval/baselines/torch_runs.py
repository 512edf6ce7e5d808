"""Baselines that are real ``torch.optim.Optimizer``s, run as they are: one run at a time, with
everybody's seeds.

    @register_baseline("my-adamw", lr_grid([1e-3, 1e-2]))
    class MyAdamW(TorchBaseline):
        kind, Config = "my-adamw", AdamWConfig

        def build(self, run, settings):
            return torch.optim.AdamW(run.params.values(), lr=settings["lr"])

Initial parameters, training batches and noise of a seed are those of `lo_framework.inner.rollout`,
so such a run is paired with every vmapped one; `eval.running.cells.roll` sends it here, and
tuning, tables and workers do not know the difference. For what cannot be vmapped: several blocks,
diagnostics, optimizers that train a network of their own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lo_framework.episode import Carry, Draw
from lo_framework.eval.baselines.registry import Setting, TunedOptimizer, setting_of
from lo_framework.inner.rollout import _INIT, _TRAIN, seeded
from lo_framework.layout import Layout
from lo_framework.learned.base import Clock, State, Theta
from lo_framework.native.active import usual_kernels
from lo_framework.optimizees.task import Batch, Buffers, Task
from lo_framework.optional import require
from lo_framework.spec import UserError

OnCarry = Callable[[int, Carry, Draw | None], None]
# Streams of `Run.draw`, one a split: neither shifts the other, nor the training batches. Test data
# is for nobody.
_DRAWN = {"train": 0xD7A1, "valid": 0xD7A2}
_SETTLED = 0xD7A3  # the stream of `Run.settled_buffers`


class Run:
    """One training as a baseline's `after_step` sees it.

    Attributes:
        task, steps, seed: what is trained, for how long, and from which seed.
        params: the live parameters by name; buffers: the live buffers.
        t: the index of the current step, from 0.
    """

    def __init__(self, task: Task, steps: int, seed: int) -> None:
        params, self.buffers = task.init(seeded(seed, _INIT))
        self.params = {name: nn.Parameter(x.detach().clone()) for name, x in params.items()}
        self.task, self.steps, self.seed = task, steps, seed
        self.t = 0
        self.layout = Layout.of({name: tuple(x.shape) for name, x in params.items()})
        self.batch: Batch = ()
        self._train = seeded(seed, _TRAIN)
        self._drawn = {split: seeded(seed, stream) for split, stream in _DRAWN.items()}

    @property
    def noise(self) -> Tensor:
        """This step's noise seed (0-d int64), that of `rollout`."""
        return torch.tensor(self.seed * 1_000_003 + self.t, device=self.task.device)

    def loss_fn(self, batch: Batch) -> Tensor:
        """The task's loss (0-d, with its graph) at the live parameters and buffers, with this
        step's noise.

        Buffers stay as they are.
        """
        return self._loss(batch)[0]

    def draw(self, split: str) -> Batch:
        """Another batch of "train" or "valid", from a stream of this seed and split that nothing
        else uses.

        Raises:
            UserError: another split. No optimizer sees test data.
        """
        if split not in self._drawn:
            raise UserError(
                f'an optimizer may draw from {", ".join(self._drawn)}, not from "{split}"'
            )
        return self.task.batch(split, self._drawn[split])

    def training_loss(self) -> Tensor:
        """The loss of the next training batch, with its graph; updates the buffers."""
        self.batch = self.task.batch("train", self._train)
        loss, new = self._loss(self.batch)
        self.buffers = {name: x.detach() for name, x in new.items()}
        return loss

    def settled_buffers(self, batches: int) -> Buffers:
        """The buffers after so many more training batches at the live parameters as they are."""
        stream, buffers = seeded(self.seed, _SETTLED), self.buffers
        with torch.no_grad():
            for _ in range(batches if buffers else 0):
                batch = self.task.batch("train", stream)
                _, buffers = self.task.loss(dict(self.params), buffers, batch, self.noise)
        return buffers

    def carry(self) -> Carry:
        """Where the run is, as `rollout` tells it: with one task in front, and no state."""
        params = self.layout.flatten({name: p.detach() for name, p in self.params.items()})[None]
        alive = torch.ones(1, dtype=torch.bool, device=params.device)
        return Carry(params, {name: x[None] for name, x in self.buffers.items()}, {}, alive, {})

    def drawn(self) -> Draw:
        """The data of the last update."""
        clock = Clock(*torch.tensor([[self.t / self.steps], [self.steps]], device=self.task.device))
        return Draw(tuple(x[None] for x in self.batch), (), self.noise[None], clock)

    def _loss(self, batch: Batch) -> tuple[Tensor, Buffers]:
        return self.task.loss(dict(self.params), self.buffers, batch, self.noise)


class TorchBaseline(TunedOptimizer):
    """A baseline around a ``torch.optim.Optimizer``.

    ``config`` has ``lr`` and ``cosine``; these are tuned. A subclass makes further options tunable
    by naming them in ``further``.
    """

    silenced: ClassVar[str] = ""  # pattern of warnings that `counts` already tells
    package: ClassVar[str] = ""  # the optional one that it comes from
    gradients: float = 1.0  # evaluations per step, for tables

    def __init__(self, config: Any) -> None:
        if self.package:
            require(self.package)  # before hours of other work
        super().__init__(config)

    def build(self, run: Run, settings: Setting) -> torch.optim.Optimizer:
        """The optimizer of ``run`` at ``settings``, which has a number for all that is tuned.

        The global random generator is seeded by ``run.seed`` from here to the end of the run.
        """
        raise NotImplementedError

    def take_step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One update for the training batch's ``loss``, which has its graph."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def after_step(self, optimizer: torch.optim.Optimizer, t: int, run: Run) -> None:
        """Called after the update of step ``t`` (from 0): the place for meta steps."""

    @contextmanager
    def evaluated(self, optimizer: torch.optim.Optimizer, run: Run) -> Iterator[None]:
        """While it is open ``run`` has the weights and buffers that are evaluated, where the
        optimizer trains with others.
        """
        yield

    def counts(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Counts to note of a finished or diverged run, beside its losses (`Measured.extra`)."""
        return {}

    def state_numel(self, optimizer: torch.optim.Optimizer) -> int:
        """How many numbers the optimizer keeps; one with some outside of ``state`` adds them."""
        kept = tree_leaves([*optimizer.state.values()])
        return sum(x.numel() for x in kept if isinstance(x, Tensor))

    def init_state(self, layout: Layout, params: Tensor) -> State:
        raise UserError(f'"{self.kind}" runs as a torch optimizer, which this evaluation cannot do')


@dataclass(frozen=True, kw_only=True)
class TorchRollout:
    """Runs as `lo_framework.inner.rollout.Rollout` has them: ``train [C, S, T]``,
    ``final[name] [C, S]``, ``alive [C, S]``.

    ``extra[name] [C, S]``: the baseline's counts, nan where a run has none of that name.
    """

    train: Tensor
    final: dict[str, Tensor]
    alive: Tensor
    state_numel: int
    extra: dict[str, Tensor]


def torch_rollout(
    task: Task,
    baseline: TorchBaseline,
    thetas: Sequence[Theta],
    seeds: Sequence[int],
    steps: int,
    *,
    splits: Sequence[str] = ("train", "test"),
    on_step: Callable[[int], None] | None = None,
    on_carry: OnCarry | None = None,
) -> TorchRollout:
    """Train ``task`` at each of ``thetas`` from each of ``seeds``, one after the other; `rollout`
    tells the arguments.

    A run has diverged once a loss or a parameter is not finite; its losses are infinite from that
    step on, and no step is made any more.
    """
    told = splits, on_step, on_carry
    with usual_kernels():
        runs = [
            _run(task, baseline, theta, seed, steps, *told) for theta in thetas for seed in seeds
        ]
    shape = (len(thetas), len(seeds))

    def table(rows: Iterable[Mapping[str, float]]) -> dict[str, Tensor]:
        rows = list(rows)
        names = dict.fromkeys(name for row in rows for name in row)
        return {
            n: torch.tensor([row.get(n, math.nan) for row in rows]).double().reshape(shape)
            for n in names
        }

    return TorchRollout(
        train=torch.stack([run.train for run in runs]).reshape(*shape, steps),
        final=table(run.final for run in runs),
        alive=torch.tensor([run.alive for run in runs]).reshape(shape),
        state_numel=max(run.state_numel for run in runs),
        extra=table(run.counts for run in runs),
    )


class _Ended(NamedTuple):
    train: Tensor  # [T]
    final: dict[str, float]
    alive: bool
    state_numel: int
    counts: dict[str, float]


def _run(
    task: Task,
    baseline: TorchBaseline,
    theta: Theta,
    seed: int,
    steps: int,
    splits: Sequence[str],
    on_step: Callable[[int], None] | None,
    on_carry: OnCarry | None,
) -> _Ended:
    devices = [task.device] if task.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings(), torch.enable_grad():
        torch.manual_seed(seed)  # what an optimizer draws for itself depends on its run alone
        if baseline.silenced:
            warnings.filterwarnings("ignore", message=baseline.silenced)
        run = Run(task, steps, seed)
        optimizer = baseline.build(run, setting_of(theta))

        def look() -> Carry:
            with baseline.evaluated(optimizer, run):
                return run.carry()

        train, here = list[float](), look()
        if on_carry is not None:
            on_carry(0, here, None)
        for loss in _losses(baseline, optimizer, run, float(theta["cosine"])):
            train.append(loss)
            if on_step is not None:
                on_step(1)
            if on_carry is not None:
                here = look()
                on_carry(len(train), here, run.drawn())
    lost = steps - len(train)
    if on_step is not None and lost:
        on_step(lost)
    if on_carry is not None:  # a diverged run stands still where it was
        here = here._replace(alive=torch.zeros_like(here.alive))
        for t in range(len(train), steps):
            on_carry(t + 1, here, run.drawn())
    final = {}
    with torch.no_grad(), baseline.evaluated(optimizer, run):
        params = {name: p.detach() for name, p in run.params.items()}
        for split in splits:
            for name, x in task.metrics(params, run.buffers, task.full(split)).items():
                final[f"{split}.{name}"] = math.inf if name == "loss" and lost else float(x)
    curve = torch.tensor([*train, *[math.inf] * lost])
    counts = baseline.counts(optimizer)
    return _Ended(curve, final, not lost, baseline.state_numel(optimizer), counts)


def _losses(
    baseline: TorchBaseline, optimizer: torch.optim.Optimizer, run: Run, cosine: float
) -> Iterator[float]:
    """Train; yields the minibatch loss before each update, until a loss or a parameter is not
    finite.
    """
    start = [group.get("lr") for group in optimizer.param_groups]
    for t in range(run.steps):
        run.t = t
        if cosine:
            # `scheduled_lr` on the groups' ``lr``, which for some optimizers is a multiplier.
            factor = 1.0 - cosine + cosine * 0.5 * (1.0 + math.cos(math.pi * (t / run.steps)))
            for group, lr in zip(optimizer.param_groups, start):
                if lr is not None:
                    group["lr"] = lr * factor
        loss = run.training_loss()
        value = float(loss.detach())
        if not math.isfinite(value):
            return
        baseline.take_step(optimizer, loss)
        baseline.after_step(optimizer, t, run)
        if not math.isfinite(sum(p.detach().sum() for p in run.params.values())):
            return
        yield value
