"""AdamW around explicit SAM, ASAM, even SAM, GSAM, GAM, LookSAM, Friendly or single-step SAM as
baselines: ``"sam:rho=0.1"``.

All but the last pay for their perturbations at every step, which is what a learned optimizer that
has absorbed them does not. Tuned over AdamW's grid like AdamW itself; the regularizer's own
settings stay as given.
"""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import Any, ClassVar

from lo_framework.eval.baselines.hand_designed import AdamW, AdamWConfig
from lo_framework.eval.baselines.registry import grid_of, register_baseline
from lo_framework.learned.base import Theta
from lo_framework.regularizers import REGULARIZERS, Regularizer

# Accelerated GAM takes half the time of the exact one, and is what its authors use.
EXPLICIT: dict[str, dict[str, Any]] = {
    "sam": {},
    "asam": {},
    "even_sam": {},
    "even_asam": {},
    "gsam": {},
    "gam": {"exact": False},
    "looksam": {},
    "fsam": {},
    "s2sam": {},
}


class ExplicitAdamW(AdamW):
    """AdamW on the corrected gradients of ``rule``."""

    rule: ClassVar[type[Regularizer]]

    def explicit(self, theta: Theta) -> Regularizer:
        return self.rule(self.config)


def _baseline(name: str, changed: dict[str, Any]) -> None:
    rule: Any = REGULARIZERS[name].build

    def check(self: Any) -> None:
        AdamWConfig.__post_init__(self)
        rule.Config.__post_init__(self)

    title = f"Explicit{rule.__name__}"
    config = make_dataclass(
        f"{title}Config",
        [(key, type(value), value) for key, value in changed.items()],
        bases=(rule.Config, AdamWConfig),  # AdamW's come first
        frozen=True,
        kw_only=True,
        namespace={"__post_init__": check},
    )
    own = {"kind": name, "Config": config, "rule": rule, "__doc__": rule.__doc__}
    register_baseline(name, grid_of("adamw"))(type(title, (ExplicitAdamW,), own))


for _name, _changed in EXPLICIT.items():
    _baseline(_name, _changed)
