"""CIFAR-10, binary version: records of 1 label byte, then 1,024 red, 1,024 green and 1,024 blue
bytes, row by row.

Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.source import Payload, Source, fetch
from lo_framework.optimizees.datasets.splits import Splits, check_labels, image_splits
from lo_framework.schema import Checked, Width

RECORDS = 10_000  # in each of the six files
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
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
    size=lambda header: RECORDS * RECORD,
)


@dataclass(frozen=True, kw_only=True)
class CifarConfig(Checked):
    """Options of ``cifar10``. `size`: average the images down to size x size; `grey`: one channel
    of luma.
    """

    size: Width | None = None
    grey: bool = False


def load_cifar10(config: CifarConfig, data_dir: str | None) -> Splits:
    """train 45,000, valid 5,000, test 10,000 images [n, 3, 32, 32] (or `size`, `grey`) in [0, 1]
    with labels 0..9.

    Raises:
        UserError: files are missing, truncated or of another format.
    """
    parsed = {name: parse(payload) for name, payload in fetch(CIFAR10, data_dir).items()}
    train = tuple(torch.cat([parsed[name][i] for name in TRAIN]) for i in range(2))
    return image_splits(train, parsed[TEST], owner="cifar10", size=config.size, grey=config.grey)


def parse(payload: Payload) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [n, 3, 32, 32] and labels int64 [n] of one file.

    Raises:
        UserError: not RECORDS records, or a label above 9.
    """
    payload.require(RECORDS * RECORD)
    records = torch.frombuffer(payload.data, dtype=torch.uint8).reshape(RECORDS, -1)
    labels = check_labels(records[:, 0], 10, payload.where)
    return records[:, 1:].reshape(RECORDS, 3, SIDE, SIDE), labels
