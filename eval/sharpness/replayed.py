"""Losses of many points of one problem and their gradients, from recordings.

A landscape is looked at thousands of times by the same few operations, and for a small network
Python, vmap and autograd around them take a part of the time. So after many calls of a kind they
are recorded (`inner.graph`) and replayed, with the same bits; by how much that is faster says
`python -m benchmarks.landscape`. Where a call takes long, its operations do, and nothing is
recorded; which way is taken changes no bit.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from lo_framework.inner.graph import Flat, Recorder
from lo_framework.layout import Layout
from lo_framework.native.active import usual_kernels
from lo_framework.optimizees.task import Batch, Buffers, Task
from lo_framework.recent import Recent
from lo_framework.spec import UserError

WORTH_RECORDING = 500  # calls of a kind; to record it takes about as long as so many save
SHORT = 0.03  # seconds; what is around the operations of a longer call is a small part of it
_USED: Recent[tuple[int, Layout], Replayed] = Recent(16)


def replayed(task: Task, layout: Layout) -> Replayed:
    """The losses of this problem, with what was recorded of them before."""
    return _USED.of((id(task), layout), lambda: Replayed(task, layout))


class Replayed:
    """Evaluation-mode losses of ``task`` at points ``[K, N]`` on the rows of a batch.

    Attributes:
        together: whether more points than one go at a time, and are recorded.
    """

    def __init__(self, task: Task, layout: Layout) -> None:
        self.task, self.layout = task, layout
        on_cpu = task.device.type == "cpu"
        slow = on_cpu and any(slot.role == "conv" for slot in layout.slots)
        self.together = task.vmappable and not slow
        self.calls: Counter[Hashable] = Counter()
        self.seconds: defaultdict[Hashable, float] = defaultdict(float)  # of plain calls
        self.replays: dict[Hashable, Recorder] = {}

    def losses(self, flats: Tensor, buffers: Buffers, batch: Batch) -> Tensor:
        """``[K]``, without derivatives."""
        with torch.no_grad():
            return self._call(self._losses, flats.detach(), buffers, batch)[0]

    def slopes(self, flats: Tensor, buffers: Buffers, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses ``[K]``, without derivatives, and gradients ``[K, N]``; if ``flats`` requires a
        gradient and they depend on it, they can be differentiated once. Raises UserError.
        """
        losses, gradients = self._call(self._slopes, flats, buffers, batch)
        return losses, gradients

    def _call(
        self,
        plain: Callable[[Tensor, Buffers, Batch], list[Tensor]],
        flats: Tensor,
        buffers: Buffers,
        batch: Batch,
    ) -> Sequence[Tensor]:
        kind = (plain.__name__, flats.shape, flats.dtype, flats.requires_grad, batch[0].shape)
        self.calls[kind] += 1
        with usual_kernels():
            few = self.calls[kind] <= WORTH_RECORDING
            if few or not self.together or self.seconds[kind] > SHORT * self.calls[kind]:
                began = time.perf_counter()
                results = plain(flats, buffers, batch)
                self.seconds[kind] += time.perf_counter() - began
                return results
            inputs, names = [flats, *buffers.values(), *batch], list(buffers)
            if kind not in self.replays:

                def function(flat: Flat) -> list[Tensor]:
                    state, rows = flat[1 : 1 + len(names)], flat[1 + len(names) :]
                    return plain(flat[0], dict(zip(names, state, strict=True)), tuple(rows))

                self.replays[kind] = Recorder(function, "graph", asked=False)
            return self.replays[kind](inputs)

    def _losses(self, flats: Tensor, buffers: Buffers, batch: Batch) -> list[Tensor]:
        def loss(flat: Tensor) -> Tensor:
            return self.task.metrics(self.layout.unflatten(flat), buffers, batch)["loss"]

        return [loss(flats[0])[None] if len(flats) == 1 else torch.func.vmap(loss)(flats)]

    def _slopes(self, flats: Tensor, buffers: Buffers, batch: Batch) -> list[Tensor]:
        twice = flats.requires_grad
        with torch.enable_grad():
            at = flats if twice else flats.detach().requires_grad_()
            (losses,) = self._losses(at, buffers, batch)
            if not losses.requires_grad:
                raise UserError(
                    f"{self.task.name}: the loss depends on no parameter, "
                    "there is nothing to measure"
                )
            (gradients,) = torch.autograd.grad(losses.sum(), at, create_graph=twice)
        return [losses.detach(), gradients]
