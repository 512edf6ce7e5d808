"""The state of a shard between two truncations, and what of it goes into a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lo_framework.episode import Carry

_CLOCKS = ("t", "horizon", "stop")


@dataclass(frozen=True)
class UnrollState:
    """A shard between two truncations. ``copies`` antithetic copies of each task share its row in
    the host tables.
    """

    carry: Carry  # [copies * K]
    t: Tensor  # [K] int64, host: steps done of the current episode
    horizon: Tensor  # [K] int64, host
    stop: Tensor  # [K] int64, host: where this episode ends (the horizon but for the first one)
    generator: torch.Generator
    extra: dict[str, Tensor]  # the estimator's own (PES: accumulated perturbations)
    drawn: dict[str, Tensor] = field(default_factory=dict)  # of each episode [K], host

    @property
    def over(self) -> bool:
        """Whether an episode in common has ended for at least half of the tasks: some that went
        non-finite wait for the others.
        """
        return bool(2 * (self.t >= self.stop).sum() >= len(self.t))


def state_to_tensors(state: UnrollState) -> dict[str, Tensor]:
    """A state as a flat dict of contiguous copies on the CPU; none shares memory with another, as
    safetensors demands.

    Names: ``params``, ``alive``, ``buffers.<name>``, ``state.<name>``, ``memory.<name>``, ``t``,
    ``horizon``, ``stop``, ``drawn.<name>``, ``extra.<name>`` and ``generator`` (the random state,
    uint8). The dict is all there is: data positions are implied by the generator.
    """
    parts = {
        **state.carry._asdict(),
        "extra": state.extra,
        "drawn": state.drawn,
        "generator": state.generator.get_state(),
    }
    parts |= {name: getattr(state, name) for name in _CLOCKS}
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, dict):
            tensors |= {f"{name}.{key}": x for key, x in part.items()}
        else:
            tensors[name] = part
    return tree_map(_on_host, tensors)


def _on_host(x: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def state_from_tensors(
    tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> UnrollState:
    """The state that :func:`state_to_tensors` wrote: its carry on ``device``, clocks and generator
    on the host.

    Raises:
        KeyError: a tensor is missing; the message names it.
    """

    def group(prefix: str) -> dict[str, Tensor]:
        names = [name for name in tensors if name.startswith(prefix + ".")]
        return {name[len(prefix) + 1 :]: one(name) for name in names}

    def one(name: str) -> Tensor:
        if name not in tensors:
            raise KeyError(f'the state of an estimator lacks the tensor "{name}"')
        return _on_host(tensors[name])

    carry = Carry(one("params"), group("buffers"), group("state"), one("alive"), group("memory"))
    generator = torch.Generator()
    generator.set_state(one("generator"))
    clocks = {name: one(name) for name in _CLOCKS}
    carry = tree_map(lambda x: x.to(device), carry)
    return UnrollState(
        carry=carry, generator=generator, extra=group("extra"), drawn=group("drawn"), **clocks
    )
