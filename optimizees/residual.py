"""``resnet``: a residual network on images with crops and flips, as MetaAdamW was published on
(arXiv 2605.04055).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.splits import Dataset, Splits
from lo_framework.optimizees.models.resnet import ResNet
from lo_framework.optimizees.registry import register_task
from lo_framework.optimizees.sized import Dropped, Sized, Table
from lo_framework.optimizees.task import Batch, ClassificationTask, Model, Rows
from lo_framework.schema import Layers, Width
from lo_framework.spec import UserError

STAGES = 6  # each has twice the channels of the one before
# Numbers of a feature map of the first stage that are measured at a time: with more, the cache is
# left, and 32x32 images take twice as long (16 channels, one core).
MEASURED, LEAST_ROWS = 1 << 20, 64


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Sized):
    """Options of ``resnet``, besides those of `Sized`.

    ``protocol=paper`` validates on the test split, and trains on what is kept for validation else.

    Attributes:
        width: channels of the stem and of the first stage.
        blocks: residual blocks of each stage ("2x2x2x2": ResNet-18).
        dropout: probability with which a logit is set to zero.
        augment: training images are shifted by up to an eighth of their side, zeros coming in, and
            every other one is mirrored.
        batch: rows of one batch.
    """

    SIZES: ClassVar[Table] = {
        "paper": dict(width=64, blocks=(2, 2, 2, 2), dropout=0.2, augment=True, batch=128),
        "small": dict(width=16, blocks=(1, 1, 1), dropout=0.2, augment=True, batch=64),
        "tiny": dict(width=4, blocks=(1, 1), dropout=0.0, augment=False, batch=16),
    }

    width: Width | None = None
    blocks: tuple[Layers, ...] | None = None
    dropout: Dropped | None = None
    augment: bool | None = None
    batch: Rows | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.value("blocks")) <= STAGES:
            raise ValueError(f"blocks needs 1 to {STAGES} entries, one a stage")
        if self.value("batch") < 2:
            raise ValueError("batch normalisation needs batches of at least 2 rows, and batch is 1")


class AugmentedTask(ClassificationTask):
    """A classification whose training batches are shifted and mirrored; what it is measured on is
    not.
    """

    def __init__(
        self, model: Model, dataset: Dataset, *, name: str, batch_size: int, augment: bool
    ) -> None:
        super().__init__(model, dataset, name=name, batch_size=batch_size)
        self.augment = augment

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        """Rows as in every task; shifts and mirrors are drawn after them, from `generator` too."""
        images, labels = super().batch(split, generator, lead)
        if self.augment and split == "train":
            images = shifted(images, generator)
        return images, labels


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """`images` [..., height, width] of any leading dimensions but one for channels, each shifted by
    up to an eighth of its height and width, with zeros coming in, and mirrored or not.
    """
    flat = images.flatten(0, -4)
    count, _, height, width = flat.shape
    shifts = [
        torch.randint(-(side // 8), side // 8 + 1, (count, 1), generator=generator)
        for side in (height, width)
    ]
    mirrored = torch.randint(2, (count, 1), generator=generator).bool()
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width) + shifts[1]
    columns = torch.where(mirrored, width - 1 - columns, columns)
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    at = (rows * width)[:, :, None] + columns[:, None]  # [n, height, width]
    index = at.flatten(1)[:, None].expand(-1, flat.shape[1], -1).to(flat.device)
    taken = flat.flatten(2).gather(2, index).reshape(flat.shape)
    return (taken * inside.to(flat)).reshape(images.shape)


def _within(places: Tensor, side: int) -> Tensor:
    return (places >= 0) & (places < side)


@register_task("resnet", config=ResNetConfig, images=True)
def build_resnet(config: ResNetConfig, dataset: Dataset) -> ClassificationTask:
    """The task on a data set of images with classes."""
    if len(dataset.shape) != 3:
        raise UserError(f"resnet needs images: {dataset.name} has rows of numbers")
    if dataset.num_classes is None:
        raise UserError(f"resnet needs classes: {dataset.name} has numbers to say")
    if config.protocol == "paper":
        dataset = replace(dataset, splits=published(dataset.splits))
    model = ResNet(
        channels=dataset.shape[0],
        classes=dataset.outputs,
        **{name: config.value(name) for name in ("width", "blocks", "dropout")},
    )
    task = AugmentedTask(
        model,
        dataset,
        name="resnet",
        batch_size=config.value("batch"),
        augment=config.value("augment"),
    )
    rows = MEASURED // (config.value("width") * math.prod(dataset.shape[1:]))
    task.metric_rows = max(LEAST_ROWS, min(task.metric_rows, rows))
    task.note = "validated on its test images" if config.protocol == "paper" else ""
    return task


def published(splits: Splits) -> Splits:
    """All that is not for testing for training, and the test split for validation too."""
    both = zip(splits["train"], splits["valid"], strict=True)
    return {
        "train": tuple(torch.cat(parts) for parts in both),
        "valid": splits["test"],
        "test": splits["test"],
    }
