"""Where the tensors of a step lie, for compiled functions that read and write them in place: asked
once a step, for the rule's kernel and the guard's watch.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.native import toolchain


class Lying(NamedTuple):
    """Addresses of parameters and of their gradients, one of each tensor."""

    params: array[int]
    grads: array[int]


def lying(tensors: Sequence[Tensor]) -> Lying | None:
    """None unless all, and their gradients, are float32 on the CPU, each one number after the
    other, and functions can be compiled.

    Nothing of it may be kept for the next step: a loop may bring other gradients, and the model may
    be moved.
    """
    if toolchain.reason():
        return None
    params, grads, single = list[int](), list[int](), torch.float32
    for p in tensors:
        g = p.grad
        if p.dtype is not single or g is None or g.dtype is not single:
            return None
        if not (p.is_cpu and p.is_contiguous() and g.is_contiguous()):
            return None
        params.append(p.data_ptr())
        grads.append(g.data_ptr())
    return Lying(array("q", params), array("q", grads))
