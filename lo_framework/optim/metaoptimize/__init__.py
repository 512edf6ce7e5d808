"""MetaOptimize: rules, settings, memory, traces and diagnostics, one file each."""

from lo_framework.optim.metaoptimize.optimizer import MetaOptimize
from lo_framework.optim.metaoptimize.settings import MetaOptimizeConfig

__all__ = ["MetaOptimize", "MetaOptimizeConfig"]
