"""An :class:`UnrollState` as a flat dict of tensors and back, so that a killed run goes on with the
same bits.

Names: ``params``, ``alive``, ``buffers.<name>``, ``state.<name>``, ``memory.<name>``, ``t``,
``horizon``, ``stop``, ``extra.<name>`` and ``generator`` (the random state, uint8). The dict is all
there is: data positions are implied by the generator.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lo_framework.episode import Carry
from lo_framework.estimators.truncation import UnrollState

_CLOCKS = ("t", "horizon", "stop")


def state_to_tensors(state: UnrollState) -> dict[str, Tensor]:
    """Contiguous copies on the CPU; none shares memory with ``state`` or with another, as
    safetensors demands.
    """
    parts = {
        **state.carry._asdict(),
        "extra": state.extra,
        "generator": state.generator.get_state(),
    }
    parts |= {name: getattr(state, name) for name in _CLOCKS}
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        inside = {f"{name}.{key}": x for key, x in part.items()} if isinstance(part, dict) else None
        tensors |= {name: part} if inside is None else inside
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
    return UnrollState(carry=carry, generator=generator, extra=group("extra"), **clocks)
