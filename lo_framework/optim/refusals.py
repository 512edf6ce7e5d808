"""Parameters and gradients that no optimizer of this package takes."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lo_framework.spec import UserError


def refuse_lazy(params: Collection[Tensor], owner: str) -> None:
    """Raise UserError if a parameter has no shape yet."""
    if any(is_lazy(p) for p in params):
        raise UserError(f"{owner} needs shapes: run one batch through the lazy modules first")


def refuse_complex(params: Collection[Tensor], owner: str) -> None:
    """Raise UserError if a parameter is complex."""
    if any(p.is_complex() for p in params):
        raise UserError(f"{owner} cannot update complex parameters; use torch.view_as_real of them")


def refuse_sparse(grad: Tensor, owner: str) -> None:
    """Raise UserError if a gradient is sparse."""
    if grad.layout != torch.strided:
        raise UserError(
            f"{owner} cannot use sparse gradients; build the embedding with sparse=False"
        )
