"""Faces: ``torch.optim.Optimizer`` classes over the pure update rules of this framework, and
explicit regularizers.
"""

from lo_framework.optim.explicit import ASAM, FSAM, GAM, GSAM, SAM, LookSAM
from lo_framework.optim.guard import GuardConfig
from lo_framework.optim.learned import Learned
from lo_framework.optim.meta_adamw import MetaAdamW
from lo_framework.optim.meta_optimize import MetaOptimize
from lo_framework.optim.regularized import Regularized

__all__ = [
    "ASAM",
    "FSAM",
    "GAM",
    "GSAM",
    "SAM",
    "GuardConfig",
    "Learned",
    "LookSAM",
    "MetaAdamW",
    "MetaOptimize",
    "Regularized",
]
