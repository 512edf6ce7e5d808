"""Groups of tensors that share a token, and the plan of a step: the tensors with a gradient, their
groups, and sets of them that share all numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.layout import Layout
from lo_framework.learned.grouping import GROUPINGS, KEYS, Grouping, make_grouping
from lo_framework.optim.blocks import assign
from lo_framework.optim.metaadamw.statistics import MeasuringOrder

OwnGroups = Mapping[str, str | Sequence[str] | None] | Callable[[str, Tensor], Hashable]
TokenGroup = tuple[Hashable, int, str]  # what tells it from others, its key, its label


class UpdateSet(NamedTuple):
    """Tensors of one parameter group, one token group, one age, one dtype and one device."""

    group: int
    token: int
    places: tuple[int, ...]  # in the list of all parameters


@dataclass(frozen=True, eq=False)
class Plan:
    """``layout``, ``grouping`` and ``order`` are those of the active tensors, on the network's
    device.
    """

    active: tuple[int, ...]
    layout: Layout
    grouping: Grouping
    order: MeasuringOrder
    sets: tuple[UpdateSet, ...]


def name_groups(
    grouping: str | OwnGroups,
    layout: Layout,
    params: Sequence[Tensor],
    parts: Sequence[int],
    named: bool,
    published: bool,
) -> list[TokenGroup]:
    """The token group of every tensor of ``layout``.

    Args:
        grouping: a name, a dict of labels to regular expressions, lists of names or None (all
            others), or a function of a tensor's name and the tensor.
        parts: parameter group of each tensor.
        named: whether the tensors have names of their own.

    Raises:
        UserError: an unknown name; a dict with empty or overlapping groups.
    """
    if grouping == "fine_grained" and published and not named:
        # as released: without a name a type is unknown
        grouping = lambda _, p: "unknown vectors" if p.dim() == 1 else "unknown weights"  # noqa: E731
    if isinstance(grouping, str):
        made = make_grouping(layout, grouping, parts, published=published)
        keys = made.keys.tolist()
        return [(f"{made.labels[k]} #{k}", keys[k], made.labels[k]) for k in made.index.tolist()]
    names = [slot.name for slot in layout.slots]
    if callable(grouping):
        values = [grouping(name, p) for name, p in zip(names, params, strict=True)]
        try:
            order = {value: k for k, value in enumerate(dict.fromkeys(values))}
        except TypeError:
            raise UserError(
                "grouping: the function must return something hashable, such as a string"
            ) from None
        return [(value, order[value] % KEYS, str(value)) for value in values]
    if not isinstance(grouping, Mapping):
        raise UserError(
            f"grouping must be a dict or a function, not {grouping!r}: "
            f"{', '.join(GROUPINGS)} are settings of the network"
        )
    try:
        blocks = assign(grouping, params, parts, names if named else None)
    except UserError as error:
        raise UserError(f"grouping: {error}") from None
    owners = [spread.first for spread in blocks.spreads]
    return [(k, k % KEYS, blocks.names[k]) for k in owners]
