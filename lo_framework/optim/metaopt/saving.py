"""Saved state: whether it is of the same kind of optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lo_framework.spec import UserError


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
            what = (
                "other blocks or parameters"
                if word == "blocks"
                else f'another {word} ("{found}", not "{value}")'
            )
            raise UserError(f"this state is of {what}: build MetaOptimize as it was saved")
    return mine
