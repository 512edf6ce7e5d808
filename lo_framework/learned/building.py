"""From a spec or a stored config to a learned optimizer, whose size is known before it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from lo_framework.errors import UserError, shown
from lo_framework.learned.base import LEARNED, LearnedOptimizer, Theta
from lo_framework.registry import Entry
from lo_framework.schema import check_json

MAX_NUMBERS = 1 << 28  # meta-parameters: a file of 1 GB; optimizers of ours have thousands

Shapes = dict[str, tuple[int, ...]]


def make_learned(spec: str, /, **values: Any) -> LearnedOptimizer:
    """Build from ``"kind"`` or ``"kind:key=value,..."``; ``values`` are typed settings.

    Raises:
        UserError: an unknown kind or option, a value out of its range, or a size beyond all use.
    """
    entry, config = LEARNED.parse(spec)
    if values:
        config = check_json({**asdict(config), **values}, entry.config, entry.name)
    planned = _planned(entry, config) or {}
    count = sum(torch.Size(shape).numel() for shape in planned.values())
    if count > MAX_NUMBERS:
        raise UserError(
            f"{shown(spec)[1:-1]}: {count:,} meta-parameters, and at most {MAX_NUMBERS:,} can be "
            "saved"
        )
    return entry.build(config)


def rebuild(
    kind: str, config: Mapping[str, Any], theta: Theta, feature_version: int | None = None
) -> LearnedOptimizer:
    """The learned optimizer that was stored as its kind, config and weights.

    Nothing is allocated before the config fits its types and ranges, and the weights the config.

    Args:
        feature_version: what the inputs of its network meant when it was trained; None: as now.

    Raises:
        UserError: an unknown kind, another config than its kind has, or weights of other shapes.
    """
    entry = LEARNED.find(kind)
    values = config if feature_version is None else of_version(kind, config, feature_version)
    checked = check_json(dict(values), entry.config, f"config of {kind}")
    stored = {name: tuple(x.shape) for name, x in theta.items() if x.is_floating_point()}
    planned = _planned(entry, checked)
    if planned is not None:
        _require_equal(planned, stored, theta, kind)
    learned = entry.build(checked)
    _require_equal(_shapes(learned), stored, theta, kind)
    learned.load_theta(theta)
    return learned


def of_version(kind: str, config: Mapping[str, Any], feature_version: int) -> dict[str, Any]:
    """A stored ``config`` that says which features its weights read, where its kind has several."""
    if "feature_version" in {f.name for f in fields(LEARNED.find(kind).config)}:
        config = {"feature_version": feature_version, **config}
    return dict(config)


def _shapes(learned: LearnedOptimizer) -> Shapes:
    return {name: tuple(p.shape) for name, p in learned.named_parameters()}


def _planned(entry: Entry[LearnedOptimizer], config: Any) -> Shapes | None:
    """Names and shapes of the meta-parameters, without memory for them; None where a kind cannot be
    built so.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return _shapes(entry.build(config))
    except Exception:
        return None


def _require_equal(planned: Shapes, stored: Shapes, theta: Theta, kind: str) -> None:
    names = planned.keys() | theta.keys()
    wrong = sorted(name for name in names if planned.get(name) != stored.get(name, "not stored"))
    if wrong:
        listed = ", ".join(shown(name) for name in wrong[:8]) + (", ..." if wrong[8:] else "")
        raise UserError(f"its weights do not fit the kind {kind} with its config: {listed} differ")
