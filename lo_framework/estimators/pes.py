"""``pes``: persistent evolution strategies (Vicol et al. 2021), unbiased also on truncations
shorter than the episode.

Each pair keeps its own state from truncation to truncation, and the loss difference is credited to
all its perturbations since the episode began. Variance grows with the number of truncations in an
episode; memory is constant.
"""

from lo_framework.estimators.base import ESTIMATORS
from lo_framework.estimators.perturbed import Perturbed, PerturbedConfig


@ESTIMATORS.register("pes", config=PerturbedConfig)
class PES(Perturbed):
    persistent = True
