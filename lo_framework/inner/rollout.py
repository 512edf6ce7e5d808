"""Whole episodes for evaluation: every combination of C settings (thetas) and S paired seeds in one
vmapped run.

Seed s fixes the initial parameters and every batch, whatever optimizer runs on it and however many
others run beside it: the comparison is paired by construction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lo_framework.episode import NOTHING, Carry, Draw, Need, Step
from lo_framework.flat_task import over_tasks
from lo_framework.inner.engine import AUTO, resolved
from lo_framework.inner.recorded import Recorded
from lo_framework.inner.step import Family
from lo_framework.learned.base import Clock, LearnedOptimizer, State, Theta
from lo_framework.learned.kernels import identity
from lo_framework.native.active import kernels
from lo_framework.optimizees.task import Batch, Task
from lo_framework.recent import Recent

WORTH_RECORDING = 300  # steps
# Runs in one vmap. Task-steps/s at 8 / 16 / 32 / 64, of `rollout` from 64 seeds on digits (AVX2;
# 100 steps of mlp, 40 of cnn): AdamW on mlp 2860 / 3900 / 5360 / 6310, on cnn 1080 / 1130 / 1270 /
# 1120; `scaled` on mlp 1380 / 2200 / 3600 / 4770, on cnn 580 / 850 / 1070 / 1040. More also costs
# memory.
CHUNK = 32
# Separate streams for initial parameters, training batches and held-out batches of one seed.
_INIT, _TRAIN, _HELD = 0x1D1, 0x7A1, 0x4E1D


class Rollout(NamedTuple):
    """Curves ``[C, S, T]`` and final quantities ``[C, S]``; a diverged run has infinite losses from
    that step on.
    """

    train: Tensor  # minibatch loss before each update
    held: Tensor  # held-out loss after each update; empty unless asked for
    final: dict[str, Tensor]  # "train.loss", "valid.accuracy", ...: full splits after the last step
    alive: Tensor
    params: Tensor  # [C, S, N] final parameters
    buffers: dict[str, Tensor]


@dataclass
class _Use:
    """A problem and an optimizer that rollouts have had, and the step that they had last."""

    task: Task  # kept, so that its id is nobody else's
    steps: int = 0
    engine: str = ""
    family: Family | None = None
    step: Step | None = None


_USED: Recent[Hashable, _Use] = Recent(16)


def _usual(task: Task, learned: LearnedOptimizer, needs: Need, steps: int) -> tuple[Family, Step]:
    """The family and the step of a rollout of so many ``steps``, with kernels where they can be
    compiled; recorded where rollouts of the same problem and rule, which evaluations make one
    after the other, have so many steps that it pays. That changes no bit.
    """
    use = _USED.of((id(task), identity(learned), needs), lambda: _Use(task))
    few = use.steps + steps <= WORTH_RECORDING
    use.steps += steps
    engine = resolved(AUTO, device=task.device.type, varied=few).replace("best", "graph")
    if use.family is None or use.step is None or use.engine != engine:
        use.engine, use.family = engine, Family(task, learned, engine)
        use.step = use.family.step(needs)
        if isinstance(use.step, Recorded):
            use.step.asked = False
    return use.family, use.step


def seeded(seed: int, stream: int) -> torch.Generator:
    """An independent generator for one purpose of one seed."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + stream * 0x85EBCA77) % 2**63)


def rollout(
    task: Task,
    learned: LearnedOptimizer,
    thetas: Sequence[Theta],
    seeds: Sequence[int],
    steps: int,
    *,
    num_steps: int | None = None,
    held_out: bool = False,
    splits: Sequence[str] = ("train", "test"),
    chunk: int = CHUNK,
    engine: str = "auto",
    on_step: Callable[[int], None] | None = None,
    on_carry: Callable[[int, Carry, Draw | None], None] | None = None,
) -> Rollout:
    """Train ``task`` for ``steps`` with ``learned`` at each of ``thetas``, from each of ``seeds``.

    ``num_steps`` is the horizon that progress refers to (default ``steps``); at most ``chunk``
    settings x seeds run in one vmap, in equal parts. ``on_step(n)`` is told of every ``n`` finished
    task-steps; ``on_carry(t, carry, draw)`` sees the carry after ``t`` updates and the data of the
    last of them (t = 0: the start, None). No meta-gradient. ``engine``: see `inner.engine`; by
    itself it uses kernels where they can be compiled, and records steps where there are many.
    """
    settings = [(c, s) for c in range(len(thetas)) for s in range(len(seeds))]
    chunks = math.ceil(len(settings) / chunk)
    chunk = math.ceil(len(settings) / chunks)  # 40 runs are 20 + 20, not 32 + 8
    needs = Need.HELD if held_out else NOTHING
    if engine == AUTO:
        family, step = _usual(task, learned, needs, steps * chunks)
    else:
        family = Family(task, learned, engine)
        step = family.step(needs)
    parts = []
    with torch.no_grad():
        for begin in range(0, len(settings), chunk):
            part = settings[begin : begin + chunk]
            theta = {name: torch.stack([thetas[c][name] for c, _ in part]) for name in thetas[0]}
            mine = [seeds[s] for _, s in part]
            inits = {seed: task.init(seeded(seed, _INIT)) for seed in sorted(set(mine))}
            carry = family.start_from([inits[seed] for seed in mine])
            if on_carry is not None:
                on_carry(0, carry, None)
            draws = _draws(task, mine, num_steps or steps, held_out)
            curve = []
            for t, draw in enumerate(itertools.islice(draws, steps), start=1):
                carry, losses = step(theta, carry, draw)
                curve.append(losses)
                if on_step is not None:
                    on_step(len(part))
                if on_carry is not None:
                    on_carry(t, carry, draw)
            train = torch.stack([losses.train for losses in curve], 1)
            held = torch.stack([losses.held for losses in curve], 1)
            final = final_metrics(family, carry, splits)
            parts.append(
                Rollout(
                    train,
                    held if held_out else held[:, :0],
                    final,
                    carry.alive,
                    carry.params,
                    carry.buffers,
                )
            )
    shape = (len(thetas), len(seeds))

    def joined(*chunks: Tensor) -> Tensor:
        x = torch.cat(chunks)
        return x.reshape(*shape, *x.shape[1:])

    return tree_map(joined, *parts)


def _draws(task: Task, seeds: list[int], horizon: int, held_out: bool) -> Iterator[Draw]:
    """The data of step after step of K episodes; rows of equal ``seeds`` see the same."""
    unique = sorted(set(seeds))
    row = torch.tensor([unique.index(seed) for seed in seeds], device=task.device)
    streams = {
        split: [seeded(seed, stream) for seed in unique]
        for split, stream in (("train", _TRAIN), ("valid", _HELD))
    }

    def batch(split: str) -> Batch:
        drawn = [task.batch(split, generator) for generator in streams[split]]
        return tuple(torch.stack(parts).index_select(0, row) for parts in zip(*drawn, strict=True))

    for t in itertools.count():
        clock = torch.tensor([min(t / horizon, 1.0), float(horizon)])
        yield Draw(
            batch("train"),
            batch("valid") if held_out else (),
            torch.tensor([seed * 1_000_003 + t for seed in seeds], device=task.device),
            Clock(*(x.expand(len(seeds)) for x in clock.to(task.device))),
        )


def final_metrics(family: Family, carry: Carry, splits: Sequence[str]) -> dict[str, Tensor]:
    """Metrics on full splits in eval mode, ``{split.metric: [K]}``; losses of diverged tasks are
    infinite.
    """
    out = {}
    for split in splits:
        data = family.task.full(split)

        def measured(params: Tensor, buffers: State, data: Batch = data) -> dict[str, Tensor]:
            return family.task.metrics(family.layout.unflatten(params), buffers, data)

        with kernels(family.engine.native):
            values = over_tasks(family.task, measured, chunk_size=4)(carry.params, carry.buffers)
        for name, x in values.items():
            out[f"{split}.{name}"] = torch.where(carry.alive, x, torch.inf) if name == "loss" else x
    return out
