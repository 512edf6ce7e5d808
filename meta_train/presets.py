"""Presets, and the settings that a preset, a run's own file and a command line make together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from lo_framework.errors import choose
from lo_framework.meta_train.config import RunConfig

# They count steps, never seconds, so that a run can be repeated; figures are in docs/results.md.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "small": {
        "episode_length": "30-600",
        "num_tasks": 4,
        "outer_steps": 400,
        "outer_lr": 0.004,
        "validate_every": 20,
        "checkpoint_every": 20,
    },
    # What truncated gradients cannot see (schedules, long runs) is learned after them, from
    # perturbations over whole episodes; an outer step takes three seconds of a core.
    "general": {
        "optimizees": "mlp,cnn:init=default|lecun,spread=1|2,zero_last=0|0|0|0|1,channels=4..16,"
        "blocks=1..2,norm=none|group,pool=max|avg,batch=16..64,head=linear|linear|conv",
        "start": "quick",
        "estimator": "pes:sigma=0.01",
        "unroll_length": 50,
        "episode_length": "50-1000",
        "num_tasks": 8,
        "outer_steps": 600,
        "outer_lr": 0.0005,
        "validate_every": 50,
        "checkpoint_every": 50,
        # Noise of validations is larger than what fifty steps learn, and all of it is averaged.
        "keep": "last",
        # Longer ones than those of the other presets.
        "probes": "mlp-relu:hidden=200x200@150,mlp:hidden=144x144,act=sigmoid@400,"
        "cnn:channels=40x40@120,mlp:hidden=40,layers=6,act=gelu@250,"
        "mlp-relu:hidden=160,layers=6,norm=layer,residual=1@200,"
        "mlp-relu:hidden=136,batch=16/teacher:inputs=5,rows=256,outputs=3@120,"
        "mlp-relu:hidden=144x72,batch=48/digits:noise=0.1,seed=1000009@1500",
    },
    "specialist": {
        "datasets": "digits",
        "learned": "attention-mlp",
        "vary": "none",
        "objective": "valid",
        "unroll_length": 50,
        "episode_length": "200",
        "hide_progress": 0.0,
        "num_tasks": 8,
        "outer_steps": 100,
        "validate_every": 5,
    },
}


def make_config(
    preset: str = "quick", written: Mapping[str, Any] | None = None, **given: Any
) -> RunConfig:
    """The preset with what was ``written`` in a run's own ``config.json``, and with whatever was
    given in its place (None: not given).
    """
    given = {name: value for name, value in given.items() if value is not None}
    written = dict(written or {})
    values = {**PRESETS[choose("preset", preset, PRESETS)], **written, **given}
    known = [f.name for f in fields(RunConfig)]
    for name in values:
        choose("setting", name, known)
    if values.get("start") and "learned" not in {**written, **given}:
        from lo_framework.meta_train.beginning import spec_of

        values["learned"] = spec_of(values["start"])
    config = replace(RunConfig(), **values)
    same = all(written.get(name) == getattr(config, name) for name in ("control", "outer_steps"))
    if config.control == "none" or same:  # a control's config.json has the steps that it took
        return config
    return replace(config, outer_steps=math.ceil(config.outer_steps * compute_factor(config)))


def compute_factor(config: RunConfig) -> float:
    """How many times the gradient evaluations of the plain run the regularized one takes
    (``--control``).

    Plain, per inner step: the gradient, what the learned optimizer's own explicit regularizer adds,
    whatever the objective adds (the held-out loss with its pull-back, say), and under second-order
    TBPTT the Hessian-vector product that pulls back through the gradient.
    """
    from lo_framework.estimators import ESTIMATORS
    from lo_framework.learned import make_learned
    from lo_framework.regularizers.base import HVP_COST

    absorption = config.absorption_of(config.control)
    estimator, settings = ESTIMATORS.parse(config.estimator)
    unrolled = bool(estimator.facts.get("unrolls"))
    second_order = bool(getattr(settings, "second_order", False))
    learned = make_learned(config.learned)
    explicit = learned.explicit(learned.theta())
    gradients = 1.0 if explicit is None else explicit.cost.total
    plain = gradients + config.scored_by.cost(unrolled=unrolled) + HVP_COST * second_order
    # The plain gradient where the penalty is taken, if the step has it.
    known = not (absorption.independent or (explicit is not None and explicit.is_ahead))
    extra = absorption.regularizer.unrolled_cost.total - known
    if absorption.alpha and unrolled:  # GSAM pulls back twice: so much, as measured
        extra += 2.0
    length, when = sum(config.episode) / 2, absorption.config.when
    share = {"last": min(1.0, absorption.config.last / length), "end": 1.0 / length}.get(when, 1.0)
    return 1.0 + share * extra / plain
