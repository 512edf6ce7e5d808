"""The frozen description of a flat parameter arena.

An optimizee's parameters live in one flat vector ``[N]`` (``[K, N]`` for K tasks). A
:class:`Layout` says which part of it is which tensor, and what that tensor is *for* (its role), so
that an update rule written for ``[F, N]`` features can reduce per tensor and broadcast back.
Reductions go through split: they are exact on uneven tensors, deterministic on every device (an
atomic scatter is not), and need no one-hot matrix (tensors x parameters: 3.5 GB for 88 tensors of
10M parameters).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from lo_framework.roles import LAYERS, ROLES, TensorRole, layer_number, roles_by_shape

DEPTH_THIRDS = 3
POSITIONS = ("first", "hidden", "last")


@dataclass(frozen=True)
class Slot:
    """One tensor of the arena.

    Attributes:
        role: one of :data:`ROLES`.
        depth: 0 at the first layer, 1 at the last.
        numbered: the first number in its name over the greatest of all names (0 without one).
        position: of the layer it belongs to, one of :data:`POSITIONS`. Layers are the matrices and
            convolutions; vectors and embeddings before the first of them belong to it, other
            vectors to the one before them. The only layer is the last.
        fan_in: how many numbers enter an output of its layer (``in * height * width`` of a
            convolution).
        kind: the type of its module, where one has told (`TensorRole.kind`).
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    numel: int
    role: str
    depth: float
    numbered: float = 0.0
    position: str = "last"
    fan_in: int = 1
    kind: str = ""

    @property
    def third(self) -> int:
        """0, 1 or 2: which third of the network's depth."""
        return min(DEPTH_THIRDS - 1, int(DEPTH_THIRDS * self.depth))

    @property
    def role_key(self) -> int:
        """Row of a (role x depth third) table: the name under which per-group values mean something
        on another model.
        """
        return ROLES.index(self.role) * DEPTH_THIRDS + self.third


@dataclass(frozen=True)
class Layout:
    """Names, shapes, offsets and roles of the tensors of one flat arena; ``device`` is where its
    constant tensors lie, ``matrices`` how many matrices and convolutions the whole model has (1 for
    none).
    """

    DESCRIPTORS: ClassVar[int] = 2 + len(ROLES)
    POSITION_KEYS: ClassVar[int] = len(ROLES) * len(POSITIONS)
    slots: tuple[Slot, ...]
    device: torch.device = field(default=torch.device("cpu"), compare=False)
    matrices: int = 1

    @staticmethod
    def of(
        shapes: Mapping[str, Sequence[int]], roles: Mapping[str, TensorRole] | None = None
    ) -> Layout:
        """Lay out tensors in the given order. ``roles``: as a module has them (`roles_by_module`);
        None: by shapes and order, and by names only for embeddings.
        """
        sizes = {name: tuple(int(d) for d in shape) for name, shape in shapes.items()}
        if not sizes:
            raise ValueError("a layout needs at least one tensor")
        known = roles or roles_by_shape(sizes)
        read = [known[name] for name in sizes]
        words = [each.role for each in read]
        # A layer begins with each tensor of two or more dimensions; vectors belong to the layer
        # before them.
        starts = [
            len(shape) >= 2 and word not in ("bias", "norm")
            for shape, word in zip(sizes.values(), words, strict=True)
        ]
        layers = [max(n - 1, 0) for n in accumulate(starts)]
        owners = _layer_of(words)
        first, last = min(owners), max(owners)
        numbers = [layer_number(name) or 0 for name in sizes]
        deepest, greatest = max(*layers, 1), max(*numbers, 1)
        slots, offset = [], 0
        for k, (name, shape) in enumerate(sizes.items()):
            numel, owner = math.prod(shape), owners[k]
            position = "last" if owner == last else "first" if owner == first else "hidden"
            place = (position, read[owner].fan_in, read[k].kind)
            depth, numbered = layers[k] / deepest, numbers[k] / greatest
            slots.append(Slot(name, shape, offset, numel, words[k], depth, numbered, *place))
            offset += numel
        return Layout(tuple(slots), matrices=max(1, sum(word in LAYERS for word in words)))

    def to(self, device: torch.device) -> Layout:
        """This layout with its constant tensors on ``device``: rules use them at every step."""
        return self if device == self.device else replace(self, device=device)

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers of each tensor lie here: all of them."""
        return [slot.numel for slot in self.slots]

    @property
    def size(self) -> int:
        """N, the number of parameters."""
        return self.slots[-1].offset + self.slots[-1].numel

    @property
    def num(self) -> int:
        """S, the number of tensors."""
        return len(self.slots)

    @cached_property
    def fans(self) -> Tensor:
        """The fan-in of each tensor's layer, ``[S]``."""
        return torch.tensor([float(slot.fan_in) for slot in self.slots], device=self.device)

    @cached_property
    def groupings(self) -> dict[Any, Any]:
        """Groupings of these tensors that have been made; see `learned.grouping`."""
        return {}

    @cached_property
    def role_keys(self) -> Tensor:
        """Row of each tensor in a (role x depth third) table, ``[S]``."""
        return torch.tensor([slot.role_key for slot in self.slots], device=self.device)

    @cached_property
    def is_layer(self) -> Tensor:
        """True at matrices and convolutions, ``[S]``."""
        return torch.tensor([slot.role in LAYERS for slot in self.slots], device=self.device)

    @cached_property
    def is_output(self) -> Tensor:
        """True at the matrix or convolution of the last layer, ``[S]``; not where it is the first
        one too: the data's dimension enters that, not a width.
        """
        several = self.matrices > 1
        last = [several and s.role in LAYERS and s.position == "last" for s in self.slots]
        return torch.tensor(last, device=self.device)

    @cached_property
    def places(self) -> Tensor:
        """One-hot role and one-hot position of each tensor, ``[roles + positions, S]``."""
        flags = [[float(slot.role == role) for slot in self.slots] for role in ROLES]
        flags += [[float(slot.position == where) for slot in self.slots] for where in POSITIONS]
        return torch.tensor(flags, device=self.device)

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """What rules need to know of each tensor, as numbers ``[..., S]``: fan-in, matrices of the
        whole model, whether it is a layer or the output, places, and one-hot `position_keys`.
        """
        keys = torch.nn.functional.one_hot(self.position_keys, self.POSITION_KEYS).T
        return {
            "fans": self.fans,
            "matrices": torch.full_like(self.fans, float(self.matrices)),
            "is_layer": self.is_layer.float(),
            "is_output": self.is_output.float(),
            "places": self.places,
            "keys": keys.float().contiguous(),
        }

    @cached_property
    def position_keys(self) -> Tensor:
        """Row of each tensor in a (role x position) table, ``[S]``."""
        keys = [
            ROLES.index(slot.role) * len(POSITIONS) + POSITIONS.index(slot.position)
            for slot in self.slots
        ]
        return torch.tensor(keys, device=self.device)

    @cached_property
    def descriptors(self) -> Tensor:
        """Features of tensors, ``[DESCRIPTORS, S]``: log size, depth in [-1, 1], one-hot role."""
        rows = [
            [math.log(s.numel) / 10.0 for s in self.slots],
            [2.0 * s.depth - 1.0 for s in self.slots],
        ]
        rows += [[float(s.role == role) for s in self.slots] for role in ROLES]
        return torch.tensor(rows, device=self.device)

    def pick(self, members: Sequence[int]) -> Layout:
        """The layout of some of the tensors, laid out anew; roles and depths stay those of the
        whole model.
        """
        slots, offset = [], 0
        for index in members:
            slots.append(replace(self.slots[index], offset=offset))
            offset += slots[-1].numel
        return replace(self, slots=tuple(slots))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One vector ``[..., N]`` from ``{name: [..., *shape]}`` (a copy)."""
        parts = []
        for slot in self.slots:
            tensor = tensors[slot.name]
            lead = tensor.shape[: tensor.dim() - len(slot.shape)]
            parts.append(tensor.reshape(*lead, slot.numel))
        return torch.cat(parts, dim=-1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors ``{name: [..., *shape]}`` of a vector ``[..., N]`` (views)."""
        lead = flat.shape[:-1]
        parts = flat.split(self.sizes, dim=-1)
        return {
            slot.name: part.reshape((*lead, *slot.shape))
            for slot, part in zip(self.slots, parts, strict=True)
        }

    def mean(self, x: Tensor) -> Tensor:
        """Mean over each tensor: ``[..., N]`` to ``[..., S]``."""
        return self.over_shards(self.mean_here(x))

    def mean_here(self, x: Tensor) -> Tensor:
        """Mean over what lies here of each tensor."""
        return torch.stack([part.mean(-1) for part in x.split(self.sizes, dim=-1)], dim=-1)

    def over_shards(self, means: Tensor) -> Tensor:
        """Means over whole tensors from those over what lies here, ``[..., S]``: the same."""
        return means

    def gathered(self, i: int, part: Tensor) -> Tensor:
        """The whole of tensor ``i``, in its shape, from what lies here ``[n]``."""
        return part.reshape(self.slots[i].shape)

    def kept(self, i: int, whole: Tensor) -> Tensor:
        """What lies here ``[n]`` of tensor ``i``."""
        return whole.reshape(-1)

    def expand(self, per_tensor: Tensor) -> Tensor:
        """Every parameter gets its tensor's value: ``[..., S]`` to ``[..., N]``."""
        lead = per_tensor.shape[:-1]
        parts = [per_tensor[..., i : i + 1].expand(*lead, n) for i, n in enumerate(self.sizes)]
        return torch.cat(parts, dim=-1)

    def axis_mean(self, x: Tensor, rank: int) -> Tensor:
        """Mean over one axis of each tensor, tiled back, ``[..., N]``: -1 the largest axis, -2 the
        second largest. A vector is its own mean.
        """
        parts = []
        for slot, part in zip(self.slots, x.split(self.sizes, dim=-1), strict=True):
            if len(slot.shape) >= 2:
                axes = range(-len(slot.shape), 0)
                axis = sorted(axes, key=lambda axis: slot.shape[axis])[rank]
                whole = part.reshape(*part.shape[:-1], *slot.shape)
                part = whole.mean(axis, keepdim=True).expand_as(whole).reshape_as(part)
            parts.append(part)
        return torch.cat(parts, dim=-1)

    @cached_property
    def vector_mask(self) -> Tensor:
        """True at parameters of tensors with fewer than two dimensions, ``[N]``."""
        return torch.cat(
            [
                torch.full((n,), len(s.shape) < 2, device=self.device)
                for s, n in zip(self.slots, self.sizes)
            ]
        )


def _layer_of(roles: Sequence[str]) -> list[int]:
    """The place in the list of roles of the layer to which each tensor belongs: itself, the one
    before it, or the first; 0 where there is none.
    """
    first = next((i for i, role in enumerate(roles) if role in LAYERS), 0)
    places = [i if role in LAYERS else 0 for i, role in enumerate(roles)]
    return [max(first, place) for place in accumulate(places, max)]
