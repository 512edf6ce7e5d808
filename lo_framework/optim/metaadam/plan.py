"""What a step works on: the tensors with a gradient, their token groups, and sets of them that share all numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.grouping import KEYS, Grouping, by_key, make_grouping
from lo_framework.optim.metaopt.blocks import assign
from lo_framework.optim.packs import sub_layout
from optimizees.spec import UserError

Grouped = str | Mapping[str, str | Sequence[str] | None] | Callable[[str, Tensor], Hashable]
Named = tuple[Hashable, int, str]  # of a group: what tells it from others, its key, its label


@dataclass(frozen=True, eq=False)
class Set:
    """Tensors of one parameter group, one token group and one age."""

    group: int
    token: int
    members: tuple[int, ...]  # places in the list of all parameters


@dataclass(frozen=True, eq=False)
class Plan:
    """``layout`` and ``grouping`` are those of the active tensors, on the network's device."""

    active: tuple[int, ...]
    layout: Layout
    grouping: Grouping
    sets: tuple[Set, ...]


def name_groups(
    grouping: Grouped, layout: Layout, params: Sequence[Tensor], parts: Sequence[int], named: bool, published: bool
) -> list[Named]:
    """The token group of every tensor of ``layout``.

    Args:
        grouping: a name, a dict of labels to regular expressions, lists of names or None (all others), or a function
            of a tensor's name and the tensor.
        parts: parameter group of each tensor.
        named: whether the tensors have names of their own.

    Raises:
        UserError: an unknown name; a dict with empty or overlapping groups.
    """
    if isinstance(grouping, str):
        made = make_grouping(layout, grouping, parts, published=published)
        rows = list(zip(made.keys.tolist(), made.labels))
        return [(made.labels[k] + f" #{k}", *rows[k]) for k in made.index.tolist()]
    names = [slot.name for slot in layout.slots]
    if callable(grouping):
        found = [grouping(name, p) for name, p in zip(names, params, strict=True)]
        try:
            order = {value: k for k, value in enumerate(dict.fromkeys(found))}
        except TypeError:
            raise UserError("grouping: the function must return something hashable, such as a string") from None
        return [(value, order[value] % KEYS, str(value)) for value in found]
    blocks = assign(grouping, params, parts, names if named else None)
    owners = [spread.first for spread in blocks.spreads]
    return [(k, k % KEYS, blocks.names[k]) for k in owners]


def make_plan(
    active: tuple[int, ...], layout: Layout, groups: Sequence[Named], parts: Sequence[int], ages: Sequence[int],
    device: torch.device,
) -> Plan:  # fmt: skip
    grouping = by_key([groups[i] for i in active], device)
    tokens = grouping.index.tolist()
    sets: dict[tuple[int, int, int], list[int]] = {}
    for i, token in zip(active, tokens, strict=True):
        sets.setdefault((parts[i], token, ages[i]), []).append(i)
    made = tuple(Set(group, token, tuple(members)) for (group, token, _), members in sets.items())
    return Plan(active, sub_layout(layout, active).to(device), grouping, made)
