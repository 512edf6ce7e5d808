"""Estimators of the meta-gradient and their registry."""

from __future__ import annotations

from lo_framework.estimators import es, pes, tbptt
from lo_framework.estimators.base import ESTIMATORS, Estimator, MetaGradient
from lo_framework.estimators.truncation import Truncation
from lo_framework.inner.step import Family
from lo_framework.objectives import Objective


def make_estimator(
    spec: str, family: Family, objective: Objective, truncation: Truncation, num_tasks: int
) -> Estimator:
    """Build ``"pes"`` or ``"tbptt:second_order=false,segments=0"`` for a shard of ``num_tasks``;
    raises UserError.
    """
    return ESTIMATORS.build(spec, family, objective, truncation, num_tasks)


__all__ = [
    "ESTIMATORS",
    "Estimator",
    "MetaGradient",
    "Truncation",
    "es",
    "make_estimator",
    "pes",
    "tbptt",
]
