"""Functional models: plain functions over dicts of tensors, named and shaped like the nn.Module they stand for."""

from optimizees.models.cnn import CNN, CNNConfig
from optimizees.models.mlp import MLP, MLPConfig, MLPReluConfig
from optimizees.models.transformer import Transformer, TransformerConfig, TransformerTask

__all__ = [
    "CNN",
    "MLP",
    "CNNConfig",
    "MLPConfig",
    "MLPReluConfig",
    "Transformer",
    "TransformerConfig",
    "TransformerTask",
]
