"""Faces: ``torch.optim.Optimizer`` classes over the pure update rules of this framework."""

from lo_framework.optim.guard import GuardConfig
from lo_framework.optim.learned import Learned

__all__ = ["GuardConfig", "Learned"]
