"""The compute of a regularized run, for a run without the regularizer that gets as much."""

from __future__ import annotations

from lo_framework.estimators import estimator_config
from lo_framework.estimators.tbptt import TBPTTConfig
from lo_framework.meta_train.config import RunConfig
from lo_framework.regularizers.base import HVP_COST


def compute_factor(config: RunConfig) -> float:
    """How many times the gradient evaluations of the plain run the regularized one takes
    (``--control``).

    Plain, per inner step: the gradient, whatever the objective adds (the held-out loss with its
    pull-back, say), and under second-order TBPTT the Hessian-vector product that pulls back through
    the gradient.
    """
    absorption = config.absorption_of(config.control)
    settings = estimator_config(config.estimator)
    unrolled = isinstance(settings, TBPTTConfig)
    second_order = isinstance(settings, TBPTTConfig) and settings.second_order
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
