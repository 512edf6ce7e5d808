"""Whether backward passes were made in a block, and onto what."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.utils.hooks import RemovableHandle


class BackwardWatch:
    """A block in which backward passes are watched.

    Attributes:
        called: whether any has reached ``params``.
        onto_old: whether the first one was added to gradients other than zero that were there.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.params = [p for p in params if p.requires_grad]
        self.called = self.onto_old = False
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> BackwardWatch:
        for p in self.params:
            self._watch(p)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, p: Tensor) -> None:
        old = reached = False

        # Not every gradient is accumulated (a closure may call autograd.grad for a penalty before
        # it zeroes), so what was there is only held against a pass that the second hook sees.
        def before(_: Tensor) -> None:
            nonlocal old
            if not (reached or self.onto_old):
                old = p.grad is not None and bool(p.grad.any())

        def after(_: Tensor) -> None:
            nonlocal reached
            self.called = True
            self.onto_old |= old and not reached
            reached = True

        self._handles += [p.register_hook(before), p.register_post_accumulate_grad_hook(after)]
