"""What a step works on: the tensors with a gradient, their token groups, and sets of them that
share all numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.grouping import GROUPINGS, KEYS, Grouping, by_key, make_grouping
from lo_framework.optim.arena import sub_layout
from lo_framework.optim.blocks import assign
from lo_framework.optim.metaadam.statistics import Order, make_order
from lo_framework.spec import UserError

Grouped = str | Mapping[str, str | Sequence[str] | None] | Callable[[str, Tensor], Hashable]
Named = tuple[Hashable, int, str]  # of a group: what tells it from others, its key, its label


@dataclass(frozen=True, eq=False)
class Set:
    """Tensors of one parameter group, one token group, one age, one dtype and one device."""

    group: int
    token: int
    members: tuple[int, ...]  # places in the list of all parameters


@dataclass(frozen=True, eq=False)
class Plan:
    """``layout``, ``grouping`` and ``order`` are those of the active tensors, on the network's
    device.
    """

    active: tuple[int, ...]
    layout: Layout
    grouping: Grouping
    order: Order
    sets: tuple[Set, ...]


class Held(NamedTuple):
    """The factors of the last step: of which tensors, and by group."""

    active: tuple[int, ...]
    labels: tuple[str, ...]
    alpha: Tensor
    beta: Tensor


def model_order(names: Sequence[str]) -> list[str]:
    """Dotted names as their model has them, also where parameter groups have parted a layer's
    weight and bias.

    What belongs together by its name comes together, at the place of its first; numbers count,
    parameters between which a child of their module was are before it, and a weight is before its
    bias. So a model's order stays as it is.
    """
    tree: dict[str, Any] = {}
    for name in names:
        at = tree
        for word in name.split("."):
            at = at.setdefault(word, {})

    def walk(at: dict[str, Any], path: str) -> Iterator[str]:
        words = sorted(at, key=int) if all(word.isdecimal() for word in at) else list(at)
        own = [k for k, word in enumerate(words) if not at[word]]
        if own and own[-1] - own[0] >= len(own):
            words.sort(key=lambda word: bool(at[word]))
        if "bias" in words and "weight" in words[words.index("bias") :]:
            words.remove("bias")
            words.insert(words.index("weight") + 1, "bias")
        for word in words:
            if path + word in known:
                yield path + word
            yield from walk(at[word], f"{path}{word}.")

    known = set(names)
    return list(walk(tree, ""))


def name_groups(
    grouping: Grouped,
    layout: Layout,
    params: Sequence[Tensor],
    parts: Sequence[int],
    named: bool,
    published: bool,
) -> list[Named]:
    """The token group of every tensor of ``layout``.

    Args:
        grouping: a name, a dict of labels to regular expressions, lists of names or None (all
            others), or a function of a tensor's name and the tensor.
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
            raise UserError(
                "grouping: the function must return something hashable, such as a string"
            ) from None
        return [(value, order[value] % KEYS, str(value)) for value in found]
    if not isinstance(grouping, Mapping):
        raise UserError(
            f"grouping must be one of {', '.join(GROUPINGS)}, a dict or a function, not {grouping!r}"
        )
    try:
        blocks = assign(grouping, params, parts, names if named else None)
    except UserError as error:
        raise UserError(f"grouping: {error}") from None
    owners = [spread.first for spread in blocks.spreads]
    return [(k, k % KEYS, blocks.names[k]) for k in owners]


def make_plan(
    active: tuple[int, ...],
    params: Sequence[Tensor],
    layout: Layout,
    groups: Sequence[Named],
    parts: Sequence[int],
    ages: Sequence[int],
) -> Plan:
    device = params[0].device
    grouping = by_key([groups[i] for i in active], device)
    tokens = grouping.index.tolist()
    sets: dict[tuple[Hashable, ...], list[int]] = {}
    for i, token in zip(active, tokens, strict=True):
        sets.setdefault((parts[i], token, ages[i], params[i].dtype, params[i].device), []).append(i)
    made = tuple(Set(key[0], key[1], tuple(members)) for key, members in sets.items())  # type: ignore[arg-type]
    order = make_order([params[i] for i in active])
    return Plan(active, sub_layout(layout, active).to(device), grouping, order, made)
