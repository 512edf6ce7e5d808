"""Parameters and gradients that no optimizer of this package takes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

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


def were_replaced(optimizer: Any, lists: Sequence[list[Tensor]]) -> bool:
    """Whether groups have other parameters than ``lists``: accelerate puts sharded ones there when
    it prepares a model for FSDP2.

    Raises:
        UserError: steps were made with those of before, and the optimizer cannot go on with others.
    """
    given = [group["params"] for group in optimizer.param_groups]
    if all(map(operator.is_, given, lists)):
        return False
    if [[*map(id, x)] for x in given] == [[*map(id, x)] for x in lists]:
        return False
    if optimizer.state and not optimizer.swaps:
        raise UserError(
            f"{type(optimizer).__name__} got other parameters in the midst of a run: make it anew, "
            "and shard the model before the first step"
        )
    return True
