"""Arithmetic on dicts of tensors as if each were one long vector."""

from __future__ import annotations

import torch
from torch import Tensor

Params = dict[str, Tensor]
TINY = 1e-12  # the xi of the formulas


def dot(a: Params, b: Params) -> Tensor:
    """Inner product, 0-d."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Params) -> Tensor:
    """Euclidean norm over all tensors. Exactly zero has the gradient 0, not NaN."""
    square = dot(a, a)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def add(a: Params, b: Params, scale: Tensor | float = 1.0) -> Params:
    """``a + scale * b``."""
    return {name: a[name] + scale * b[name] for name in a}


def sub(a: Params, b: Params) -> Params:
    return {name: a[name] - b[name] for name in a}


def scaled(a: Params, scale: Tensor | float) -> Params:
    return {name: scale * x for name, x in a.items()}


def times(a: Params, b: Params) -> Params:
    """Elementwise."""
    return {name: a[name] * b[name] for name in a}


def where(condition: Tensor, a: Params, b: Params) -> Params:
    return {name: torch.where(condition, a[name], b[name]) for name in a}


def unit(a: Params) -> Params:
    """``a / ||a||``; the zero vector stays zero."""
    return scaled(a, 1.0 / (norm(a) + TINY))


def without(a: Params, b: Params) -> Params:
    """``a`` minus its projection on ``b``."""
    return add(a, b, -dot(a, b) / (dot(b, b) + TINY**2))
