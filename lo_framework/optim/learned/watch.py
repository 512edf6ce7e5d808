"""What gradients alone tell about a run of training: whether the last step raised the loss.

With ``d`` the last move of the parameters and ``g`` the gradient after it, ``g . d`` is how steeply
the loss rises where the move has led. The batch of ``g`` had no part in ``d``, so the noise of
batches does not bias it, and where the loss is convex along the move it is at least what the move
added to the loss. ``g`` before the move is no help: it is of the batch that the move was made for.

Sums are over a sample of each tensor, at most `SAMPLE` numbers at an odd distance, so that they lie
in all columns of a matrix. On a CPU a compiled function takes it from where the tensors lie.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lo_framework import native
from lo_framework.native import toolchain
from lo_framework.optim.learned.table import in_memory

SAMPLE = 2048
Parts = tuple[tuple[int, ...], Tensor, Tensor, Tensor]


class Watch:
    """A sample of ``params``, all of a model's, and of their last move by the optimizer.

    One step: ``look()``, the update, ``follow()``. ``active`` are the places of the tensors that
    have a gradient.

    Attributes:
        old, move: ``[samples]``, float32: the parameters after the last update, and what it added.
        firsts: ``[tensors]``, float64: of the first gradient that is not zero, the sum of absolute
            values; 0 before there is one.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params, self.device = list(params), params[0].device
        strides = [-(-p.numel() // SAMPLE) // 2 * 2 + 1 for p in self.params]
        counts = [-(-p.numel() // stride) for p, stride in zip(self.params, strides)]
        begins = [sum(counts[:i]) for i in range(len(counts))]
        self.counts, self.strides, self.begins = map(torch.tensor, (counts, strides, begins))
        self._parts: Parts | None = None
        self._in_place = False
        self.old = self._sample(self.params, range(len(self.params)))
        self.move = torch.zeros_like(self.old)
        self.firsts = torch.zeros(len(self.params), dtype=torch.float64, device=self.device)

    def look(self, active: tuple[int, ...]) -> Tensor:
        """``[5]``, float64, sums over the ``active`` tensors: how their last move goes along with
        their gradient (see the module), the gradient's absolute values, the squares of the move,
        those of what else has changed the parameters since, and their `firsts`. The next move is
        from here.
        """
        params = [self.params[i] for i in active]
        if not params:  # nothing lies here
            return torch.zeros(5, dtype=torch.float64, device=self.device)
        # A compiled function can read these tensors where they lie.
        self._in_place = self.old.is_cpu and in_memory(params) and not toolchain.reason()
        if self._in_place:
            grads = [p.grad for p in params]
            sums = torch.empty(5, dtype=torch.float64)
            given = self.old, self.move, self.firsts, sums
            _call("look", active, params, grads, *self._shape, *given)
            return sums
        _, places, weights, owners = self._places(active)
        slope = self._sample([p.grad for p in params], active).double() * weights  # type: ignore[misc]
        move = self.move[places].double()
        now = self._sample(params, active)
        other = (now - self.old[places]).double()
        self.old[places] = now
        sizes = torch.zeros_like(self.firsts).index_add_(0, owners, slope.abs())
        self.firsts = torch.where(self.firsts == 0, sizes, self.firsts)
        first = self.firsts[torch.unique_consecutive(owners)].sum()
        squares = [x.square() @ weights for x in (move, other)]
        return torch.stack([slope @ move, slope.abs().sum(), *squares, first])

    def follow(self, active: tuple[int, ...]) -> None:
        """Take in the update that the optimizer has made."""
        if not active:
            return
        params = [self.params[i] for i in active]
        if self._in_place:
            _call("follow", active, params, None, *self._shape, self.old, self.move)
            return
        places, now = self._places(active)[1], self._sample(params, active)
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

    @property
    def _shape(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.counts, self.strides, self.begins

    def _sample(self, tensors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
        """``[samples]`` of these tensors, parameters or their gradients."""
        strides = [int(self.strides[i]) for i in places]
        parts = [x.detach().reshape(-1)[::n] for x, n in zip(tensors, strides)]
        return torch.cat([x.to(self.device, torch.float32) for x in parts])

    def _places(self, active: tuple[int, ...]) -> Parts:
        """The ``active`` tensors, where their samples are in `old`, for how many numbers each one
        stands, and of which tensor it is.
        """
        if self._parts is None or self._parts[0] != active:
            chosen = torch.tensor(active)
            counts, begins = self.counts[chosen], self.begins[chosen]
            first = torch.cumsum(counts, 0) - counts
            places = torch.arange(int(counts.sum())) + (begins - first).repeat_interleave(counts)
            weights = self.strides[chosen].repeat_interleave(counts).double()
            owners = chosen.repeat_interleave(counts)
            places, weights, owners = (x.to(self.device) for x in (places, weights, owners))
            self._parts = active, places, weights, owners
        return self._parts


@cache
def _library() -> ctypes.CDLL:
    made = toolchain.load((Path(native.__file__).parent / "watch.h").read_text("utf-8"))
    for function, pointers in ((made.look, 10), (made.follow, 7)):
        function.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * pointers]
        function.restype = None
    return made


def _call(
    name: str,
    places: tuple[int, ...],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    *tensors: Tensor,
) -> None:
    lists = [list(places), [p.data_ptr() for p in params]]
    if grads is not None:
        lists.append([g.data_ptr() for g in grads])  # type: ignore[union-attr]
    arrays = [array("q", numbers) for numbers in lists]
    at = [x.buffer_info()[0] for x in arrays] + [x.data_ptr() for x in tensors]
    getattr(_library(), name)(len(places), *at)
