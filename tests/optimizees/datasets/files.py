"""Small data files as the published sets have them."""

import gzip
import lzma
import struct

import pytest
import torch

from lo_framework.optimizees.datasets import load
from lo_framework.spec import UserError

TRAIN, TEST = 40, 20
PACK = {"": lambda b: b, ".gz": gzip.compress, ".xz": lzma.compress}
IMAGES = "train-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"
RECORD = 3073


def idx_files(seed=0):
    """Small files as MNIST's: name -> bytes, and the images and labels inside."""
    generator = torch.Generator().manual_seed(seed)
    files, arrays = {}, {}
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        x = torch.randint(256, (count, 6, 6), dtype=torch.uint8, generator=generator)
        y = torch.randint(10, (count,), dtype=torch.uint8, generator=generator)
        files[f"{part}-images-idx3-ubyte"] = (
            struct.pack(">4i", 2051, count, 6, 6) + x.numpy().tobytes()
        )
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, count) + y.numpy().tobytes()
        arrays[part] = (x, y)
    return files, arrays


def write(folder, files, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (name + suffix)).write_bytes(PACK[suffix](data))


def fails(spec, folder):
    with pytest.raises(UserError) as error:
        load(spec, folder)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
