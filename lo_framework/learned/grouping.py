"""Which tensors share a token: the groups that attention runs over.

``tensor``: each alone. ``original``: all of a parameter group together. ``fine_grained``: by what
they are for, how deep they lie, and whether they are vectors (MetaAdamW, arXiv 2605.04055). A
group's key is the row of tables that mean something on another model as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lo_framework.errors import choose
from lo_framework.layout import DEPTH_THIRDS, Layout, Slot
from lo_framework.roles import layer_number

GROUPINGS = ("tensor", "original", "fine_grained")
TYPES = ("embedding", "attention", "ffn", "norm", "linear", "conv", "other")
BY_NAME = {
    "embedding": ("embed",),
    "attention": ("attn", "attention"),
    "ffn": ("ffn", "mlp", "feed_forward"),
    "norm": ("norm",),
}
PARTS = ("attention", "ffn")  # of a block: types of linear layers that only names tell
BY_ROLE = {"embedding": "embedding", "matrix": "linear", "conv": "conv", "norm": "norm"}
# Fine-grained groups: type x depth third x vector.
FINE = [
    f"{kind} {third} {shape}"
    for kind in TYPES
    for third in ("early", "middle", "late")
    for shape in ("weights", "vectors")
]
KEYS = len(FINE)


@dataclass(frozen=True, eq=False)
class Grouping:
    """S tensors in G groups, in order of first appearance."""

    index: Tensor  # [S] group of each tensor
    keys: Tensor  # [G] row of each group in a table of KEYS rows
    labels: tuple[str, ...]
    alone: bool  # every tensor is its own group, in order

    @property
    def num(self) -> int:
        return len(self.labels)

    @cached_property
    def _weights(self) -> dict[torch.dtype, Tensor]:
        return {}

    def weights(self, dtype: torch.dtype) -> Tensor:
        """``[S, G]``; a product with it is the mean over each group's tensors. Tensors are few, so
        one-hot is cheap.
        """
        if dtype not in self._weights:
            member = torch.nn.functional.one_hot(self.index, self.num).to(dtype)
            self._weights[dtype] = member / member.sum(0)
        return self._weights[dtype]

    def mean(self, x: Tensor) -> Tensor:
        """``[F, S]`` to ``[F, G]``, every tensor with the same weight."""
        return x if self.alone else x @ self.weights(x.dtype)

    def variance(self, x: Tensor) -> Tensor:
        """Population variance over each group's tensors, ``[F, G]``."""
        if self.alone:
            return torch.zeros_like(x)
        return self.mean((x - self.spread(self.mean(x))) ** 2)

    def spread(self, x: Tensor) -> Tensor:
        """``[F, G]`` back to ``[F, S]``."""
        return x if self.alone else x.index_select(-1, self.index)


def by_key(tensors: Sequence[tuple[Hashable, int, str]], device: torch.device) -> Grouping:
    """Groups of tensors with equal first entries; the other entries are a group's key and label."""
    order: dict[Hashable, tuple[int, int, str]] = {}
    for name, key, label in tensors:
        order.setdefault(name, (len(order), key, label))
    index = torch.tensor([order[name][0] for name, _, _ in tensors], device=device)
    keys = torch.tensor([key for _, key, _ in order.values()], device=device)
    labels = tuple(label for _, _, label in order.values())
    return Grouping(index, keys, labels, len(order) == len(tensors))


def make_grouping(
    layout: Layout, grouping: str, parts: Sequence[int] | None = None, *, published: bool = False
) -> Grouping:
    """Groups of ``layout``'s tensors.

    Args:
        parts: parameter group of each tensor, for ``original``; None: one.
        published: ``fine_grained`` as the released code has it.

    Raises:
        UserError: an unknown grouping.
    """
    key = (grouping, None if parts is None else tuple(parts), published)
    if key in layout.groupings:
        return layout.groupings[key]
    choose("grouping", grouping, GROUPINGS)
    tensors: list[tuple[Hashable, int, str]]
    if grouping == "tensor":
        tensors = [(i, _fine(layout, slot), slot.name) for i, slot in enumerate(layout.slots)]
    elif grouping == "original":
        tensors = [(k, k % KEYS, f"group {k}") for k in parts or (0,) * layout.num]
    else:
        row_of = _published if published else _fine
        rows = [row_of(layout, slot) for slot in layout.slots]
        tensors = [(row, row, FINE[row]) for row in rows]
    return layout.groupings.setdefault(key, by_key(tensors, layout.device))


def type_of(layout: Layout, slot: Slot) -> str:
    """By module where one told, but for the names of linear layers that are part of an attention or
    a feed-forward block; else by name where it says so, else by role; a bias is of its layer's
    type.
    """
    named = _named(slot.name)
    if slot.kind:
        return named if slot.kind == "linear" and named in PARTS else slot.kind
    if named:
        return named
    if _recurrent(slot.name):  # its pair of biases looks like a normalisation
        return "linear"
    if slot.role != "bias":
        return BY_ROLE[slot.role]
    owner = slot.name.rpartition(".")[0]
    for other in layout.slots if owner else ():
        if other.name.rpartition(".")[0] == owner and other.role in BY_ROLE:
            return BY_ROLE[other.role]
    # where names say nothing
    before = [s for s in layout.slots if s.offset < slot.offset and s.role in BY_ROLE]
    return BY_ROLE[before[-1].role] if before else "other"


def _named(name: str) -> str:
    return next(
        (kind for kind, words in BY_NAME.items() if any(word in name.lower() for word in words)), ""
    )


def _row(kind: str, bucket: int, vector: bool) -> int:
    return (TYPES.index(kind) * DEPTH_THIRDS + bucket) * 2 + vector


def _fine(layout: Layout, slot: Slot) -> int:
    """The intended groups: depth in layers, also in a net whose names carry no number; convolutions
    are a type.
    """
    return _row(type_of(layout, slot), slot.third, len(slot.shape) < 2)


def _published(layout: Layout, slot: Slot) -> int:
    """The released groups: convolutions, recurrent layers and normalisations that are not named so
    are "other"; depth is the first number in the name against the greatest of them all, and
    "middle" where there is none or only two.

    The released code asks modules for their class. Where no name tells, a LayerNorm is "other"
    here, and without a module an Embedding or a MultiheadAttention is "linear".
    """
    kind = _named(slot.name) or type_of(layout, slot)
    if not _named(slot.name) and (kind in ("conv", "norm") or _recurrent(slot.name)):
        kind = "other"
    numbers = [layer_number(s.name) for s in layout.slots]
    last, layer = max((n for n in numbers if n is not None), default=0), layer_number(slot.name)
    bucket = 1
    if layer is not None and last > 1:
        bucket = 0 if layer < last / 3 else 2 if layer > 2 * last / 3 else 1
    return _row(kind, bucket, len(slot.shape) == 1 or slot.name.endswith("bias"))


def _recurrent(name: str) -> bool:
    """Whether the tensor belongs to torch's LSTM, GRU or RNN."""
    return name.rpartition(".")[2].startswith(
        ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
    )
