"""Learned optimizers and their registry.

``make_learned("attention-mlp:hidden=16")`` builds one from a spec string. A plugin adds its own
with ``@register_learned``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lo_framework.learned.attention import Attention
from lo_framework.learned.attention_mlp import AttentionMLP
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.learned.lstm import LSTM
from lo_framework.learned.mlp import MLP, MLPConfig, WideMLP
from lo_framework.spec import UserError, build_config, nearest, parse_spec


def _make_mlp(config: MLPConfig) -> LearnedOptimizer:
    return (WideMLP if config.features == 39 else MLP)(config)


KINDS: dict[str, tuple[type, Callable[[Any], LearnedOptimizer]]] = {
    "hyper-adamw": (HyperAdamW.Config, HyperAdamW),
    "attention": (Attention.Config, Attention),
    "attention-mlp": (AttentionMLP.Config, AttentionMLP),
    "mlp": (MLP.Config, _make_mlp),
    "lstm": (LSTM.Config, LSTM),
}

# Growth with an incumbent: each kind starts as the function that its predecessor ended as.
PREDECESSOR = {"attention": "hyper-adamw", "attention-mlp": "attention"}


def register_learned(cls: type[LearnedOptimizer]) -> type[LearnedOptimizer]:
    """Class decorator: make a user's learned optimizer known by its ``kind``."""
    if cls.kind in KINDS and KINDS[cls.kind][1] is not cls:
        raise UserError(
            f"a learned optimizer of kind {cls.kind!r} exists already; choose another name"
        )
    KINDS[cls.kind] = (cls.Config, cls)
    return cls


def make_learned(spec: str, **values: Any) -> LearnedOptimizer:
    """Build from ``"kind"`` or ``"kind:key=value,..."``; ``values`` are typed settings, as a saved
    file has them.
    """
    kind, options = parse_spec(spec)
    if kind not in KINDS:
        raise UserError(
            f"unknown learned optimizer {kind!r}{nearest(kind, KINDS)}; there are {', '.join(KINDS)}"
        )
    config_type, build = KINDS[kind]
    config: Any = build_config(config_type, options, owner=kind)
    if values:
        try:
            config = config_type(**{**asdict(config), **values})
        except (TypeError, ValueError) as error:
            raise UserError(f"{kind}: {error}") from None
    return build(config)


__all__ = ["KINDS", "PREDECESSOR", "LearnedOptimizer", "make_learned", "register_learned"]
