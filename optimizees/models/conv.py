"""3x3 convolution and 2x2 pooling of "batch-last" feature maps [channels, height, width, B], made
for vmap on a CPU.

Small images spend their time in memory traffic and in per-image loops, not in arithmetic. With the
batch last, every step is one large matrix product or runs along the batch, and vmap over tasks only
adds a batch to the products. All of it is torch's own operations: derivatives of any order and in
both modes, vmap and compile work as they do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.native import conv as kernel
from lo_framework.native.active import active

TAPS = 9
# Up to 8x8 pixels the neighbourhoods are gathered by a product with a 0-1 matrix: 64
# multiplications for one number, but no index, no padding and no zero-filling in the derivative.
# Above, slices are cheaper.
GATHER_LIMIT = 64


def out_side(side: int, stride: int) -> int:
    """Height or width of a 3x3 convolution's output, padding 1."""
    return (side - 1) // stride + 1


def gather_matrix(height: int, width: int, stride: int) -> Tensor | None:
    """G [9 * out pixels, pixels], ``(G x)[tap, pixel]`` = that neighbour (0 outside); None for
    large images.
    """
    if height * width > GATHER_LIMIT:
        return None
    picture = torch.eye(height * width).reshape(1, height, width, -1)
    return _neighbours(picture, stride).reshape(-1, height * width)


def conv3x3(x: Tensor, weight: Tensor, stride: int, gather: Tensor | None) -> Tensor:
    """F.conv2d with padding 1 and no bias: [C, H, W, B] and weight [O, C, 3, 3] to [O, H', W', B].

    Args:
        gather: `gather_matrix` of x's height and width, on x's device.
    """
    if active() and kernel.usable(x):
        return kernel.conv3x3(x, weight, stride)
    channels, height, width, rows = x.shape
    if gather is None:
        columns = _neighbours(x, stride)
    else:
        columns = torch.bmm(gather.to(x.dtype).expand(channels, -1, -1), x.flatten(1, 2))
    columns = columns.reshape(channels * TAPS, -1)  # [C * 9, H' * W' * B]
    # A column-major left factor makes autograd compute its gradient as (columns @ grad.T).T, which
    # this shape's matrix product does about 2.5 times faster than grad @ columns.T.
    left = weight.flatten(1).t().contiguous().t()
    return (left @ columns).reshape(
        weight.shape[0], out_side(height, stride), out_side(width, stride), rows
    )


def pool2(x: Tensor, kind: str) -> Tensor:
    """Maximum or mean (``kind`` "max" or "avg") over 2x2 windows, odd last rows and columns
    dropped: [C, H, W, B] -> [C, H // 2, W // 2, B].

    Seen as [C, B, H, W], batch-last is torch's channels-last layout, whose kernel is vectorised
    along the batch and several times faster than the one for contiguous images.
    """
    pool = F.max_pool2d if kind == "max" else F.avg_pool2d
    return pool(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def largest3x3(x: Tensor, weight: Tensor, stride: int, gather: Tensor | None) -> Tensor:
    """The maximum of `pool2` of `conv3x3`."""
    if active() and kernel.usable(x):
        return kernel.conv3x3(x, weight, stride, largest=True)
    return pool2(conv3x3(x, weight, stride, gather), "max")


def _neighbours(x: Tensor, stride: int) -> Tensor:
    """[C, 9, H', W', B]: for every output pixel its 3x3 neighbourhood in `x`, zero outside."""
    height, width = out_side(x.shape[1], stride), out_side(x.shape[2], stride)
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    slices = [
        padded[
            :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride
        ]
        for i in range(3)
        for j in range(3)
    ]
    return torch.stack(slices, 1)
