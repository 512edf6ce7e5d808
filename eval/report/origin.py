"""The section of a Markdown report that says where its numbers come from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def origin(provenance: Mapping[str, Any]) -> list[str]:
    """A title and a list: command, time, versions, platform, commit."""
    lines = [f"- {key}: {_words(value)}" for key, value in provenance.items() if value]
    return ["## Where this comes from", "\n".join(lines)] if lines else []


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {x}" for key, x in value.items() if x)
    return f"`{shlex.join(value)}`" if isinstance(value, list) else str(value)
