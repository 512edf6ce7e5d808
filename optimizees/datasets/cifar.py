"""CIFAR-10 and CIFAR-100, binary versions: records of a label byte (CIFAR-100: one of 20 coarse,
then one of 100 fine labels), then 1,024 red, 1,024 green and 1,024 blue bytes, row by row.

Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.source import Payload, Source, fetch
from lo_framework.optimizees.datasets.splits import Rows, Splits, check_labels, image_splits
from lo_framework.schema import Checked, Width

RECORDS = 10_000  # in each of the six files
SIDE = 32
PIXELS = 3 * SIDE * SIDE
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = "test_batch.bin"

CIFAR10 = Source(
    name="cifar10",
    folders=("cifar-10-batches-bin",),
    files=(*TRAIN, TEST),
    url="https://www.cs.toronto.edu/~kriz/",
    sha256={
        "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    },
    archive="cifar-10-binary.tar.gz",
    size=lambda header: RECORDS * (1 + PIXELS),
)
# The published files, and a sample of them under names of its own: no result of the one passes for
# one of the other.
FILES100 = {"train.bin": 50_000, "test.bin": 10_000}
SAMPLE100 = {"train_sample.bin": 2000, "test_sample.bin": 500}
FINE, COARSE = 100, 20
CIFAR100 = Source(
    name="cifar100",
    folders=("cifar-100-binary",),
    files=tuple(FILES100),
    url="https://www.cs.toronto.edu/~kriz/",
    sha256={
        "cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed"
        "807d710a4eb253b1f2a199162a40d8ec"
    },
    archive="cifar-100-binary.tar.gz",
    size=lambda header: max(FILES100.values()) * (2 + PIXELS),
)


@dataclass(frozen=True, kw_only=True)
class CifarConfig(Checked):
    """Options of ``cifar10``. `size`: average the images down to size x size; `rows`: keep so many
    training images; `grey`: one channel of luma.
    """

    size: Width | None = None
    rows: Rows | None = None
    grey: bool = False


@dataclass(frozen=True, kw_only=True)
class Cifar100Config(CifarConfig):
    """Options of ``cifar100``, besides those of ``cifar10``.

    Attributes:
        labels: the 100 classes, or the 20 that they belong to.
        sample: read ``train_sample.bin`` (2,000 images) and ``test_sample.bin`` (500) in place of
            the published files. Nothing from it stands beside a published number.
    """

    labels: Literal["fine", "coarse"] = "fine"
    sample: bool = False

    @property
    def classes(self) -> int:
        return FINE if self.labels == "fine" else COARSE


def load_cifar10(config: CifarConfig, data_dir: str | None) -> Splits:
    """train 45,000, valid 5,000, test 10,000 images [n, 3, 32, 32] (or `size`, `grey`) in [0, 1]
    with labels 0..9.

    Raises:
        UserError: files are missing, truncated or of another format.
    """
    parsed = {name: parse(payload) for name, payload in fetch(CIFAR10, data_dir).items()}
    train = tuple(torch.cat([parsed[name][i] for name in TRAIN]) for i in range(2))
    test, size, rows = parsed[TEST], config.size, config.rows
    return image_splits(train, test, owner="cifar10", size=size, rows=rows, grey=config.grey)


def load_cifar100(config: Cifar100Config, data_dir: str | None) -> Splits:
    """train 45,000, valid 5,000, test 10,000 images as those of ``cifar10``, or of the sample
    1,800, 200 and 500, with labels 0..99 (or 0..19).

    Raises:
        UserError: files are missing, truncated or of another format.
    """
    files, source = FILES100, CIFAR100
    if config.sample:  # it is published nowhere
        files = SAMPLE100
        source = replace(CIFAR100, files=tuple(files), archive="", url="")
    payloads = fetch(source, data_dir)
    labels = {FINE: 1, COARSE: 0}
    train, test = (
        parse(payloads[name], count=count, labels=2, at=labels[config.classes], most=config.classes)
        for name, count in files.items()
    )
    size, rows, grey = config.size, config.rows, config.grey
    return image_splits(train, test, owner="cifar100", size=size, rows=rows, grey=grey)


def parse(
    payload: Payload, *, count: int | None = None, labels: int = 1, at: int = 0, most: int = 10
) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [n, 3, 32, 32] and labels int64 [n] of one file.

    Args:
        count: records that it has, `RECORDS` by default.
        labels: bytes before the pixels, of which the label is the one `at` that place.
        most: classes.

    Raises:
        UserError: not as many records, or a label that is none.
    """
    count = RECORDS if count is None else count
    payload.require(count * (labels + PIXELS))
    records = torch.frombuffer(payload.data, dtype=torch.uint8).reshape(count, -1)
    found = check_labels(records[:, at], most, payload.where)
    return records[:, labels:].reshape(count, 3, SIDE, SIDE), found
