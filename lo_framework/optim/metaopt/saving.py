"""Saved state: whether it is of the same kind of optimizer, and loading it past torch's casts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from optimizees.spec import UserError

ByPlace = dict[int, dict[str, Any]]


def checked(state_dict: Mapping[str, Any], kind: Mapping[str, Any]) -> dict[str, Any]:
    """What MetaOptimize has saved beside torch's own.

    Raises:
        UserError: the state is of another optimizer class, or its kind is not ``kind``.
    """
    mine = state_dict.get("metaoptimize")
    if mine is None:
        raise UserError("this state is of another optimizer class, not of MetaOptimize")
    for word, value in kind.items():
        found = mine["kind"][word]
        if found != value:
            what = "other blocks or parameters" if word == "blocks" else f'another {word} ("{found}", not "{value}")'
            raise UserError(f"this state is of {what}: build MetaOptimize as it was saved")
    return mine


def load_uncast(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], check: Callable[[ByPlace], None],
    rebuild: Callable[[ByPlace], None],
) -> None:  # fmt: skip
    """torch's ``load_state_dict``, without the state of parameters: that is checked before anything changes, and
    rebuilt at the end, by their places.
    """
    saved: ByPlace = {}

    # torch would cast the state to the parameters' dtype, so it is taken out before (after any hooks of the user).
    def capture(_: torch.optim.Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
        places = [k for group in adapted["param_groups"] for k in group["params"]]
        saved.update({i: adapted["state"][k] for i, k in enumerate(places) if adapted["state"].get(k)})
        check(saved)
        return {**adapted, "state": {}}

    hooks = [
        optimizer.register_load_state_dict_pre_hook(capture),
        optimizer.register_load_state_dict_post_hook(lambda _: rebuild(saved), prepend=True),
    ]
    try:
        torch.optim.Optimizer.load_state_dict(optimizer, state_dict)
    finally:
        for hook in hooks:
            hook.remove()
