"""What a pass touches beside the parameters: gradients, buffers, random state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SEEDED = ("cuda", "xpu")  # accelerators whose generators are read and set per device


class Kept(NamedTuple):
    """What a pass may change beside the parameters, as it was before."""

    grads: list[Tensor | None]
    buffers: list[tuple[nn.Module, str, Tensor, Tensor | None]]  # place, tensor, copy
    noise: list[Tensor] | None


class Surroundings:
    """Tensors and generators that a pass touches beside the parameters. Made before the first pass,
    whose noise it remembers.

    Args:
        params: the optimizer's parameters.
        model: its buffers (running statistics) and the gradients of its other parameters are
            protected as well.
        same_noise: later passes draw the same random numbers as the first, and do not move the
            generators.
    """

    def __init__(self, params: Sequence[Tensor], model: nn.Module | None, same_noise: bool) -> None:
        self.params = list(dict.fromkeys([*params, *(model.parameters() if model else ())]))
        self.model = model
        devices = {p.device for p in self.params if p.device.type in _SEEDED}
        self.devices = sorted(devices, key=str) if same_noise else []
        self.first_noise = self._noise() if same_noise else None

    def keep(self) -> Kept:
        """What a pass may change, as it is now."""
        modules = self.model.modules() if self.model else ()
        buffers = [
            (m, name, b, b.clone() if is_writable(b) else None)
            for m in modules
            for name, b in m.named_buffers(recurse=False)
        ]
        noise = self._noise() if self.first_noise else None
        return Kept([p.grad for p in self.params], buffers, noise)

    def before_pass(self) -> None:
        """Clear the way for a later pass: no gradients, and the noise of the first."""
        for p in self.params:
            p.grad = None
        if self.first_noise:
            self._set_noise(self.first_noise)

    def put_back(self, kept: Kept) -> None:
        """Everything as it was kept."""
        for p, grad in zip(self.params, kept.grads):
            p.grad = grad
        for module, name, buffer, copy in kept.buffers:
            if copy is not None:
                buffer.copy_(copy)
            # Some modules put a new tensor in the place of a buffer.
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)
        if kept.noise:
            self._set_noise(kept.noise)

    def has_drawn(self, kept: Kept) -> bool:
        """Whether random numbers have been drawn since."""
        return not all(map(torch.equal, self._noise(), kept.noise)) if kept.noise else False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Start a later pass without gradients; afterwards everything is as it was."""
        kept = self.keep()
        try:
            self.before_pass()
            yield
        finally:
            self.put_back(kept)

    def rewind(self) -> None:
        """Draw the numbers of the first pass again."""
        assert self.first_noise is not None
        self._set_noise(self.first_noise)

    def _noise(self) -> list[Tensor]:
        states = [torch.get_device_module(device).get_rng_state(device) for device in self.devices]
        return [torch.get_rng_state(), *states]

    def _set_noise(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:]):
            torch.get_device_module(device).set_rng_state(state, device)


def is_writable(x: Tensor) -> bool:
    """Whether it can be changed in place: an expanded tensor cannot."""
    return x.layout == torch.strided and all(
        step > 0 or size <= 1 for step, size in zip(x.stride(), x.shape)
    )
