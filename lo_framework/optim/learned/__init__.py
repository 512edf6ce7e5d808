"""A meta-trained optimizer as a ``torch.optim.Optimizer``: class, host, memory and guard."""

from lo_framework.optim.learned.guard import GuardConfig
from lo_framework.optim.learned.optimizer import Learned

__all__ = ["GuardConfig", "Learned"]
