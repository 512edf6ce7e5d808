"""A `Scaled` optimizer with merely larger or smaller steps, and no meta-training: what absorbing a
regularizer is compared with. Larger steps alone end in flatter minima too, and smaller ones in
lower test losses.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from lo_framework.learned import load, save_optimizer
from lo_framework.learned.scaled import OFFSETS, Scaled

FACTORS = {"larger-steps": 1.6, "smaller-steps": 0.625}
BESIDE = {"larger-steps": "even_sam", "smaller-steps": "even_asam"}  # what may be merely that


def is_scaled(kind: str) -> bool:
    return kind.partition(":")[0] == Scaled.kind


def with_steps(source: Path, target: Path, factor: float) -> Path:
    """``target``, which is the optimizer of ``source`` with all steps times ``factor``."""
    if not target.exists():
        rule = load(source)
        assert isinstance(rule, Scaled)
        theta = {name: x.clone() for name, x in rule.theta().items()}
        theta["default"][OFFSETS.index("log_lr")] += math.log(factor) / rule.config.gain
        save_optimizer(target, theta, kind=rule.kind, config=asdict(rule.config), summary={})
    return target
