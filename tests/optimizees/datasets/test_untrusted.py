"""Data files that are not what they should be, and folders that are not ours."""

import gzip
import lzma
import struct
import tarfile

import pooch
import pytest
import torch

from lo_framework.optimizees import datasets
from lo_framework.optimizees.datasets import cifar, load
from lo_framework.optimizees.datasets.idx import FILES
from tests.optimizees.datasets.files import IMAGES, PACK, fails, idx_files, write
from tests.test_imports import python


@pytest.mark.parametrize("held", [(), ("notes.txt",)])
def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, capfd, held):
    def retrieve(url, known_hash, fname, path):
        path.mkdir(parents=True)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    write(tmp_path / "data", dict.fromkeys(held, b"x"))
    assert "no network in tests" in fails("mnist", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == list(held)
    assert not (tmp_path / "cache" / "mnist").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", PACK)
def test_names_with_a_dot_are_read(tmp_path, suffix):
    files, arrays = idx_files()
    write(tmp_path, {name.replace("-idx", ".idx"): data for name, data in files.items()}, suffix)
    splits = load("mnist", tmp_path).splits
    assert torch.equal(splits["test"][1], arrays["t10k"][1].to(torch.int64))
    (tmp_path / f"train-images.idx3-ubyte{suffix}").write_bytes(PACK[suffix](b"content " * 9))
    datasets._loaded.clear()
    line = fails("mnist", tmp_path)
    assert "train-images.idx3-ubyte" in line and "magic number" in line


@pytest.mark.parametrize("count", [1, 5, 9])
def test_small_sets_are_one_line(tmp_path, count):
    files, _ = idx_files()
    for name, (magic, *shape), size in (
        (IMAGES, (2051, count, 6, 6), 36 * count),
        ("train-labels-idx1-ubyte", (2049, count), count),
    ):
        files[name] = struct.pack(f">{1 + len(shape)}i", magic, *shape) + bytes(size)
    write(tmp_path, files)
    assert fails("mnist", tmp_path) == (
        f"mnist: {count} training images are too few: expected at least 10, of which one is for "
        "validation"
    )


def bomb(suffix, header, megabytes):
    """A small compressed file that begins with ``header`` and stands for so many megabytes."""
    zeros = bytes(1 << 20)
    if suffix == ".gz":
        return gzip.compress(header) + megabytes * gzip.compress(zeros, 1)
    return lzma.compress(header + zeros * megabytes, preset=0)


@pytest.mark.parametrize("suffix", [".gz", ".xz", "", "tar"])
def test_a_bomb_is_read_to_its_announced_size(tmp_path, suffix):
    """1000 images announced, 400 MB in the file: read in bounded memory and time."""
    size, header = 400, struct.pack(">4i", 2051, 1000, 28, 28)
    name = IMAGES
    if suffix == "tar":
        name = cifar.CIFAR10.archive
        with tarfile.open(tmp_path / name, "w:gz", compresslevel=1) as tar:
            for member in (*cifar.TRAIN, cifar.TEST):
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{member}")
                info.size = size << 20 if member == "data_batch_2.bin" else 1
                with open("/dev/zero", "rb") as zeros:
                    tar.addfile(info, zeros)
    elif suffix:
        (tmp_path / (name + suffix)).write_bytes(bomb(suffix, header, size))
    else:
        with open(tmp_path / name, "wb") as file:
            file.write(header)
            file.truncate(size << 20)
    for other in FILES[1:] if suffix != "tar" else ():
        (tmp_path / other).write_bytes(b"")
    script = f"""
        import resource, sys
        from lo_framework.optimizees.datasets import load
        from lo_framework.spec import UserError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            load({"cifar10" if suffix == "tar" else "mnist"!r}, sys.argv[1])
        except UserError as error:
            print(error)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    """
    line = python(script, str(tmp_path))
    want = (
        "data_batch_1.bin: expected" if suffix == "tar" else "expected 784,016 bytes, found 784,017"
    )
    assert want in line and "Error" not in line


def test_what_a_header_may_not_announce(tmp_path):
    files, _ = idx_files()
    files[IMAGES] = struct.pack(">4i", 2051, 2**31 - 1, 28, 28) + bytes(99)
    write(tmp_path, files)
    assert "the header announces 1,683,627,179,264 bytes, and at most" in fails("mnist", tmp_path)
    archive = tmp_path / cifar.CIFAR10.archive
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"comment": "y" * (1 << 22)}
        tar.addfile(info)
    assert "broken archive: a header of" in fails("cifar10", tmp_path)
