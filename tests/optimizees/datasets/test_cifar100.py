"""CIFAR-100's binary files, and the sample of them."""

import tarfile

import pytest
import torch

from lo_framework.optimizees.datasets import cifar, load
from tests.optimizees.datasets.files import PACK, fails, write

RECORD = 3074
SMALL = {"train.bin": 20, "test.bin": 5}
SAMPLE = {"train_sample.bin": 10, "test_sample.bin": 3}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(cifar, "FILES100", SMALL)
    monkeypatch.setattr(cifar, "SAMPLE100", SAMPLE)


def files(counts):
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, count in counts.items():
        records = torch.randint(256, (count, RECORD), dtype=torch.uint8, generator=generator)
        records[:, 0] = torch.randint(20, (count,), generator=generator)
        records[:, 1] = torch.randint(100, (count,), generator=generator)
        made[name] = records.numpy().tobytes()
    return made


@pytest.mark.parametrize("suffix", [*PACK, "archive"])
def test_fine_and_coarse_labels(tmp_path, suffix):
    made = files(SMALL)
    folder = tmp_path / "cifar-100-binary"
    write(folder, made, "" if suffix == "archive" else suffix)
    if suffix == "archive":
        with tarfile.open(tmp_path / cifar.CIFAR100.archive, "w:gz") as tar:
            tar.add(folder, arcname=folder.name)
        for path in folder.iterdir():
            path.unlink()
    fine, coarse = load("cifar100", tmp_path), load("cifar100:labels=coarse", tmp_path)
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    sizes = {split: tuple(x.shape) for split, (x, _) in fine.splits.items()}
    assert sizes == {"train": (18, 3, 32, 32), "valid": (2, 3, 32, 32), "test": (5, 3, 32, 32)}
    record = made["test.bin"][:RECORD]
    assert coarse.splits["test"][1][0] == record[0]
    assert fine.splits["test"][1][0] == record[1]
    assert fine.splits["test"][0][0, 2, 1, 3] == record[2 + 2048 + 32 + 3] / 255


def test_the_sample_is_read_only_where_it_is_named(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    write(folder, files(SAMPLE), ".xz")
    data = load("cifar100:sample=1", tmp_path)
    assert data.name == "cifar100:sample=1"
    assert {k: len(x) for k, (x, _) in data.splits.items()} == {"train": 9, "valid": 1, "test": 3}
    message = fails("cifar100", tmp_path)
    assert "missing train.bin, test.bin" in message
    assert str(folder) in message


def test_a_missing_sample_is_not_downloaded(tmp_path):
    message = fails("cifar100:sample=1", tmp_path)
    assert "missing train_sample.bin, test_sample.bin" in message
    assert "it is not downloaded" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[:-1], "expected 61,480 bytes, found 61,479"),
        (lambda d: d + b"x", "expected 61,480 bytes, found 61,481"),
        (lambda d: d[:1] + b"\x64" + d[2:], "label 100 is out of range: expected 0 to 99"),
    ],
)
def test_broken_files(tmp_path, change, words):
    made = files(SMALL)
    made["train.bin"] = change(made["train.bin"])
    write(tmp_path, made)
    message = fails("cifar100", tmp_path)
    assert words in message
    assert str(tmp_path / "train.bin") in message


def test_the_sample_of_real_files(data_dir, monkeypatch):
    monkeypatch.setattr(cifar, "SAMPLE100", {"train_sample.bin": 2000, "test_sample.bin": 500})
    monkeypatch.setattr(cifar, "FILES100", {"train.bin": 50_000})
    splits = load("cifar100:sample=1,size=4", data_dir).splits
    both = torch.cat([splits["train"][1], splits["valid"][1]])
    assert both.bincount().tolist() == [20] * 100
    assert splits["test"][1].bincount().tolist() == [5] * 100
