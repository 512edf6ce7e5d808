"""What gradients alone tell about a run of training: whether the last step raised the loss.

With ``d`` the last move of the parameters and ``g`` the gradient after it, ``g . d`` is how steeply
the loss rises where the move has led. The batch of ``g`` had no part in ``d``, so the noise of
batches does not bias it, and where the loss is convex along the move it is at least what the move
added to the loss. ``g`` before the move is no help: it is of the batch that the move was made for.

Sums are over a sample of each tensor, at most `SAMPLE` numbers, in lines of `LINE` at an odd
distance, so that they lie in all columns of a matrix. On a CPU a compiled function takes it from
where the tensors lie.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework import native
from lo_framework.native import toolchain
from lo_framework.optim.learned.memory import Lying

SAMPLE = 256
LINE = 8


class Share(NamedTuple):
    """Of some tensors, the ``active`` ones: where their samples are in `Watch.old`, for how many
    numbers each one stands, and of which tensor it is.
    """

    active: tuple[int, ...]
    places: Tensor
    weights: Tensor
    owners: Tensor


class Job(NamedTuple):
    """The same for the compiled functions: a struct of theirs, and what it points to."""

    active: tuple[int, ...]
    struct: array[int]
    at: int  # of the struct
    places: array[int]


class Watch:
    """A sample of ``params``, all of a model's, and of their last move by the optimizer.

    One step: ``look()``, the update, ``follow()``. ``active`` are the places of the tensors that
    have a gradient, ``where`` they lie, if a compiled function can read them there.

    Attributes:
        old, move: ``[samples]``, float32: the parameters after the last update, and what it added.
        firsts: ``[tensors]``, float64: of the first gradient that is not zero, the sum of absolute
            values; 0 before there is one.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params, self.device = list(params), params[0].device
        self.spreads = [_spread(p.numel()) for p in self.params]
        counts, gaps = ([spread[k] for spread in self.spreads] for k in (0, 1))
        weights = [p.numel() / max(1, n) for p, n in zip(self.params, counts)]
        begins = [0, *accumulate(counts)][:-1]
        self.counts, self.gaps, self.begins = map(torch.tensor, (counts, gaps, begins))
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self._share: Share | None = None
        self._job: Job | None = None
        self._where: Lying | None = None
        self._sums = torch.zeros(6, dtype=torch.float64)
        self.old = self._sample(self.params, range(len(self.params)))
        self.move = torch.zeros_like(self.old)
        self.firsts = torch.zeros(len(self.params), dtype=torch.float64, device=self.device)

    def look(self, active: tuple[int, ...], where: Lying | None = None) -> Tensor:
        """``[6]``, float64, sums over the ``active`` tensors: how their last move goes along with
        their gradient (see the module), the gradient's absolute values, the squares of the move,
        those of what else has changed the parameters since, their `firsts`, and how many numbers
        they have. The next move is from here. The tensor is good until the next look.
        """
        self._where = where
        if where is not None:
            if self._job is None or self._job.active != active:
                self._job = self._job_of(active)
            grads = where.grads.buffer_info()[0]
            _library().look(self._job.at, where.params.buffer_info()[0], grads)
            return self._sums
        params = [self.params[i] for i in active]
        if not params:  # nothing lies here
            return torch.zeros(6, dtype=torch.float64, device=self.device)
        _, places, weights, owners = self._share_of(active)
        slope = self._sample([p.grad for p in params], active).double() * weights  # type: ignore[misc]
        move = self.move[places].double()
        now = self._sample(params, active)
        other = (now - self.old[places]).double()
        self.old[places] = now
        sizes = torch.zeros_like(self.firsts).index_add_(0, owners, slope.abs())
        self.firsts.copy_(torch.where(self.firsts == 0, sizes, self.firsts))
        first = self.firsts[torch.unique_consecutive(owners)].sum()
        squares = [x.square() @ weights for x in (move, other)]
        return torch.stack([slope @ move, slope.abs().sum(), *squares, first, weights.sum()])

    def follow(self, active: tuple[int, ...]) -> None:
        """Take in the update that the optimizer has made to the tensors of the last look."""
        if not active:
            return
        if self._where is not None and self._job is not None:
            _library().follow(self._job.at, self._where.params.buffer_info()[0])
            return
        params = [self.params[i] for i in active]
        places, now = self._share_of(active).places, self._sample(params, active)
        self.move[places] = now - self.old[places]
        self.old[places] = now

    def begin(self) -> None:
        """Begin at the present parameters, which no update has made."""
        self.old.copy_(self._sample(self.params, range(len(self.params))))
        self.move.zero_()

    def state(self) -> list[Tensor]:
        return [self.old, self.move, self.firsts]

    def load(self, state: Sequence[Tensor | None]) -> None:
        """Go on where another watch was, which may have had fewer parameters, as far as that is
        known.
        """
        for x, saved in zip(self.state(), state):
            if saved is not None:
                x[: len(saved)].copy_(saved)

    def _sample(self, tensors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
        """``[samples]`` of these tensors, parameters or their gradients."""
        parts = []
        for x, i in zip(tensors, places):
            (count, gap), flat = self.spreads[i], x.detach().reshape(-1)
            if gap > LINE:
                flat = flat[: len(flat) // LINE * LINE].view(-1, LINE)[:: gap // LINE].reshape(-1)
            flat = flat[:count]
            parts.append(flat.to(self.device, torch.float32))
        return torch.cat(parts)

    def _share_of(self, active: tuple[int, ...]) -> Share:
        if self._share is None or self._share.active != active:
            chosen = torch.tensor(active)
            counts, begins = self.counts[chosen], self.begins[chosen]
            first = torch.cumsum(counts, 0) - counts
            places = torch.arange(int(counts.sum())) + (begins - first).repeat_interleave(counts)
            weights = self.weights[chosen].repeat_interleave(counts)
            owners = chosen.repeat_interleave(counts)
            self._share = Share(active, *(x.to(self.device) for x in (places, weights, owners)))
        return self._share

    def _job_of(self, active: tuple[int, ...]) -> Job:
        places = array("q", active)
        tensors = [self.counts, self.gaps, self.begins, self.weights]
        tensors += self.old, self.move, self.firsts, self._sums
        pointers = [places.buffer_info()[0], *(x.data_ptr() for x in tensors)]
        struct = array("q", [len(active), *pointers])
        return Job(active, struct, struct.buffer_info()[0], places)


def _spread(numel: int) -> tuple[int, int]:
    """How many numbers of a tensor are looked at, and how far lines of them are apart."""
    if numel <= SAMPLE:
        return numel, LINE
    lines = numel // LINE
    every = -(-lines // (SAMPLE // LINE)) // 2 * 2 + 1
    return -(-lines // every) * LINE, every * LINE


@cache
def _library() -> ctypes.CDLL:
    made = toolchain.load((Path(native.__file__).parent / "watch.h").read_text("utf-8"))
    for function, pointers in ((made.look, 3), (made.follow, 2)):
        function.argtypes = [ctypes.c_void_p] * pointers
        function.restype = None
    return made
