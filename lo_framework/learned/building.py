"""From a spec or a stored config to a learned optimizer, whose size is known before it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from lo_framework.allocation import AtMost, TooLarge
from lo_framework.errors import UserError, shown
from lo_framework.learned.base import LEARNED, LearnedOptimizer, Theta
from lo_framework.learned.sources import HUB, shipped
from lo_framework.schema import check_json

MAX_NUMBERS = 1 << 28  # meta-parameters: a file of 1 GB; optimizers of ours have thousands
_SLACK = 1 << 16  # numbers of constants, and of what is drawn on the way to the weights


def make_learned(spec: str, /, **values: Any) -> LearnedOptimizer:
    """Build from ``"kind"`` or ``"kind:key=value,..."``; ``values`` are typed settings.

    Raises:
        UserError: an unknown kind or option, a value out of its range, or a size beyond all use.
    """
    _refuse_trained(spec)
    entry, config = LEARNED.parse(spec)
    if values:
        config = check_json({**asdict(config), **values}, entry.config, entry.name)
    try:
        with AtMost(MAX_NUMBERS):
            return entry.build(config)
    except TooLarge:
        raise UserError(
            f"{shown(spec)[1:-1]}: more than {MAX_NUMBERS:,} meta-parameters, which no file holds"
        ) from None


def _refuse_trained(spec: str) -> None:
    """Raise UserError: the spec names an optimizer that was trained, and no kind of them."""
    name = spec.partition(":")[0].strip()
    where = "shipped" if name in shipped() else "on the hub" if spec.startswith(HUB) else ""
    if where and name not in LEARNED:
        raise UserError(
            f"{shown(spec)} is an optimizer that is {where}, not a kind to make a new one of: "
            f"--start begins with it, lo_framework.load gives it; kinds: {', '.join(LEARNED)}"
        )


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
    stored = {name: x.shape for name, x in theta.items() if x.is_floating_point()}
    try:
        with AtMost(2 * sum(x.numel() for x in theta.values()) + _SLACK):
            learned = entry.build(checked)
        shapes = {name: p.shape for name, p in learned.named_parameters()}
        wrong = [n for n in sorted({*shapes, *theta}) if shapes.get(n) != stored.get(n, "none")]
        differ = ", ".join(shown(name) for name in wrong[:8]) + ", ..." * bool(wrong[8:])
    except TooLarge:
        differ = "it has more"
    if differ:
        raise UserError(f"its weights do not fit the kind {kind} with its config: {differ}")
    learned.load_theta(theta)
    return learned


def of_version(kind: str, config: Mapping[str, Any], feature_version: int) -> dict[str, Any]:
    """A stored ``config`` that says which features its weights read, where its kind has several."""
    if "feature_version" in {f.name for f in fields(LEARNED.find(kind).config)}:
        config = {"feature_version": feature_version, **config}
    return dict(config)
