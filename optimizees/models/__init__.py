"""Functional models: plain functions over dicts of tensors, named and shaped like the nn.Module
they stand for.
"""

from lo_framework.optimizees.models.cnn import CNN, CNNConfig
from lo_framework.optimizees.models.gru import GRU, GRUConfig
from lo_framework.optimizees.models.mlp import MLP, MLPConfig, MLPReluConfig
from lo_framework.optimizees.models.transformer import Transformer, TransformerConfig

__all__ = [
    "CNN",
    "GRU",
    "MLP",
    "CNNConfig",
    "GRUConfig",
    "MLPConfig",
    "MLPReluConfig",
    "Transformer",
    "TransformerConfig",
]
