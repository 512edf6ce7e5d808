"""Loaded data sets: from stored bytes to images in [0, 1], in three disjoint splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.schema import Range
from lo_framework.spec import UserError

SPLIT_SEED = 0
Rows = Annotated[int, Range(low=10, high=1 << 20)]  # training images that are kept
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601 weights of red, green and blue
# images converted at a time: the float copy of a whole colour set at full size would double the
# peak
_CHUNK = 5000
Splits = dict[str, tuple[Tensor, ...]]  # "train", "valid" and "test" to tensors with rows first


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Inputs and targets in three disjoint splits.

    Attributes:
        name: canonical spec, for example ``"mnist:size=8"``.
        splits: "train", "valid", "test" -> (inputs float32, targets). Inputs are images [n,
            channels, height, width], or rows of numbers [n, inputs]; targets are labels int64 [n]
            or numbers float32 [n, outputs].
        num_classes: C, where targets are labels 0 .. C - 1, else None.
        reconstructs: targets are the inputs themselves.
    """

    name: str
    splits: Splits
    num_classes: int | None
    reconstructs: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, height, width) of an image."""
        return tuple(self.splits["train"][0].shape[1:])

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for a row."""
        return self.num_classes or self.splits["train"][1].shape[1]


def permutation(count: int) -> Tensor:
    """The one fixed order (seed 0) from which splits are cut, so that they are the same in every
    run.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))


def cut(rows: tuple[Tensor, ...], *counts: int) -> list[tuple[Tensor, ...]]:
    """Cut `rows` into disjoint parts of `counts` rows, and a last part with all others, by
    `permutation`.

    Args:
        rows: tensors with the same first dimension n.
    """
    order = permutation(len(rows[0]))
    sizes = [*counts, len(order) - sum(counts)]
    return [tuple(x[index] for x in rows) for index in order.split(sizes)]


def image_splits(
    train: tuple[Tensor, ...],
    test: tuple[Tensor, ...],
    *,
    owner: str,
    size: int | None,
    rows: int | None = None,
    grey: bool = False,
) -> Splits:
    """The three splits of a data set with a published test split: valid is 10 % cut from train,
    never from test. All are cut from bytes, of which `to_images` then makes images: cutting floats
    takes 4x the memory.

    Args:
        rows: training images that are kept, the first of them; valid and test are whole.

    Raises:
        UserError: fewer than ten rows, of which nothing can be cut, a `size` above the images', or
            more `rows` than there are.
    """
    if len(train[0]) < 10:
        raise UserError(
            f"{owner}: {len(train[0])} training images are too few: expected at least 10, of which "
            "one is for validation"
        )
    valid, rest = cut(train, len(train[0]) // 10)
    if rows is not None:
        if rows > len(rest[0]):
            raise UserError(f"{owner}: rows={rows} is more than its {len(rest[0])} training images")
        rest = tuple(x[:rows] for x in rest)
    return {
        name: (to_images(pixels, size=size, grey=grey, owner=owner), labels)
        for name, (pixels, labels) in (("train", rest), ("valid", valid), ("test", test))
    }


def to_images(pixels: Tensor, *, size: int | None, grey: bool, owner: str) -> Tensor:
    """Bytes [n, channels, height, width] as float32 in [0, 1], area-averaged down to `size` x
    `size` if given.

    Where `size` does not divide the side, neighbouring averages share pixels (adaptive average
    pooling).

    Raises:
        UserError: `size` is larger than the stored images.
    """
    channels, height, width = pixels.shape[1:]
    if size is not None and size > min(height, width):
        raise UserError(f"{owner}: size={size} is larger than the {height}x{width} images")
    chunks = []
    for chunk in pixels.split(_CHUNK):
        images = chunk.to(torch.float32) / 255
        if grey and channels == 3:
            luma = torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA))
            images = luma.unsqueeze(1).clamp_(0, 1)
        chunks.append(images if size is None else F.adaptive_avg_pool2d(images, size))
    return torch.cat(chunks)


def check_labels(labels: Tensor, classes: int, where: str) -> Tensor:
    """`labels` as int64.

    Raises:
        UserError: a label is not one of 0 .. classes - 1.
    """
    if (highest := int(labels.max())) >= classes:
        raise UserError(f"{where}: label {highest} is out of range: expected 0 to {classes - 1}")
    return labels.to(torch.int64)


def require_finite(rows: tuple[Tensor, ...], what: str) -> None:
    """Refuse rows with NaN or infinite numbers: every loss over one of them would be as useless.

    Raises:
        UserError: counting them and naming the first.
    """
    for x in rows:
        if x.is_floating_point():
            bad = ~torch.isfinite(x).reshape(len(x), -1).all(1)
            if bad.any():
                raise UserError(
                    f"{what}: {int(bad.sum())} of {len(x)} rows hold NaN or infinite numbers (the "
                    f"first is row {int(bad.nonzero()[0])}): remove or replace them"
                )
