"""Regularizers: what is added to a loss, or to its gradient, so that training ends in flatter or smaller solutions.

One file each; all that are registered are in `REGULARIZERS`. `base` holds the contract, a correction of the gradient
and, where there is one, the scalar whose gradient it makes. This room imports nothing of the others, so a regularizer
can be read, tested and used with torch alone: give it anything that satisfies `Landscape`.

    sam = SAM(SAMConfig(rho=0.1))
    loss, grad = landscape.gradient(params)
    correction = sam.correction(landscape, Point(params, loss, grad), sam.init_state(params))
"""

from regularizers.asam import ASAM, ASAMConfig
from regularizers.base import (
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
from regularizers.fsam import FSAM, FSAMConfig
from regularizers.gam import GAM, GAMConfig
from regularizers.gradient_norm import GradientNorm, GradientNormConfig
from regularizers.gsam import GSAM, GSAMConfig
from regularizers.hessian_trace import HessianTrace, HessianTraceConfig
from regularizers.label_noise import LabelNoise, LabelNoiseConfig
from regularizers.looksam import LookSAM, LookSAMConfig
from regularizers.mixture import Mixture
from regularizers.sam import SAM, SAMConfig
from regularizers.weight_decay import WeightDecay, WeightDecayConfig

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
