"""The host of an update rule inside an optimizer: one update of many tensors, in cache-sized
chunks, written in place.

    measure every chunk -> means over tensors -> condition over all tensors -> update every chunk

It equals ``LearnedOptimizer.forward`` on the whole arena, with memory for one chunk at a time
beside the state itself. On an accelerator nothing waits for the device: Python looks at no number.
On a CPU a compiled kernel updates all tensors in one call (`table`), where there is a compiler.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.inner.graph import Recorder
from lo_framework.layout import Layout
from lo_framework.learned.base import Clock, LearnedOptimizer, State
from lo_framework.learned.kernels import Kernels, kernels_of, with_kernels
from lo_framework.native import toolchain
from lo_framework.optim.learned.memory import Lying
from lo_framework.optim.learned.store import Plan, Run, Store
from lo_framework.optim.learned.table import Table

# Elements: a chunk's intermediates stay in the second-level cache, those of a small network too.
CPU_CHUNK = 16384
WARM = 10  # steps before a plan's conditioning is recorded
# An accelerator wants few, large kernels; this only bounds the memory of intermediates.
DEVICE_CHUNK = 1 << 22

Multiplier = float | Tensor


class Work(NamedTuple):
    """One run with this step's tensors, side by side; a single contiguous one where it lies."""

    run: Run
    params: Tensor  # [n]
    grads: Tensor  # [n]
    multiplier: Multiplier  # of the update

    @property
    def single(self) -> bool:
        return len(self.run.tensors) == 1


class Chunk(NamedTuple):
    """A part of a run: ``params`` and ``grads [n]``, per-parameter state ``[..., n]``, and where it
    lies in the run.
    """

    params: Tensor
    grads: Tensor
    state: State
    part: slice


class Host:
    """Runs a frozen copy of ``learned`` on whichever devices the parameters are; computes in
    ``dtype``.
    """

    def __init__(
        self, learned: LearnedOptimizer, device: torch.device, dtype: torch.dtype, chunk: int | None
    ) -> None:
        self.learned = copy.deepcopy(learned).requires_grad_(False).to(device, dtype)
        self.device = device
        self.dtype = dtype
        self.chunk = chunk
        self.columns = self._columns()
        # With kernels for what a rule prepares; methods of one chunk are called as they are.
        usual = self.learned if self.columns is None else with_kernels(self.learned)
        self._on = {device: usual}
        # Of the last step: the plan, channels, shared values and clock, for those who ask later.
        self.last: tuple[Plan, Tensor, Tensor, Clock] | None = None
        self.measures = self._probe()

    def _columns(self) -> Kernels | None:
        """Kernels, where they can be compiled; a ``chunk`` asks for the rule itself."""
        usable = self.device.type == "cpu" and self.dtype == torch.float32 and self.chunk is None
        if not usable or toolchain.reason():
            return None
        return kernels_of(self.learned)

    def on(self, device: torch.device) -> LearnedOptimizer:
        """The rule with its weights on ``device``."""
        if device not in self._on:
            self._on[device] = copy.deepcopy(self.learned).to(device)
        return self._on[device]

    def update(
        self,
        store: Store,
        plan: Plan,
        multipliers: Sequence[Multiplier],
        loss: Tensor | None,
        clock: Clock,
        where: Lying | None,
    ) -> None:
        """Update the parameters of ``plan`` and the state in ``store``, in place.

        ``multipliers`` scale the update, one per parameter group. ``where`` tensors lie, in the
        plan's order, if a kernel can update them there.
        """
        works: list[Work] = []

        def gathered() -> list[Work]:
            if not works:
                works.extend(self._gather(run, multipliers[run.pack.group]) for run in plan.runs)
            return works

        if type(self.learned).prepare is not LearnedOptimizer.prepare:
            common = store.shared()
            for work in gathered():
                self._prepare(work, common)
        table = self._table(plan, where)
        stats = table.means() if table is not None and self.measures else None
        if stats is None:
            stats = self._stats(gathered(), plan) if self.measures else self._nothing(plan)
        stats = plan.layout.over_shards(stats)
        channels, shared, reduced = self._condition(plan, stats, store.take(plan), loss, clock)
        store.put(plan, reduced)
        self.last = plan, channels, shared, clock
        if table is not None and table.update(channels, shared, multipliers):
            return
        for work in gathered():
            device = work.run.pack.device
            columns_of_run = channels.index_select(-1, work.run.positions).to(device)
            self._apply(work, columns_of_run, shared.to(device))

    def _table(self, plan: Plan, where: Lying | None) -> Table | None:
        """The table of a plan all of whose tensors a kernel can update where they lie."""
        if self.columns is None or where is None or not plan.runs:
            return None
        if plan.table is None:
            plan.table = Table(self.columns, self.learned, plan)
        plan.table.lie(where)
        return plan.table

    def _nothing(self, plan: Plan) -> Tensor:
        return torch.zeros(0, plan.layout.num, device=self.device, dtype=self.dtype)

    def _condition(
        self, plan: Plan, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        """`LearnedOptimizer.condition`, which is many operations on few numbers: after some steps
        of a plan it is replayed, which has the same bits and costs half.
        """
        plan.steps += 1
        if plan.steps <= WARM or self.device.type != "cpu":
            return self.learned.condition(plan.layout, stats, state, loss, clock)
        names, told = sorted(state), [] if loss is None else [loss]
        key = (*names, len(told))
        if key not in plan.recorded:
            outputs: list[str] = []

            def function(flat: Sequence[Tensor]) -> list[Tensor]:
                stats, progress, horizon, *rest = flat
                values = dict(zip(names, rest))
                known = rest[len(names)] if told else None
                channels, shared, reduced = self.learned.condition(
                    plan.layout, stats, values, known, Clock(progress, horizon)
                )
                outputs[:] = reduced
                return [channels, shared, *reduced.values()]

            plan.recorded[key] = Recorder(function, "graph"), outputs
        recorder, outputs = plan.recorded[key]
        flat = [stats, *clock, *(state[name] for name in names), *told]
        if recorder is not None:
            try:
                channels, shared, *reduced = recorder(flat)
                return channels, shared, dict(zip(outputs, reduced))
            except Exception:  # a rule that looks at numbers, say: it runs as it is
                plan.recorded[key] = None, outputs
        return self.learned.condition(plan.layout, stats, state, loss, clock)

    def _probe(self) -> bool:
        """Whether the rule looks at any statistics."""
        layout = Layout.of({"probe": (2, 2)}).to(self.device)
        zeros = torch.zeros(layout.size, device=self.device, dtype=self.dtype)
        state = self.learned.prepare(layout, zeros, zeros, self.learned.init_state(layout, zeros))
        return self.learned.measure(zeros, zeros, state).shape[0] > 0

    def _stats(self, works: Sequence[Work], plan: Plan) -> Tensor:
        """``[F, S]`` in the order of the list of parameters."""
        stats = torch.cat([self._means(work).to(self.device) for work in works], dim=-1)
        return stats if plan.order is None else stats.index_select(-1, plan.order)

    def _gather(self, run: Run, multiplier: Multiplier) -> Work:
        flat = [p.reshape(-1) for p in run.tensors]
        grads = [p.grad.reshape(-1) for p in run.tensors]  # type: ignore[union-attr]
        if len(flat) == 1:
            return Work(run, flat[0], grads[0], multiplier)
        sides = torch.cat(flat).to(self.dtype), torch.cat(grads).to(self.dtype)
        return Work(run, *sides, multiplier)

    def _chunks(self, work: Work) -> Iterator[Chunk]:
        """Yield one chunk after the other, in the dtype of computation."""
        on_cpu = work.run.pack.device.type == "cpu"
        size = self.chunk or (CPU_CHUNK if on_cpu else DEVICE_CHUNK)
        n = work.params.shape[0]
        if not work.single or n <= size:
            yield Chunk(
                work.params.to(self.dtype), work.grads.to(self.dtype), work.run.state, slice(0, n)
            )
            return
        for begin in range(0, n, size):
            part = slice(begin, min(begin + size, n))
            state = {name: x[..., part] for name, x in work.run.state.items()}
            yield Chunk(
                work.params[part].to(self.dtype), work.grads[part].to(self.dtype), state, part
            )

    def _prepare(self, work: Work, common: State) -> None:
        """Let the rule update state that needs whole tensors; most rules have none."""
        device, state = work.run.pack.device, work.run.state
        seen = {name: x.to(device) for name, x in common.items()} | state
        params, grads = work.params.to(self.dtype), work.grads.to(self.dtype)
        _store(state, self.on(device).prepare(work.run.layout, params, grads, seen))

    def _means(self, work: Work) -> Tensor:
        """Means of what the rule measures, ``[F, tensors of the run]``; sums are pairwise in chunks
        and over them.
        """
        learned = self.on(work.run.pack.device)
        if not work.single:
            whole = next(self._chunks(work))
            return work.run.layout.mean_here(
                learned.measure(whole.params, whole.grads, whole.state)
            )
        sums = torch.stack(
            [learned.measure(c.params, c.grads, c.state).sum(-1) for c in self._chunks(work)]
        )
        return (sums.sum(0) / work.params.shape[0])[:, None]

    def _apply(
        self,
        work: Work,
        channels: Tensor,
        shared: Tensor,
    ) -> None:
        """Update one run by the rule itself; ``channels [C, tensors of the run]``, ``shared
        [D]``.
        """
        apply = self.on(work.run.pack.device).update
        if not work.single:
            channels = work.run.layout.expand(channels)
        for params, grads, state, part in self._chunks(work):
            new, new_state = apply(channels, shared, params, grads, state)
            if isinstance(work.multiplier, Tensor) or work.multiplier != 1.0:
                new = params + work.multiplier * (new - params)
            _store(state, new_state)
            work.params[part].copy_(new)
        self._put_back(work)

    def _put_back(self, work: Work) -> None:
        """The flat vector goes back into the parameters, unless it is their memory."""
        parts = work.params.split([p.numel() for p in work.run.tensors])
        for p, flat in zip(work.run.tensors, parts):
            if flat.data_ptr() != p.data_ptr():
                p.copy_(flat.view_as(p))


def _store(state: State, new: State) -> None:
    for name, target in state.items():
        if new[name] is not target:
            target.copy_(new[name])
