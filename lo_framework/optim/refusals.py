"""Parameters and gradients that no optimizer of this package takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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


def were_replaced(optimizer: torch.optim.Optimizer, lists: Sequence[list[Tensor]]) -> bool:
    """Whether groups have other lists of parameters than ``lists``: accelerate puts sharded ones
    there when it prepares a model for FSDP2.

    Raises:
        UserError: steps were made with those of before.
    """
    if all(group["params"] is x for group, x in zip(optimizer.param_groups, lists)):
        return False
    if optimizer.state:
        raise UserError(
            f"{type(optimizer).__name__} got other parameters in the midst of a run: make it anew, "
            "and shard the model before the first step"
        )
    return True
