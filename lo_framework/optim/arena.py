"""Where optimizers keep the state of parameters: in packs of tensors, of which a step works on
stretches.

A model has many small tensors (biases, norms) and a few large ones. A call of a torch operation
costs microseconds whatever its size, so small neighbours share one block of state, a *pack*, and
are updated together; a large tensor is a pack of its own. A step works on *runs*: stretches of a
pack whose tensors all have a gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

State = dict[str, Tensor]
Plan = TypeVar("Plan")

KEPT_PLANS = 8  # few sets of gradients occur in a training


@dataclass(eq=False)
class Pack:
    """Tensors of one parameter group on one device with one block of state ``[..., n]``."""

    members: tuple[int, ...]  # places in the list of all parameters, ascending
    offsets: tuple[int, ...]  # first column of each member, and the end
    group: int
    device: torch.device
    dtype: torch.dtype  # of the first member
    state: State = field(default_factory=dict)

    def views(self, place: int, shape: torch.Size) -> State:
        """The state of one member, ``[*lead, *shape]``."""
        begin, end = self.offsets[place : place + 2]
        return {
            name: x[..., begin:end].view((*x.shape[:-1], *shape)) for name, x in self.state.items()
        }


def make_pack(members: Sequence[int], params: Sequence[Tensor], group_of: Sequence[int]) -> Pack:
    """The pack of these parameters, without state."""
    offsets = itertools.accumulate((params[i].numel() for i in members), initial=0)
    first = params[members[0]]
    return Pack(tuple(members), tuple(offsets), group_of[members[0]], first.device, first.dtype)


def form_packs(
    indices: Iterable[int],
    params: Sequence[Tensor],
    group_of: Sequence[int],
    sizes: Callable[[torch.device], tuple[int, int]],
    *,
    mix_dtypes: bool,
    numels: Sequence[int] | None = None,
    apart: Sequence[Hashable] | None = None,
) -> list[Pack]:
    """Cut parameters into packs: large ones alone, small ones of one group and device together.

    ``sizes(device)`` are the size up to which a tensor is small, and the limit of a pack. A
    function of the parameters alone, so a resumed run sums in the same order as an unbroken one.
    ``numels`` are sizes of whole tensors where ``params`` are shards, so that all processes come to
    the same packs; tensors of different ``apart`` share none.
    """
    packs: list[list[int]] = []
    open_packs: dict[Hashable, tuple[list[int], int]] = {}
    for i in indices:
        p = params[i]
        small, limit = sizes(p.device)
        size = p.numel() if numels is None else numels[i]
        if size > small:
            packs.append([i])
            continue
        dtype, other = None if mix_dtypes else p.dtype, None if apart is None else apart[i]
        key = (group_of[i], p.device, dtype, other)
        pack, numel = open_packs.get(key, ([], limit + 1))
        if numel + size > limit:
            pack, numel = [], 0
            packs.append(pack)
        pack.append(i)
        open_packs[key] = pack, numel + size
    return [make_pack(members, params, group_of) for members in packs]


def stretches(values: Sequence[object]) -> list[tuple[int, int]]:
    """Maximal stretches ``[first, last)`` of equal values other than None."""
    alike = itertools.groupby(range(len(values)), values.__getitem__)
    places = [list(group) for value, group in alike if value is not None]
    return [(group[0], group[-1] + 1) for group in places]


def keep_plan(plans: dict[Hashable, Plan], key: Hashable, make: Callable[[], Plan]) -> Plan:
    """The plan for ``key``, made where there is none yet."""
    if key not in plans:
        if len(plans) >= KEPT_PLANS:
            plans.clear()
        plans[key] = make()
    return plans[key]
