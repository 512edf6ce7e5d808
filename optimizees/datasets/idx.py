"""MNIST and Fashion-MNIST: images and labels in IDX files.

Layout: big-endian int32 magic (2051 images, 2049 labels), the count, for images height and width,
then bytes. Source: LeCun, Cortes, Burges, The MNIST Database; Xiao, Rasul, Vollgraf 2017
(Fashion-MNIST).
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.source import Payload, Source, fetch
from lo_framework.optimizees.datasets.splits import Rows, Splits, check_labels, image_splits
from lo_framework.schema import Checked, Width
from lo_framework.spec import UserError

IMAGES, LABELS = 2051, 2049
PARTS = ("train", "t10k")
FILES = tuple(
    f"{part}-{kind}" for part in PARTS for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def announced(header: bytes) -> int:
    """The size in bytes that the ``header`` of an IDX file announces, else its own."""
    magic, *sides = struct.unpack(">4i", header)
    dims = {IMAGES: 3, LABELS: 1}.get(magic, 0)
    return 4 * (1 + dims) + max(math.prod(sides[:dims]), 0) if dims else len(header)


def digests(*each: str) -> dict[str, str]:
    """The digests of the compressed files, in the order of `FILES`."""
    return {f"{name}.gz": digest for name, digest in zip(FILES, each, strict=True)}


MNIST = Source(
    name="mnist",
    folders=("mnist", "MNIST/raw"),
    files=FILES,
    size=announced,
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    sha256=digests(
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)
FASHION_MNIST = Source(
    name="fashion_mnist",
    folders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
    files=FILES,
    size=announced,
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    sha256=digests(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)
# The two sets' files have the same names, so a data folder that IS one set's folder would pass for
# the other's.
LABEL_DIGESTS = {
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5": "mnist",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2": "mnist",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9": "fashion_mnist",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34": "fashion_mnist",
}


@dataclass(frozen=True, kw_only=True)
class IdxConfig(Checked):
    """Options of ``mnist`` and ``fashion_mnist``. `size`: average images down to size x size;
    `rows`: keep so many training images, a small set, which is soon overfitted.
    """

    size: Width | None = None
    rows: Rows | None = None


def load_idx(source: Source, config: IdxConfig, data_dir: str | None) -> Splits:
    """train 54,000, valid 6,000, test 10,000 images [n, 1, 28, 28] (or `size`) in [0, 1] with
    labels 0..9.

    Raises:
        UserError: files are missing, truncated, of another format, or of the other set.
    """
    payloads = fetch(source, data_dir)
    parts = []
    for part in PARTS:
        pixels = payloads[f"{part}-images-idx3-ubyte"]
        labels = payloads[f"{part}-labels-idx1-ubyte"]
        holds = LABEL_DIGESTS.get(hashlib.sha256(labels.data).hexdigest(), source.name)
        if holds != source.name:
            raise UserError(
                f"{labels.where}: expected a file of {source.name}, this one is of {holds}"
            )
        x = parse(pixels, IMAGES, dims=3).unsqueeze(1)
        y = check_labels(parse(labels, LABELS, dims=1), 10, labels.where)
        if len(x) != len(y):
            raise UserError(
                f"{pixels.where}: expected {len(y):,} images, one per label of the label file, "
                f"found {len(x):,}"
            )
        parts.append((x, y))
    return image_splits(*parts, owner=source.name, size=config.size, rows=config.rows)


def parse(payload: Payload, magic: int, *, dims: int) -> Tensor:
    """The uint8 tensor of `dims` dimensions in an IDX file.

    Raises:
        UserError: too short for a header, another magic number, no items, or not the size that the
            header announces.
    """
    header = 4 * (1 + dims)
    if len(payload.data) < header:
        payload.require(header)
    number, *shape = struct.unpack(f">{1 + dims}i", payload.data[:header])
    if number != magic:
        raise UserError(f"{payload.where}: expected IDX magic number {magic}, found {number}")
    if min(shape) < 1:
        raise UserError(f"{payload.where}: the header announces {'x'.join(map(str, shape))} items")
    payload.require(header + math.prod(shape))
    return torch.frombuffer(payload.data, dtype=torch.uint8, offset=header).reshape(shape)
