"""The checked settings of one optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lo_framework.optim.metaopt.bases import Base, checked_betas
from lo_framework.optim.metaopt.bounds import Limits
from lo_framework.spec import UserError


@dataclass
class Settings:
    """What may change during a training, and is saved with it."""

    meta_lr: float
    gamma: float
    meta_every: int
    meta_betas: tuple[float, ...]
    limits: Limits

    def __post_init__(self) -> None:
        if not (self.meta_lr >= 0 and math.isfinite(self.meta_lr)):
            raise UserError(f"meta_lr must be at least 0, got {self.meta_lr}")
        if not 0 <= self.gamma <= 1:
            raise UserError(f"gamma must be in [0, 1], got {self.gamma}")
        if (
            isinstance(self.meta_every, bool)
            or int(self.meta_every) != self.meta_every
            or self.meta_every < 1
        ):
            raise UserError(
                f"meta_every must be a whole number of at least 1, got {self.meta_every!r}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "meta_lr": self.meta_lr,
            "gamma": self.gamma,
            "meta_every": self.meta_every,
            "meta_betas": list(self.meta_betas),
            "limits": list(self.limits),
        }

    @staticmethod
    def loaded(saved: dict[str, Any]) -> Settings:
        return Settings(
            **{
                **saved,
                "meta_betas": tuple(saved["meta_betas"]),
                "limits": Limits(*saved["limits"]),
            }
        )


def check_group(group: dict[str, Any], base: Base) -> None:
    """
    Raises:
        UserError: options of a parameter group that cannot be.
    """
    if not float(group["lr"]) >= 0:
        raise UserError(
            f"lr is a multiplier of the step size: it must be at least 0, got {group['lr']}"
        )
    if not group["weight_decay"] >= 0:
        raise UserError(f"weight_decay must be at least 0, got {group['weight_decay']}")
    if not group["eps"] >= 0:
        raise UserError(f"eps must be at least 0, got {group['eps']}")
    group["betas"] = checked_betas(group["betas"], base.betas, f'base "{base.name}"', "betas")
