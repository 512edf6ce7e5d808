"""A point that is being measured, and what was found there so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lo_framework.eval.running.pool import describe
from lo_framework.eval.sharpness.settings import Level, Settings
from lo_framework.eval.sharpness.surface import Surface


def _empty() -> dict[str, Any]:
    return {"values": {}, "balls": {}, "spectrum": {}, "slices": {}, "failures": {}}


@dataclass
class Point:
    """``data``: JSON values by kind. ``vectors``: top eigenvectors ``[k, N]`` once they are known,
    for the slices.
    """

    surface: Surface
    settings: Settings
    data: dict[str, Any] = field(default_factory=_empty)
    vectors: Tensor | None = None

    @property
    def level(self) -> Level:
        return self.settings.level

    def fail(self, what: str, error: Exception) -> None:
        """Name a part that could not be measured."""
        self.data["failures"][what] = describe(error)
