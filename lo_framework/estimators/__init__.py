"""Estimators of the meta-gradient and their registry."""

from __future__ import annotations

from typing import Any

from lo_framework.estimators.es import ES
from lo_framework.estimators.pes import PES
from lo_framework.estimators.tbptt import TBPTT
from lo_framework.estimators.truncation import Truncation
from lo_framework.inner.step import Family
from lo_framework.objectives import AnyObjective
from lo_framework.spec import UserError, build_config, nearest, parse_spec

ESTIMATORS: dict[str, Any] = {"tbptt": TBPTT, "es": ES, "pes": PES}


def make_estimator(
    spec: str, family: Family, objective: AnyObjective, truncation: Truncation, num_tasks: int
) -> Any:
    """``"pes"`` or ``"tbptt:second_order=false,segments=0"`` for one shard of ``num_tasks`` tasks."""
    cls, config = _parsed(spec)
    return cls(family, objective, truncation, num_tasks, config)


def estimator_config(spec: str) -> Any:
    """The settings that ``spec`` stands for; raises UserError."""
    return _parsed(spec)[1]


def _parsed(spec: str) -> tuple[Any, Any]:
    name, options = parse_spec(spec)
    if name not in ESTIMATORS:
        raise UserError(
            f"unknown estimator {name!r}{nearest(name, ESTIMATORS)}; there are {', '.join(ESTIMATORS)}"
        )
    cls = ESTIMATORS[name]
    return cls, build_config(cls.Config, options, owner=name)


__all__ = ["ESTIMATORS", "Truncation", "estimator_config", "make_estimator"]
