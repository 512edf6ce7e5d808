"""Estimators of the meta-gradient and their registry."""

from __future__ import annotations

from lo_framework.estimators import perturbed, tbptt
from lo_framework.estimators.base import ESTIMATORS, Estimator, MetaGradient
from lo_framework.estimators.truncation import Truncation, Unroller
from lo_framework.inner.step import Family
from lo_framework.objectives import Objective


def make_estimator(
    spec: str, family: Family, objective: Objective, truncation: Truncation, num_tasks: int
) -> Estimator:
    """Build ``"pes"`` or ``"tbptt:second_order=false,segments=0"`` for a shard of ``num_tasks``;
    raises UserError.
    """
    return ESTIMATORS.build(spec, Unroller(family, objective, truncation, num_tasks))


__all__ = [
    "ESTIMATORS",
    "Estimator",
    "MetaGradient",
    "Truncation",
    "Unroller",
    "make_estimator",
    "perturbed",
    "tbptt",
]
