"""From stored bytes to the images that tasks see: [0, 1], optionally smaller and grey."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.datasets.splits import Splits
from lo_framework.spec import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601 weights of red, green and blue
# images converted at a time: the float copy of a whole colour set at full size would double the
# peak
_CHUNK = 5000


def to_images(pixels: Tensor, *, size: int | None, grey: bool, owner: str) -> Tensor:
    """Bytes [n, channels, height, width] as float32 in [0, 1], area-averaged down to `size` x
    `size` if given.

    Where `size` does not divide the side, neighbouring averages share pixels (adaptive average
    pooling).

    Raises:
        UserError: `size` is larger than the stored images.
    """
    side = min(pixels.shape[2:])
    if size is not None and size > side:
        raise UserError(
            f"{owner}: size={size} is larger than the {pixels.shape[2]}x{pixels.shape[3]} images"
        )
    chunks = []
    for chunk in pixels.split(_CHUNK):
        images = chunk.to(torch.float32) / 255
        if grey and images.shape[1] == 3:
            images = (
                torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA))
                .unsqueeze(1)
                .clamp_(0, 1)
            )
        chunks.append(images if size is None else F.adaptive_avg_pool2d(images, size))
    return torch.cat(chunks)


def splits_to_images(splits: Splits, *, size: int | None, grey: bool, owner: str) -> Splits:
    """`to_images` on the first tensor of every split. Splits are cut from bytes: cutting floats
    takes 4x the memory.
    """
    return {
        name: (to_images(pixels, size=size, grey=grey, owner=owner), labels)
        for name, (pixels, labels) in splits.items()
    }


def check_labels(labels: Tensor, classes: int, where: str) -> Tensor:
    """`labels` as int64.

    Raises:
        UserError: a label is not one of 0 .. classes - 1.
    """
    highest = int(labels.max()) if len(labels) else 0
    if highest >= classes:
        raise UserError(f"{where}: label {highest} is out of range: expected 0 to {classes - 1}")
    return labels.to(torch.int64)
