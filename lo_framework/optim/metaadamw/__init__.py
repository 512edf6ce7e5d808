"""`MetaAdamW`, its settings and its parts."""

from lo_framework.learned.attention import NetworkConfig
from lo_framework.optim.metaadamw.meta_loss import MetaConfig
from lo_framework.optim.metaadamw.optimizer import MetaAdamW
from lo_framework.optim.metaadamw.published import CORRECTED, PAPER, REFERENCE, Variant

__all__ = [
    "CORRECTED",
    "PAPER",
    "REFERENCE",
    "MetaAdamW",
    "MetaConfig",
    "NetworkConfig",
    "Variant",
]
