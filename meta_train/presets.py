"""Presets, and what was given in their place, as the config of a run.

Presets count steps, never seconds, so that a run can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from lo_framework.estimators import ESTIMATORS
from lo_framework.meta_train.config import RunConfig
from lo_framework.regularizers.base import HVP_COST
from lo_framework.spec import UserError, nearest

# A few minutes and about an hour on two CPU cores; figures in the README.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "small": {"outer_steps": 600, "num_tasks": 16, "validate_every": 10, "checkpoint_every": 20},
}


def make_config(
    preset: str = "quick", written: Mapping[str, Any] | None = None, **given: Any
) -> RunConfig:
    """The preset with what was ``written`` in a run's own ``config.json``, and with whatever was
    given in its place (None: not given).
    """
    if preset not in PRESETS:
        raise UserError(
            f"unknown preset {preset!r:.80}{nearest(preset, PRESETS)}; "
            f"there are {', '.join(PRESETS)}"
        )
    given = {name: value for name, value in given.items() if value is not None}
    written = dict(written or {})
    values = {**PRESETS[preset], **written, **given}
    known = {f.name for f in fields(RunConfig)}
    for name in values:
        if name not in known:
            raise UserError(f"unknown setting {name!r:.80}{nearest(name, known)}")
    config = replace(RunConfig(), **values)
    same = all(written.get(name) == getattr(config, name) for name in ("control", "outer_steps"))
    if config.control == "none" or same:  # a control's config.json has the steps that it took
        return config
    return replace(config, outer_steps=math.ceil(config.outer_steps * compute_factor(config)))


def compute_factor(config: RunConfig) -> float:
    """How many times the gradient evaluations of the plain run the regularized one takes
    (``--control``).

    Plain, per inner step: the gradient, whatever the objective adds (the held-out loss with its
    pull-back, say), and under second-order TBPTT the Hessian-vector product that pulls back through
    the gradient.
    """
    absorption = config.absorption_of(config.control)
    estimator, settings = ESTIMATORS.parse(config.estimator)
    unrolled = bool(estimator.facts.get("unrolls"))
    second_order = bool(getattr(settings, "second_order", False))
    plain = 1.0 + config.scored_by.cost(unrolled=unrolled) + HVP_COST * second_order
    extra = absorption.regularizer.cost.total - (0.0 if absorption.independent else 1.0)
    extra += (
        2.0 if absorption.alpha and unrolled else 0.0
    )  # GSAM pulls back twice: so much, as measured
    length = sum(config.episode) / 2
    share = {"last": min(1.0, absorption.config.last / length), "end": 1.0 / length}.get(
        absorption.config.when, 1.0
    )
    return 1.0 + share * extra / plain
