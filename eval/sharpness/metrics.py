"""Numbers as JSON has them, and those of a measured point by key: ``"train_loss"``,
``"l2.gap@0.05"`` (field ``gap`` of the l2 ball, radius 0.05).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

EQUAL, MATCHED = "equal", "matched"
PLACES = {EQUAL: "at equal steps", MATCHED: "at matched training loss"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a point: ``title`` as tables show it, ``words`` as a sentence does;
    ``compared``: differences are tested; ``percent``: an accuracy.
    """

    key: str
    title: str
    words: str
    compared: bool = True
    percent: bool = False

    def fixed_by(self, place: str) -> bool:
        """Tell whether matching leaves the metric alike: matching the training loss leaves nothing
        of it to compare.
        """
        return place == MATCHED and self.key == "train_loss"


FIRST = (
    Metric(key="train_loss", title="train loss", words="training loss"),
    Metric(key="test_loss", title="test loss", words="test loss"),
    Metric(
        key="train_accuracy",
        title="train acc.",
        words="training accuracy",
        compared=False,
        percent=True,
    ),
    Metric(key="test_accuracy", title="test acc.", words="test accuracy", percent=True),
)
LAST = (
    Metric(key="gradient_norm", title="‖∇L‖", words="norm of the gradient"),
    Metric(key="top_eigenvalue", title="λ max", words="largest eigenvalue of the Hessian"),
    Metric(key="trace", title="tr H", words="trace of the Hessian"),
    Metric(
        key="ggn_top_eigenvalue",
        title="λ max (GGN)",
        words="largest eigenvalue of the Gauss-Newton matrix",
        compared=False,
    ),
    Metric(
        key="doubling_radius",
        title="r₂: M = 2L",
        words="radius in which the loss can double",
        compared=False,
    ),
)


def metrics_at(radii: Sequence[float]) -> list[Metric]:
    """Return what tables show, in their order."""
    kinds = (
        ("gap", "h({})", "rise of the loss"),
        ("curvature", "h − r‖∇L‖ ({})", "curvature part of that rise"),
        ("first_order", "R1({})", "rise by the steepest gradient"),
    )
    middle = [
        Metric(
            key=f"l2.{field}@{r:g}",
            title=title.format(f"{r:g}"),
            words=f"{words} within radius {r:g}",
        )
        for r in radii
        for field, title, words in kinds
    ]
    return [*FIRST, *middle, *LAST]


def read(point: Mapping[str, Any] | None, key: str) -> float:
    """Return the number, or nan if it was not measured or not finite."""
    if not point:
        return math.nan
    name, at, radius = key.partition("@")
    ball, _, field = name.partition(".")
    columns = point["balls"].get(ball, {}) if at else {}
    value = None if at else point["values"].get(key)
    for r, x in zip(columns.get("radii", ()), columns.get(field, ())):
        value = x if f"{r:g}" == radius else value
    return math.nan if value is None else float(value)


def number(value: Tensor | float, digits: int = 17) -> float | None:
    """A JSON number, or None if it is not finite."""
    x = float(value)
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def numbers(values: Iterable[Tensor | float], digits: int = 17) -> list[float | None]:
    return [number(x, digits) for x in values]
