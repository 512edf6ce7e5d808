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

from lo_framework.estimators.truncation import UnrollState
from lo_framework.inner.step import Carry

_CLOCKS = ("t", "horizon", "stop")


def state_to_tensors(state: UnrollState) -> dict[str, Tensor]:
    """Contiguous copies on the CPU; none shares memory with ``state`` or with another, as
    safetensors demands.
    """
    carry = state.carry
    tensors = {
        "params": carry.params,
        "alive": carry.alive,
        "generator": state.generator.get_state(),
    }
    tensors |= {name: getattr(state, name) for name in _CLOCKS}
    for prefix, group in (
        ("buffers", carry.buffers),
        ("state", carry.state),
        ("memory", carry.memory),
        ("extra", state.extra),
    ):
        tensors |= {f"{prefix}.{name}": x for name, x in group.items()}
    return {
        name: x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }


def state_from_tensors(
    tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> UnrollState:
    """The state that :func:`state_to_tensors` wrote: its carry on ``device``, clocks and generator
    on the host.

    Raises:
        KeyError: a tensor is missing; the message names it.
    """

    def group(prefix: str) -> dict[str, Tensor]:
        return {
            name[len(prefix) + 1 :]: copy(name) for name in tensors if name.startswith(prefix + ".")
        }

    def copy(name: str) -> Tensor:
        if name not in tensors:
            raise KeyError(f'the state of an estimator lacks the tensor "{name}"')
        return tensors[name].to("cpu", copy=True, memory_format=torch.contiguous_format)

    def moved(named: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.to(device) for name, x in named.items()}

    carry = Carry(
        copy("params").to(device),
        moved(group("buffers")),
        moved(group("state")),
        copy("alive").to(device),
        moved(group("memory")),
    )
    generator = torch.Generator()
    generator.set_state(copy("generator"))
    clocks = {name: copy(name) for name in _CLOCKS}
    return UnrollState(carry=carry, generator=generator, extra=group("extra"), **clocks)
