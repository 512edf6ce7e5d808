"""Readers of data files: every suffix and layout, every way a file can be broken, and the real
files where present.
"""

import struct
import tarfile

import pooch
import pytest
import torch

from lo_framework.optimizees.datasets import cifar, load
from lo_framework.optimizees.datasets.idx import FILES
from lo_framework.optimizees.datasets.splits import to_images
from tests.optimizees.datasets.files import (
    IMAGES,
    LABELS,
    PACK,
    RECORD,
    TEST,
    fails,
    idx_files,
    write,
)


@pytest.mark.parametrize("suffix", list(PACK))
@pytest.mark.parametrize("layout", ["", "mnist", "MNIST/raw"])
def test_idx(tmp_path, suffix, layout):
    files, arrays = idx_files()
    write(tmp_path / layout, files, suffix)
    data = load("mnist", tmp_path)
    assert data.shape == (1, 6, 6)
    assert {k: len(v[0]) for k, v in data.splits.items()} == {"train": 36, "valid": 4, "test": 20}
    x, y = arrays["t10k"]
    torch.testing.assert_close(data.splits["test"][0][:, 0], x.float() / 255)
    assert torch.equal(data.splits["test"][1], y.long())
    both = torch.cat([data.splits["train"][0], data.splits["valid"][0]])
    content = sorted(row.numpy().tobytes() for row in (both * 255).round().to(torch.uint8))
    assert content == sorted(row.numpy().tobytes() for row in arrays["train"][0])


def test_cache_is_per_spec_and_folder(tmp_path, monkeypatch):
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / name / "fashion-mnist", idx_files(seed)[0], ".gz")
    a, b = load("fashion_mnist", tmp_path / "a"), load("fashion_mnist", tmp_path / "b")
    assert load("fashion_mnist", str(tmp_path / "a")) is a
    monkeypatch.setenv("LO_DATA_DIR", str(tmp_path / "a"))
    assert load("fashion_mnist") is a
    assert load("fashion_mnist:size=3") is not a
    assert not torch.equal(a.splits["test"][0], b.splits["test"][0])


def test_size_is_area_average(tmp_path):
    files, arrays = idx_files()
    write(tmp_path, files)
    small = load("mnist:size=3", tmp_path).splits["test"][0]
    want = arrays["t10k"][0].float().reshape(TEST, 3, 2, 3, 2).mean((2, 4)) / 255
    torch.testing.assert_close(small[:, 0], want)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_few_rows_are_the_first_of_training(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cifar, "RECORDS", 4)
    write(tmp_path, cifar_files() if name == "cifar10" else idx_files()[0])
    every, few = load(name, tmp_path).splits, load(f"{name}:rows=11", tmp_path).splits
    for split, kept in {"train": 11, "valid": None, "test": None}.items():
        for x, y in zip(few[split], every[split], strict=True):
            assert torch.equal(x, y[:kept])
    most = len(every["train"][0])
    assert f"{name}: rows={most + 1} is more than its {most} training images" in fails(
        f"{name}:rows={most + 1}", tmp_path
    )
    assert "at least 10" in fails(f"{name}:rows=9", tmp_path)


def test_grey_keeps_range():
    pixels = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0]], dtype=torch.uint8).reshape(
        3, 3, 1, 1
    )
    grey = to_images(pixels, size=None, grey=True, owner="x")
    torch.testing.assert_close(grey.flatten(), torch.tensor([1.0, 0.0, 0.299]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: f.update({IMAGES: f[IMAGES][:-7]}),
            [IMAGES, "expected 1,456 bytes, found 1,449"],
        ),
        (
            lambda f: f.update({IMAGES: f[IMAGES] + b"x"}),
            [IMAGES, "expected 1,456 bytes, found 1,457"],
        ),
        (lambda f: f.update({IMAGES: f[IMAGES][:9]}), [IMAGES, "expected 16 bytes, found 9"]),
        (lambda f: f.update({IMAGES: b""}), [IMAGES, "expected 16 bytes, found 0"]),
        (lambda f: f.update({IMAGES: b"\x00" * 4 + f[IMAGES][4:]}), ["magic number 2051, found 0"]),
        (
            lambda f: f.update({IMAGES: f["train-labels-idx1-ubyte"]}),
            ["magic number 2051, found 2049"],
        ),
        (lambda f: f.update({LABELS: struct.pack(">2i", 2049, 0)}), [LABELS, "announces 0 items"]),
        (
            lambda f: f.update({LABELS: struct.pack(">2i", 2049, 20) + b"\x0a" * 20}),
            [LABELS, "label 10", "0 to 9"],
        ),
        (
            lambda f: f.update({LABELS: struct.pack(">2i", 2049, 5) + b"\x01" * 5}),
            ["expected 5 images", "found 20"],
        ),
    ],
)
def test_broken_idx(tmp_path, change, words):
    files, _ = idx_files()
    change(files)
    write(tmp_path, files)
    message = fails("mnist", tmp_path)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_broken_compression(tmp_path, suffix):
    files, _ = idx_files()
    write(tmp_path, files, suffix)
    path = tmp_path / (IMAGES + suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    message = fails("mnist", tmp_path)
    assert str(path) in message
    assert "expected" in message
    path.write_bytes(whole[:-20] + bytes(20))
    assert str(path) in fails("mnist", tmp_path)
    path.write_bytes(b"not compressed at all")
    assert str(path) in fails("mnist", tmp_path)


def test_missing_files_are_named(tmp_path):
    files, _ = idx_files()
    del files[LABELS]
    write(tmp_path / "mnist", files)
    message = fails("mnist", tmp_path)
    assert f"missing {LABELS} " in message
    assert str(tmp_path / "mnist") in message
    assert str(tmp_path / "cache" / "mnist") in message
    assert "no network in tests" in message
    message = fails("cifar10", None)
    assert "data_batch_1.bin, data_batch_2.bin" in message


def test_missing_files_without_pooch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    message = fails("mnist", tmp_path)
    assert "needs pooch (it downloads data sets): pip install" in message
    assert "no folder: name one with --data-dir" in fails("mnist", None)


def test_missing_folder(tmp_path):
    assert "does not exist" in fails("mnist", tmp_path / "nowhere")
    assert load("digits", tmp_path / "nowhere").name == "digits"


@pytest.mark.parametrize("there", ["nothing", "nothing, read-only", "files of the person's"])
def test_download(tmp_path, monkeypatch, there):
    """Into the named folder only if it is empty; what holds files stays as it is."""
    files, _ = idx_files()
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url, known_hash))
        write(path, {fname.removesuffix(".gz"): files[fname.removesuffix(".gz")]}, ".gz")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr("os.access", lambda path, mode: "read-only" not in there)
    root = tmp_path / "data"
    held = FILES[:3] if "person" in there else ()
    write(root, {name: files[name] for name in held})
    load("mnist", root)
    assert len(asked) == 4 - len(held)
    url, digest = asked[-1]
    assert url.startswith("https://")
    assert url.endswith("t10k-labels-idx1-ubyte.gz")
    assert digest == "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    folder = (root if there == "nothing" else tmp_path / "cache") / "mnist"
    assert (folder / f"{LABELS}.gz").is_file()
    if there != "nothing":
        assert sorted(path.name for path in root.iterdir()) == sorted(held)


def cifar_files(count=4):
    generator = torch.Generator().manual_seed(0)
    files = {}
    for name in (*cifar.TRAIN, cifar.TEST):
        records = torch.randint(256, (count, RECORD), dtype=torch.uint8, generator=generator)
        records[:, 0] = torch.randint(10, (count,), generator=generator)
        files[name] = records.numpy().tobytes()
    return files


@pytest.mark.parametrize("suffix", [*PACK, "archive"])
def test_cifar(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(cifar, "RECORDS", 4)
    files = cifar_files()
    folder = tmp_path / "cifar-10-batches-bin"
    write(folder, files, "" if suffix == "archive" else suffix)
    if suffix == "archive":
        with tarfile.open(tmp_path / cifar.CIFAR10.archive, "w:gz") as tar:
            tar.add(folder, arcname=folder.name)
        for path in folder.iterdir():
            path.unlink()
    data = load("cifar10", tmp_path)
    assert {k: tuple(v[0].shape) for k, v in data.splits.items()} == {
        "train": (18, 3, 32, 32),
        "valid": (2, 3, 32, 32),
        "test": (4, 3, 32, 32),
    }
    first = files[cifar.TEST][:RECORD]
    assert data.splits["test"][1][0] == first[0]
    assert data.splits["test"][0][0, 1, 0, 2] == first[1 + 1024 + 2] / 255
    assert load("cifar10:size=8,grey=1", tmp_path).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[:-1], "expected 12,292 bytes, found 12,291"),
        (lambda d: d[:RECORD], "expected 12,292 bytes, found 3,073"),
        (lambda d: b"\xff" + d[1:], "label 255 is out of range"),
    ],
)
def test_broken_cifar(tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(cifar, "RECORDS", 4)
    files = cifar_files()
    files["data_batch_3.bin"] = change(files["data_batch_3.bin"])
    write(tmp_path, files)
    message = fails("cifar10", tmp_path)
    assert words in message
    assert "data_batch_3.bin" in message


def test_broken_archive(tmp_path):
    path = tmp_path / cifar.CIFAR10.archive
    path.write_bytes(b"no archive")
    assert str(path) in fails("cifar10", tmp_path)
    with tarfile.open(path, "w:gz"):
        pass
    assert "does not hold data_batch_1.bin" in fails("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mnist:size=0", "at least 1"),
        ("mnist:size=7", "size=7 is larger than the 6x6 images"),
        ("mnist:grey=1", 'unknown option "grey"'),
        ("cifar10:gray=1", '(did you mean "grey"?)'),
        ("minst", '(did you mean "mnist"?)'),
    ],
)
def test_bad_options(tmp_path, spec, words):
    write(tmp_path, idx_files()[0])
    assert words in fails(spec, tmp_path)


COUNTS = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion_mnist": ([6000] * 10, [1000] * 10),
    "cifar10": ([5000] * 10, [1000] * 10),
}


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", pytest.param("cifar10", marks=pytest.mark.slow)]
)
def test_real_files(data_dir, name):
    splits = load(f"{name}:size=4", data_dir).splits
    train, test = COUNTS[name]
    both = torch.cat([splits["train"][1], splits["valid"][1]])
    assert both.bincount().tolist() == train
    assert splits["test"][1].bincount().tolist() == test
    assert len(splits["valid"][0]) == len(both) // 10
    assert all(x.min() >= 0 and x.max() <= 1 for x, _ in splits.values())


def test_one_sets_folder_is_not_taken_for_the_others(data_dir):
    assert "expected a file of fashion_mnist, this one is of mnist" in fails(
        "fashion_mnist:size=4", data_dir / "mnist"
    )
