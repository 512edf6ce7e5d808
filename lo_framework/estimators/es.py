"""``es``: antithetic evolution strategies on truncations.

Unbiased for the smoothed objective when one truncation is a whole episode; biased towards short
horizons otherwise. Needs no derivative of anything and constant memory. After a truncation both
members of a pair go on from the positive one's state.
"""

from lo_framework.estimators.base import ESTIMATORS
from lo_framework.estimators.perturbed import Perturbed, PerturbedConfig


@ESTIMATORS.register("es", config=PerturbedConfig)
class ES(Perturbed):
    persistent = False
