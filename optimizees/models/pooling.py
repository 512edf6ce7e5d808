"""2x2 pooling of feature maps, one formulation per kind, all vmappable and twice differentiable."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def max_pool2(x: Tensor) -> Tensor:
    """Maximum over 2x2 windows, odd last rows and columns dropped: [..., H, W] -> [..., H // 2, W // 2]."""
    return F.max_pool2d(x, 2)


def avg_pool2(x: Tensor) -> Tensor:
    """Mean over 2x2 windows, odd last rows and columns dropped: [..., H, W] -> [..., H // 2, W // 2]."""
    return F.avg_pool2d(x, 2)
