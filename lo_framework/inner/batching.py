"""One function over K tasks: ``vmap`` where the task allows it, else a plain loop.

A task says so by ``vmappable = False`` (recurrent layers of ``torch.nn``, Python control flow that
looks at data). The loop gives the same numbers and the same derivatives, at the price of K times
the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap


def over_tasks(
    task: Any, function: Callable[..., Any], chunk_size: int | None = None
) -> Callable[..., Any]:
    """``function`` of one task's tensors, lifted to tensors with K tasks in front, ``chunk_size``
    of them at once.
    """
    if getattr(task, "vmappable", True):
        return vmap(function, chunk_size=chunk_size)

    def looped(*arguments: Any) -> Any:
        num = len(_first(arguments))
        return _stack([function(*_row(arguments, k)) for k in range(num)])

    return looped


def _first(tree: Any) -> Tensor:
    """Some tensor of nested dicts and tuples."""
    leaves = _leaves(tree)
    if not leaves:
        raise ValueError("no tensor to take the number of tasks from")
    return leaves[0]


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [
        leaf
        for part in (tree.values() if isinstance(tree, dict) else tree)
        for leaf in _leaves(part)
    ]


def _row(tree: Any, k: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[k]
    return (
        {n: _row(x, k) for n, x in tree.items()}
        if isinstance(tree, dict)
        else tuple(_row(x, k) for x in tree)
    )


def _stack(rows: list[Any]) -> Any:
    first = rows[0]
    if isinstance(first, Tensor):
        return torch.stack(rows)
    if isinstance(first, dict):
        return {name: _stack([row[name] for row in rows]) for name in first}
    return tuple(_stack([row[i] for row in rows]) for i in range(len(first)))
