"""States through ``torch.distributed.checkpoint``, which keeps of an optimizer's ``state_dict()``
what belongs to parameters and what stands in parameter groups, and nothing else.

So an optimizer's own entry also stands in the first parameter group, as bytes: one value of any
size that is there from the beginning, whatever is in it. And before torch saves or loads, it makes
state by a step with gradients and learning rates of zero (`is_blank_step`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.files.sealed import seal, unseal
from lo_framework.optim.shards import here_of, is_sharded, shard_of

Groups = Sequence[Mapping[str, Any]]
ZERO = "torch.distributed.optim.zero_redundancy_optimizer"


def is_blank_step(groups: Groups) -> bool:
    """Whether learning rates and gradients, of which there are some, are all zero. Every process
    comes to the same answer.
    """
    params = [p for group in groups for p in group["params"]]
    if any(float(group.get("lr", 0.0)) for group in groups) or all(p.grad is None for p in params):
        return False
    moved = torch.tensor([float(any(p.grad is not None and _some(p.grad) for p in params))])
    if shards := [shard for shard in map(shard_of, params) if shard]:
        moved = moved.to(params[0].device)
        for group in dict.fromkeys(group for shard in shards for group, _ in shard.groups()):
            torch.distributed.all_reduce(moved, group=group)
    return not bool(moved)


def _some(grad: Tensor) -> bool:
    return bool(here_of(grad).any()) if grad.layout == torch.strided else True


def pack_entry(entry: Mapping[str, Any]) -> bytes:
    """An entry of ``state_dict()`` (plain values and tensors in dicts, lists and tuples) as the
    bytes of a sealed file.
    """
    tensors: dict[str, Tensor] = {}

    def plain(x: Any) -> Any:
        if isinstance(x, Tensor):
            tensors[name := str(len(tensors))] = x
            return {"tensor": name}
        if isinstance(x, Mapping):
            return {"dict": [[plain(key), plain(value)] for key, value in x.items()]}
        if isinstance(x, tuple):
            return {"tuple": [plain(value) for value in x]}
        return [plain(value) for value in x] if isinstance(x, list) else x

    return seal(tensors, {"entry": plain(entry)})


def take_entry(
    key: str, state: Mapping[str, Any], groups: Sequence[dict[str, Any]], owner: str
) -> Any:
    """The entry of a state that is being loaded, None where it has none; ``groups``, copies of its
    parameter groups, are left without it.

    Raises:
        UserError: it is damaged.
    """
    raw = [group.pop(key, None) for group in groups]
    if state.get(key) is not None or not raw or raw[0] is None:
        return state.get(key)
    return unpack_entry(raw[0], owner)


def unpack_entry(raw: Any, owner: str) -> Any:
    """The entry of these bytes; raises UserError if they are damaged or none."""
    expected = f"what {owner} keeps in the first parameter group of its state"
    if not isinstance(raw, bytes):
        raise UserError(f"this state is damaged: expected bytes, {expected}")
    tensors, record = unseal(raw, "this state", expected)

    def made(x: Any) -> Any:
        if isinstance(x, list):
            return [made(value) for value in x]
        if not isinstance(x, dict):
            return x
        if "tensor" in x:
            return tensors[x["tensor"]]
        if "dict" in x:
            return {made(key): made(value) for key, value in x["dict"]}
        return tuple(made(value) for value in x["tuple"])

    return made(record["entry"])


def has_shards(x: Any) -> bool:
    """Whether anything in these dicts and lists is sharded: no process can write it down alone."""
    if isinstance(x, Mapping):
        return any(map(has_shards, x.values()))
    return any(map(has_shards, x)) if isinstance(x, (list, tuple)) else is_sharded(x)


def refuse_zero_redundancy(owner: str) -> None:
    """Raise UserError if it is a ``ZeroRedundancyOptimizer`` that makes this optimizer, of some of
    the parameters.

    Nothing in the arguments tells: groups look as those of a smaller model. So this looks at who is
    calling, where that class has been imported at all.
    """
    module = sys.modules.get(ZERO)
    frame = inspect.currentframe() if module else None
    while frame is not None:
        if frame.f_code is module.ZeroRedundancyOptimizer._init_local_optimizer.__code__:  # type: ignore[union-attr]
            raise UserError(
                f"{owner} looks at all tensors of the model, and ZeroRedundancyOptimizer gives "
                "each process some of them: use fully_shard, which shards every tensor"
            )
        frame = frame.f_back
