"""The last step of a learned optimizer in numbers for a person, one of each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lo_framework.optim.learned.host import Host, Multiplier
from lo_framework.optim.learned.store import Store
from lo_framework.optim.telling import Values

MULTIPLIED = ("step_size", "decay")  # by lr, as all of an update


def quantities_of(host: Host, store: Store, multipliers: Sequence[Multiplier]) -> Values:
    """What the rule says of the last step, as ``quantity/tensor``, 0-d each. What an update is
    made of is times the ``multipliers``, one of each parameter.
    """
    if host.last is None:
        return {}
    plan, channels, shared, clock = host.last
    state = store.take(plan)
    found = host.learned.quantities(plan.layout, channels, shared, state, clock)
    places = {slot.name: i for i, slot in enumerate(store.layout.slots)}
    names = [slot.name for slot in plan.layout.slots]
    values: Values = {}
    for quantity, x in found.items():
        for name, value in zip(names, x.unbind(-1), strict=True):
            factor = multipliers[places[name]] if quantity in MULTIPLIED else 1.0
            values[f"{quantity}/{name}"] = value * factor
    for run in plan.runs:
        columns = channels.index_select(-1, run.positions)
        for k, (p, own) in enumerate(zip(run.tensors, run.states, strict=True)):
            share = _share(host, p, columns[:, k : k + 1], shared, own)
            if share is not None:
                values[f"share/{names[run.places[k]]}"] = share
    return values


def _share(
    host: Host, p: Tensor, channels: Tensor, shared: Tensor, state: dict[str, Tensor]
) -> Tensor | None:
    """The network's share in the update of one tensor, 0-d; None where there is no such thing."""
    if p.grad is None:
        return None
    flat, grad = p.reshape(-1).to(host.dtype), p.grad.reshape(-1).to(host.dtype)
    learned = host.on(p.device)
    parts = learned.parts(channels.to(p.device), shared.to(p.device), flat, grad, state)
    if not parts:
        return None
    sizes = {name: torch.linalg.vector_norm(x) for name, x in parts.items()}
    total = torch.stack([*sizes.values()]).sum()
    return sizes["network"] / total.clamp_min(torch.finfo(total.dtype).tiny)
