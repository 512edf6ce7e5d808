"""The numbers of a measured point by key: ``"train_loss"``, ``"l2.gap@0.05"`` (field ``gap`` of the
l2 ball, radius 0.05).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lo_framework.eval.sharpness.result import Result

EQUAL, MATCHED = "equal", "matched"
PLACES = {EQUAL: "at equal steps", MATCHED: "at matched training loss"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """``title`` as tables and the page show it; ``compared``: differences are tested; ``percent``:
    an accuracy.
    """

    key: str
    title: str
    compared: bool = True
    percent: bool = False

    def fixed_by(self, place: str) -> bool:
        """Matching the training loss leaves nothing of it to compare."""
        return place == MATCHED and self.key == "train_loss"


FIRST = (
    Metric(key="train_loss", title="train loss"),
    Metric(key="test_loss", title="test loss"),
    Metric(key="train_accuracy", title="train acc.", compared=False, percent=True),
    Metric(key="test_accuracy", title="test acc.", percent=True),
)
LAST = (
    Metric(key="gradient_norm", title="‖∇L‖"),
    Metric(key="top_eigenvalue", title="λ max"),
    Metric(key="trace", title="tr H"),
    Metric(key="ggn_top_eigenvalue", title="λ max (GGN)", compared=False),
    Metric(key="doubling_radius", title="r₂: M = 2L", compared=False),
)


def metrics_of(result: Result) -> list[Metric]:
    """What tables show, in their order."""
    middle = []
    for r in result.settings["radii"]:
        middle += [
            Metric(key=f"l2.gap@{r:g}", title=f"h({r:g})"),
            Metric(key=f"l2.curvature@{r:g}", title=f"h − r‖∇L‖ ({r:g})"),
            Metric(key=f"l2.first_order@{r:g}", title=f"R1({r:g})"),
        ]
    return [*FIRST, *middle, *LAST]


def read(point: Mapping[str, Any] | None, key: str) -> float:
    """The number, or nan if it was not measured or not finite."""
    if not point:
        return float("nan")
    name, at, radius = key.partition("@")
    if not at:
        value = point["values"].get(key)
    else:
        ball, _, field = name.partition(".")
        found = point["balls"].get(ball)
        wanted = f"{float(radius):g}"
        places = [i for i, r in enumerate(found["radii"]) if f"{r:g}" == wanted] if found else []
        value = found[field][places[0]] if places and field in found else None
    return float("nan") if value is None else float(value)
