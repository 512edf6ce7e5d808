"""Faces: ``torch.optim.Optimizer`` classes over the pure update rules of this framework, and
explicit regularizers.
"""

from lo_framework.optim.learned import GuardConfig, Learned
from lo_framework.optim.metaadamw import MetaAdamW, MetaConfig, NetworkConfig
from lo_framework.optim.metaoptimize import MetaOptimize, MetaOptimizeConfig
from lo_framework.optim.sam import ASAM, FSAM, GAM, GSAM, S2SAM, SAM, LookSAM, Regularized

__all__ = [
    "ASAM",
    "FSAM",
    "GAM",
    "GSAM",
    "S2SAM",
    "SAM",
    "GuardConfig",
    "Learned",
    "LookSAM",
    "MetaAdamW",
    "MetaConfig",
    "MetaOptimize",
    "MetaOptimizeConfig",
    "NetworkConfig",
    "Regularized",
]
