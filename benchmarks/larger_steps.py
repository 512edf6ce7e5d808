"""A `Scaled` optimizer with merely larger steps: what absorbing a regularizer is compared with, for
larger steps alone end in flatter minima too.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from lo_framework.learned import load, save_optimizer
from lo_framework.learned.scaled import OFFSETS, Scaled

FACTOR = 1.6


def is_scaled(kind: str) -> bool:
    return kind.partition(":")[0] == Scaled.kind


def with_larger_steps(source: Path, target: Path) -> Path:
    """``target``, which is the optimizer of ``source`` with all steps times `FACTOR`."""
    if not target.exists():
        rule = load(source)
        assert isinstance(rule, Scaled)
        theta = {name: x.clone() for name, x in rule.theta().items()}
        theta["default"][OFFSETS.index("log_lr")] += math.log(FACTOR) / rule.config.gain
        save_optimizer(target, theta, kind=rule.kind, config=asdict(rule.config), summary={})
    return target
