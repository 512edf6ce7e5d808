"""Parameters of which a part lies on each process: DTensors, as FSDP2 (``fully_shard``) and tensor
parallelism make them.

An optimizer works on what lies here, as plain tensors that share the memory of the parameters
(`parts_of`). What it needs to know of whole tensors it asks its layout, a `ShardedLayout`: means
over tensors are sums over their shards, which the processes add up in one small call, whatever the
number of tensors. Names, shapes, roles, fan-in and sizes are those of whole tensors everywhere.

A rule that needs whole matrices (`learned.orthogonal`) gets each of them by one call that gathers
it: 4 bytes a number over the wire and in memory, one matrix at a time, and every process then
computes all of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.layout import Layout

MODULE = "torch.distributed.tensor"  # takes a second to import; without it nothing is sharded


def is_sharded(x: Any) -> bool:
    """Whether ``x`` is a DTensor."""
    module = sys.modules.get(MODULE)
    return module is not None and isinstance(x, module.DTensor)


class Shard(NamedTuple):
    """How a tensor lies on the processes of a mesh, and the shape of what lies here."""

    shape: tuple[int, ...]
    mesh: Any  # torch's DeviceMesh
    placements: tuple[Any, ...]

    def groups(self) -> Iterator[tuple[Any, int]]:
        """The groups of processes that this tensor is cut over, each with the dimension."""
        for k, placement in enumerate(self.placements):
            if not placement.is_replicate():
                yield self.mesh.get_group(k), placement.dim


def shard_of(p: Tensor) -> Shard | None:
    """None where all of ``p`` lies here."""
    if not is_sharded(p):
        return None
    x: Any = p
    return Shard(tuple(here_of(p).shape), x.device_mesh, tuple(x.placements))


def here_of(x: Tensor) -> Tensor:
    """What lies here of ``x``, in the same memory."""
    if not is_sharded(x):
        return x
    with torch.no_grad():
        here = x.to_local()  # type: ignore[attr-defined]
    # what another process is still sending
    return here.wait() if hasattr(here, "wait") else here


def refuse_partial(params: Sequence[Tensor], owner: str) -> None:
    """Raise UserError if processes hold terms of a parameter, not parts of it."""
    for p in params:
        shard = shard_of(p)
        if shard and any(placement.is_partial() for placement in shard.placements):
            raise UserError(
                f"{owner} updates parameters that are sharded or replicated, not {shard.placements}"
            )


def parts_of(params: list[Tensor]) -> list[Tensor]:
    """What lies here of each parameter; the list itself where nothing is sharded."""
    if not any(map(is_sharded, params)):
        return params
    return [here_of(p).detach() if is_sharded(p) else p for p in params]


@torch.no_grad()
def lend_gradients(parts: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Let parts have the memory and the gradients of their parameters."""
    for part, p in zip(parts, params):
        if part is not p:
            part.grad = None
            part.data = here_of(p)
            part.grad = None if p.grad is None else _placed(p.grad, p.placements)  # type: ignore[attr-defined]


def return_gradients(parts: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Let go of what was lent, whose memory is free after ``zero_grad``."""
    for part, p in zip(parts, params):
        if part is not p:
            part.grad = None


def mesh_of(params: Sequence[Tensor]) -> Any:
    """The mesh of the parameters that are sharded; of several, the one of most dimensions."""
    return max((shard.mesh for shard in map(shard_of, params) if shard), key=lambda m: m.ndim)


def counts_here(params: Sequence[Tensor], owner: str) -> list[bool]:
    """Of which parameters a sum over all processes of `mesh_of` them takes in what lies here: of
    copies, one.

    Raises:
        UserError: one is sharded over other processes.
    """
    mesh = mesh_of(params)
    groups, at = [mesh.get_group(k) for k in range(mesh.ndim)], mesh.get_coordinate()
    counts = list[bool]()
    for shard in map(shard_of, params):
        own = [group for group, _ in shard.groups()] if shard else []
        if any(group not in groups for group in own):
            raise UserError(f"{owner} needs all sharded parameters on one device mesh")
        counts.append(all(group in own or not k for group, k in zip(groups, at)))
    return counts


def sum_over_processes(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The sum of ``x`` over all processes of `mesh_of` the parameters."""
    mesh, x = mesh_of(params), x.clone()
    for k in range(mesh.ndim):
        torch.distributed.all_reduce(x, group=mesh.get_group(k))
    return x


def are_several() -> bool:
    """Whether this process is one of several that train together."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def _placed(x: Any, placements: Sequence[Any]) -> Tensor:
    """What lies here of ``x`` once it is placed so."""
    if is_sharded(x) and x.placements != tuple(placements):
        x = x.redistribute(placements=placements)
    return here_of(x)


@dataclass(frozen=True)
class ShardedLayout(Layout):
    """A layout of which shards lie here (None: all of the tensor)."""

    shards: tuple[Shard | None, ...] = ()

    @cached_property
    def sizes(self) -> list[int]:
        return [
            slot.numel if shard is None else math.prod(shard.shape)
            for slot, shard in zip(self.slots, self.shards, strict=True)
        ]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def pick(self, members: Sequence[int]) -> Layout:
        picked = cast("ShardedLayout", super().pick(members))
        return replace(picked, shards=tuple(self.shards[i] for i in members))

    @cached_property
    def _groups(self) -> list[tuple[Any, Tensor]]:
        """Groups of processes, and the tensors that are cut over each."""
        found: dict[Any, list[int]] = {}
        for i, shard in enumerate(self.shards):
            for group, _ in shard.groups() if shard else ():
                found.setdefault(group, []).append(i)
        return [(group, torch.tensor(i, device=self.device)) for group, i in found.items()]

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each tensor: numbers here, numbers of the whole, whether these differ."""
        here = torch.tensor(self.sizes, device=self.device, dtype=torch.float64)
        whole = here.new_tensor([slot.numel for slot in self.slots])
        is_cut = [shard is not None and any(shard.groups()) for shard in self.shards]
        return here, whole, torch.tensor(is_cut, device=self.device)

    def over_shards(self, means: Tensor) -> Tensor:
        if not self._groups or not len(means):
            return means
        here, whole, is_cut = self._numbers
        sums = torch.where(here > 0, means * here.to(means), 0.0)  # the mean of nothing is NaN
        for group, columns in self._groups:
            some = sums.index_select(-1, columns).contiguous()
            torch.distributed.all_reduce(some, group=group)
            sums.index_copy_(-1, columns, some)
        return torch.where(is_cut, sums / whole.clamp_min(1.0).to(means), means)

    def axis_mean(self, x: Tensor, rank: int) -> Tensor:
        parts, lead = list(x.split(self.sizes, dim=-1)), x.shape[:-1]
        sums: dict[int, Tensor] = {}
        cut: dict[Any, list[int]] = {}  # over which group the axis of which tensors is
        for i, (slot, shard) in enumerate(zip(self.slots, self.shards, strict=True)):
            dims = len(slot.shape)
            if dims < 2:
                continue
            axis = sorted(range(dims), key=slot.shape.__getitem__)[rank]
            here = parts[i].reshape(*lead, *(slot.shape if shard is None else shard.shape))
            parts[i] = here
            sums[i] = here.sum(axis - dims, keepdim=True) / slot.shape[axis]
            for group, dim in shard.groups() if shard else ():
                if dim == axis:
                    cut.setdefault(group, []).append(i)
        for group, members in cut.items():
            together = torch.cat([sums[i].reshape(-1) for i in members])
            torch.distributed.all_reduce(together, group=group)
            for i, part in zip(members, together.split([sums[i].numel() for i in members])):
                sums[i] = part.view_as(sums[i])
        for i, mean in sums.items():
            parts[i] = mean.expand_as(parts[i]).reshape(*lead, self.sizes[i])
        return torch.cat(parts, dim=-1)

    def gathered(self, i: int, part: Tensor) -> Tensor:
        shard = self.shards[i]
        if shard is None:
            return super().gathered(i, part)
        return self.shown(i, part.reshape(shard.shape)).full_tensor()  # type: ignore[attr-defined]

    def kept(self, i: int, whole: Tensor) -> Tensor:
        shard = self.shards[i]
        if shard is None:
            return super().kept(i, whole)
        tensor = sys.modules[MODULE]
        copies = [tensor.Replicate()] * shard.mesh.ndim
        whole = whole.reshape(self.slots[i].shape)
        given = tensor.DTensor.from_local(whole, shard.mesh, copies, run_check=False)
        return given.redistribute(placements=shard.placements).to_local().reshape(-1)

    def shown(self, i: int, x: Tensor) -> Tensor:
        """State of tensor ``i`` as it lies here, ``[*lead, *part]``, as a DTensor ``[*lead,
        *shape]`` in the same memory.
        """
        shard = self.shards[i]
        if shard is None:
            return x
        lead = x.shape[: x.dim() - len(shard.shape)]
        return shown(x, (*lead, *self.slots[i].shape), shard)


def shown(x: Tensor, shape: tuple[int, ...], shard: Shard) -> Tensor:
    """What lies here, ``x [*lead, *part]``, as the DTensor of this ``shape [*lead, *whole]``."""
    tensor = sys.modules[MODULE]
    more = len(shape) - len(shard.shape)
    placements = [_shifted(placement, more) for placement in shard.placements]
    stride = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    return tensor.DTensor.from_local(
        x, shard.mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(stride)
    )


def _shifted(placement: Any, more: int) -> Any:
    """The placement of a tensor with so many more dimensions in front."""
    if not more or placement.is_replicate():
        return placement
    factor = getattr(placement, "split_factor", None)  # of FSDP2 over tensor parallelism
    options = {} if factor is None else {"split_factor": factor}
    return type(placement)(placement.dim + more, **options)


def over_shards(layout: Layout, means: dict[int, Tensor]) -> dict[int, Tensor]:
    """Means over what lies here of some tensors to those over whole tensors, 0-d, by their
    places.
    """
    if not means:
        return means
    x = torch.stack([*means.values()])
    return dict(zip(means, layout.pick([*means]).to(x.device).over_shards(x).unbind()))


def localized(
    state: Mapping[str, Any], leads: Mapping[str, tuple[int, ...]], p: Tensor
) -> dict[str, Any]:
    """Saved state of a parameter, of what is shaped as that (``leads``) what lies here.

    Raises:
        UserError: it is sharded otherwise.
    """
    shard, found = shard_of(p), dict(state)
    for name in leads:  # in one order on all processes, which may speak to each other here
        x = state.get(name)
        if x is None or (shard is None and not is_sharded(x)):
            continue
        if shard is None or (is_sharded(x) and x.device_mesh != shard.mesh):
            raise UserError(
                "this state is sharded over other processes than these parameters: load it through "
                "torch.distributed.checkpoint, which shards it anew"
            )
        if not is_sharded(x):  # of the whole tensor
            copies = [sys.modules[MODULE].Replicate()] * shard.mesh.ndim
            x = x.to(p.device)
            x = sys.modules[MODULE].DTensor.from_local(x, shard.mesh, copies, run_check=False)
        more = len(leads[name])
        found[name] = _placed(x, [_shifted(placement, more) for placement in shard.placements])
    return found


def sharded(layout: Layout, params: Sequence[Tensor]) -> Layout:
    """The layout of these parameters, which knows of their shards, if there are any."""
    if not any(map(is_sharded, params)):
        return layout
    fields = {name: getattr(layout, name) for name in ("slots", "device", "matrices")}
    return ShardedLayout(**fields, shards=tuple(map(shard_of, params)))
