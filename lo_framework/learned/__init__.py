"""Learned optimizers: update rules, one file each, whose weights are meta-trained.

``make_learned("attention-mlp:hidden=16")`` builds one from a spec, ``load("general")`` or
``load(path)`` one that was trained. A plugin adds its own with ``@register_learned``.
"""

from lo_framework.learned.attention import Attention
from lo_framework.learned.attention_mlp import AttentionMLP
from lo_framework.learned.base import LEARNED, LearnedOptimizer, register_learned
from lo_framework.learned.building import make_learned, of_version, rebuild
from lo_framework.learned.celo2 import Celo2
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.learned.lstm import LSTM
from lo_framework.learned.mlp import MLP
from lo_framework.learned.saving import save
from lo_framework.learned.scaled import Scaled
from lo_framework.learned.storage import (
    OptimizerFile,
    fingerprint,
    learned_from,
    load,
    load_optimizer,
    save_optimizer,
)

# Growth with an incumbent: each kind starts as the function that its predecessor ended as.
PREDECESSOR = {"attention": "hyper-adamw", "attention-mlp": "attention"}

__all__ = [
    "LEARNED",
    "LSTM",
    "MLP",
    "PREDECESSOR",
    "Attention",
    "AttentionMLP",
    "Celo2",
    "HyperAdamW",
    "LearnedOptimizer",
    "OptimizerFile",
    "Scaled",
    "fingerprint",
    "learned_from",
    "load",
    "load_optimizer",
    "make_learned",
    "of_version",
    "rebuild",
    "register_learned",
    "save",
    "save_optimizer",
]
