"""Small data files as the published sets have them."""

import gzip
import lzma
import struct
from datetime import datetime, timedelta

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


def ett_csv(hours, seed=0, start="2016-07-01 00:00:00"):
    """A file as ETTh1.csv, and the numbers inside: daily waves, a drift and noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(hours, dtype=torch.float64)[:, None]
    phase = torch.rand(7, generator=generator) * 6
    values = 5 * torch.sin(time * 0.2618 + phase) + time * 0.01 + torch.arange(7)
    values = values + torch.randn(hours, 7, generator=generator, dtype=torch.float64)
    first = datetime.fromisoformat(start)
    lines = ["date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"]
    for i, row in enumerate(values.tolist()):
        date = first + timedelta(hours=i)
        lines.append(f"{date:%Y-%m-%d %H:%M:%S},{','.join(f'{x:.5f}' for x in row)}")
    read = [[float(x) for x in line.split(",")[1:]] for line in lines[1:]]
    return "\n".join(lines).encode() + b"\n", torch.tensor(read, dtype=torch.float64)
