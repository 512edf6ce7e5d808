"""Blocks: which parameters share a step size.

Every tensor is cut into ``num`` segments of equal length along its memory, which belong to the
blocks ``first``, ``first + 1``, ...: one segment for whole tensors, one per row for nodes, one
per element for weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lo_framework.errors import UserError, nearest

KINDS = ("scalar", "group", "tensor", "node", "weight")
Spec = str | Mapping[str, str | Sequence[str] | None]


class Spread(NamedTuple):
    """Where a tensor's step sizes are."""

    first: int
    num: int


@dataclass(frozen=True)
class Blocks:
    """Blocks of a list of parameters. ``names``: of the blocks; of the tensors, if each has several
    (``by_tensor``).
    """

    spreads: tuple[Spread, ...]
    names: tuple[str, ...]
    size: int
    by_tensor: bool = False

    def name(self, block: int) -> str:
        if not self.by_tensor:
            return self.names[block]
        for name, spread in zip(self.names, self.spreads):
            if spread.first <= block < spread.first + spread.num:
                return f"{name}[{block - spread.first}]"
        raise IndexError(block)


def assign(
    spec: Spec, params: Sequence[Tensor], group_of: Sequence[int], names: Sequence[str] | None
) -> Blocks:
    """Cut ``params`` into blocks.

    ``names`` are the parameters' own, None where they have none. A longer list of parameters keeps
    the blocks of a shorter one and adds to them.

    Raises:
        UserError: an unknown kind; empty or overlapping blocks, patterns that match nothing,
            parameters left over.
    """
    if isinstance(spec, Mapping):
        return _named(spec, len(params), names)
    if spec not in KINDS:
        raise UserError(
            f'unknown blocks "{spec}"{nearest(str(spec), KINDS)}; known: {", ".join(KINDS)}, or a '
            "dict of block names to regular expressions or lists of parameter names"
        )
    if spec == "scalar":
        return Blocks(tuple(Spread(0, 1) for _ in params), ("all",), 1)
    if spec == "group":
        num = max(group_of) + 1
        return Blocks(
            tuple(Spread(g, 1) for g in group_of), tuple(f"group {g}" for g in range(num)), num
        )
    spreads, first = [], 0
    for p in params:
        count = (
            1 if spec == "tensor" or p.dim() == 0 else p.shape[0] if spec == "node" else p.numel()
        )
        spreads.append(Spread(first, count))
        first += count
    names = names or [str(i) for i in range(len(params))]
    return Blocks(tuple(spreads), tuple(names), first, spec != "tensor")


def _named(
    spec: Mapping[str, str | Sequence[str] | None], num: int, names: Sequence[str] | None
) -> Blocks:
    if not spec:
        raise UserError("blocks is an empty dict: name at least one block")
    if names is None:
        raise UserError("blocks by name need named parameters: pass model.named_parameters()")
    rest = [block for block, wanted in spec.items() if wanted is None]
    if len(rest) > 1:
        raise UserError(
            f'blocks "{rest[0]}" and "{rest[1]}" both ask for the rest of the parameters'
        )
    owner: dict[str, str] = {}
    for block, wanted in spec.items():
        for name in [] if wanted is None else _members(block, wanted, names):
            if name in owner:
                raise UserError(
                    f'blocks "{owner[name]}" and "{block}" overlap: both hold parameter "{name}"'
                )
            owner[name] = block
    left = [name for name in names if name not in owner]
    if rest and not left:
        raise UserError(f'block "{rest[0]}" is empty: the others hold all parameters')
    if left and not rest:
        raise UserError(
            f'parameter "{left[0]}" is in no block: add a block for the rest, as in '
            '{"rest": None}'
        )
    owner.update(dict.fromkeys(left, *rest))
    place = {block: b for b, block in enumerate(spec)}
    return Blocks(
        tuple(Spread(place[owner[name]], 1) for name in names[:num]), tuple(spec), len(spec)
    )


def _members(block: str, wanted: str | Sequence[str], names: Sequence[str]) -> list[str]:
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise UserError(
                f'block "{block}": "{wanted}" is not a regular expression: {error}'
            ) from None
        matching = [name for name in names if pattern.search(name)]
        if not matching:
            raise UserError(f'block "{block}": "{wanted}" matches no parameter')
        return matching
    if not wanted:
        raise UserError(f'block "{block}" is empty')
    for name in wanted:
        if name not in names:
            raise UserError(f'block "{block}": no parameter "{name}"{nearest(name, names)}')
    return list(dict.fromkeys(wanted))
