"""Loading an optimizer's state past torch's casts: state may be of another dtype than its
parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lo_framework.optim.base import ByPlace, refuse_other_order


def load_uncast(
    optimizer: torch.optim.Optimizer,
    state_dict: dict[str, Any],
    check: Callable[[ByPlace], None],
    rebuild: Callable[[ByPlace], None],
) -> None:
    """torch's ``load_state_dict``, without the state of parameters: that is checked before anything
    changes, and rebuilt at the end, by their places.

    Raises:
        UserError: the saved parameters have the names of these, in another order.
    """
    saved: ByPlace = {}

    # torch would cast the state to the parameters' dtype, so it is taken out before (after any
    # hooks of the user).
    def capture(_: torch.optim.Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
        refuse_other_order(optimizer, adapted["param_groups"])
        places = [k for group in adapted["param_groups"] for k in group["params"]]
        saved.update(
            {i: adapted["state"][k] for i, k in enumerate(places) if adapted["state"].get(k)}
        )
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
