"""Regularizers: what is added to a loss, or to its gradient, so that training ends in flatter or
smaller solutions.

One file each; all that are registered are in `REGULARIZERS`. `base` holds the contract, a
correction of the gradient and, where there is one, the scalar whose gradient it makes. This room
imports nothing of the others, so a regularizer can be read, tested and used with torch alone: give
it anything that satisfies `Landscape`.

    sam = SAM(SAMConfig(rho=0.1))
    loss, grad = landscape.gradient(params)
    correction = sam.correction(landscape, Point(params, loss, grad), sam.init_state(params))
"""

from lo_framework.regularizers.asam import ASAM, ASAMConfig
from lo_framework.regularizers.base import (
    REGULARIZERS,
    Correction,
    Cost,
    Landscape,
    NoValue,
    Point,
    Regularizer,
    frozen,
    register,
    require_positive,
    restored,
    stored,
)
from lo_framework.regularizers.fsam import FSAM, FSAMConfig
from lo_framework.regularizers.gam import GAM, GAMConfig
from lo_framework.regularizers.gradient_norm import GradientNorm, GradientNormConfig
from lo_framework.regularizers.gsam import GSAM, GSAMConfig
from lo_framework.regularizers.hessian_trace import HessianTrace, HessianTraceConfig
from lo_framework.regularizers.label_noise import LabelNoise, LabelNoiseConfig
from lo_framework.regularizers.looksam import LookSAM, LookSAMConfig
from lo_framework.regularizers.mixture import Mixture
from lo_framework.regularizers.sam import SAM, SAMConfig
from lo_framework.regularizers.weight_decay import WeightDecay, WeightDecayConfig

__all__ = [
    "ASAM",
    "FSAM",
    "GAM",
    "GSAM",
    "REGULARIZERS",
    "SAM",
    "ASAMConfig",
    "Correction",
    "Cost",
    "FSAMConfig",
    "GAMConfig",
    "GSAMConfig",
    "GradientNorm",
    "GradientNormConfig",
    "HessianTrace",
    "HessianTraceConfig",
    "LabelNoise",
    "LabelNoiseConfig",
    "Landscape",
    "LookSAM",
    "LookSAMConfig",
    "Mixture",
    "NoValue",
    "Point",
    "Regularizer",
    "SAMConfig",
    "WeightDecay",
    "WeightDecayConfig",
    "frozen",
    "register",
    "require_positive",
    "restored",
    "stored",
]

if (
    "." not in __name__
):  # the folder of the checkout: be lo_framework.regularizers, not a second copy
    from lo_framework.namespace import alias

    alias(__name__)
