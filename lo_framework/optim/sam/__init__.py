"""Explicit regularizers around any ``torch.optim`` optimizer, by name and in general."""

from lo_framework.optim.sam.named import ASAM, FSAM, GAM, GSAM, S2SAM, SAM, LookSAM
from lo_framework.optim.sam.regularized import Regularized

__all__ = ["ASAM", "FSAM", "GAM", "GSAM", "S2SAM", "SAM", "LookSAM", "Regularized"]
