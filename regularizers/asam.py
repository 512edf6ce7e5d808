"""``asam``: adaptive SAM (Kwon et al. 2021, arXiv 2102.11600), whose neighbourhood scales with the
weights.

    R(w) = L(w + e),  e = rho T^2 g / ||T g||,  T = |w| + eta,  G = grad L at w + e

``e`` maximises <g, e> over ``||T^-1 e|| <= rho``. Two pitfalls of other versions: ``rho |w| g /
||g||`` is feasible but not the maximiser, and T = |w| without eta never moves a weight that is
exactly zero. T covers every parameter here; the authors' code leaves all biases at T = 1 (it goes
by names with "weight", so it scales the gains of norms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import Params, register_regularizer
from lo_framework.regularizers.sam import SAM, SAMConfig
from lo_framework.schema import NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class ASAMConfig(SAMConfig):
    """``rho``: radius relative to the weights, so larger than SAM's. ``eta``: added to |w|; 0 is
    allowed.
    """

    rho: Positive = 0.5
    eta: NotNegative = 0.01


@register_regularizer
class ASAM(SAM):
    name = "asam"
    Config = ASAMConfig
    RANGES: ClassVar = {"rho": (0.1, 2.0), "eta": (0.001, 0.1)}

    def perturbation(self, params: Params, grad: Params) -> Params:
        size = {name: x.abs() + self.config.eta for name, x in params.items()}
        return vectors.scaled(
            vectors.times(size, vectors.unit(vectors.times(size, grad))), self.rho
        )
