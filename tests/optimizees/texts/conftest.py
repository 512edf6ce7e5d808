"""Texts without a network: small files in the original formats, and an empty cache."""

from __future__ import annotations

import gzip
import lzma
import tarfile
from io import BytesIO
from pathlib import Path

import pooch
import pytest
import torch

from lo_framework.optimizees.datasets import imdb, multi30k, wikitext

PACK = {"": lambda b: b, ".gz": gzip.compress, ".xz": lzma.compress}
WORDS = [*"abcdefghij", "the", "of", "and", "<unk>", ",", "."]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No data folder in the environment, an empty cache, nothing read before."""
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv("LO_DATA_DIR", raising=False)
    for cached in (
        *(wikitext.read, wikitext.load, imdb.read, imdb.load),
        *(multi30k.read, multi30k.load),
    ):
        cached.cache_clear()


def article(name, lines, generator):
    """The lines of an article: a title, a heading, and paragraphs of 5 to 40 words."""
    text = [" ", f" = {name} = ", " ", " = = Section = = ", " "]
    for _ in range(lines):
        count = int(torch.randint(5, 41, (), generator=generator))
        # Frequent words first, as in texts.
        picks = torch.randint(len(WORDS), (count, 2), generator=generator).amin(1)
        text.append(f" {' '.join(WORDS[i] for i in picks)} ")
    return text


def wikitext_files(parts=("valid", "test"), articles=6, lines=8):
    """Files as WikiText-2's by name."""
    generator = torch.Generator().manual_seed(0)
    files = {}
    for part in parts:
        text = []
        for k in range(articles):
            text += article(f"{part.title()} article {k}", lines, generator)
        files[f"wiki.{part}.tokens"] = ("\n".join(text) + "\n").encode()
    return files


def write(folder, files, suffix=""):
    for name, data in files.items():
        path = folder / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PACK[suffix](data))
    return folder


def imdb_files(train=20, test=6):
    """Reviews as IMDB's by path: half of each split is positive."""
    generator = torch.Generator().manual_seed(0)
    files = {"aclImdb/README": b"about", "aclImdb/train/urls_pos.txt": b"http://\n"}
    kinds = {"pos": "great lovely film", "neg": "dull awful film"}
    for part, count in (("train", train), ("test", test)):
        for side, words in kinds.items():
            for k in range(count // 2):
                picks = torch.randint(3, (4 + k % 9,), generator=generator)
                text = " ".join(words.split()[i] for i in picks)
                rating = (7 + k % 4) if side == "pos" else (1 + k % 4)
                path = f"aclImdb/{part}/{side}/{k}_{rating}.txt"
                files[path] = f"{part.title()}, {k}: <br />{text}!\n".encode()
    return files


def multi30k_files(train=30, others=6):
    """Files as Multi30k's by name: English says the German words in the other order."""
    generator = torch.Generator().manual_seed(0)
    german = ["Ein", "Mann", "geht", "im", "Wald", ",", "und"]
    english = ["A", "man", "walks", "in", "woods", ",", "and"]
    files = {}
    for name, count in (("train", train), ("val", others), ("test_2016_flickr", others)):
        lines = {"de": [], "en": []}
        for _ in range(count):
            length = int(torch.randint(2, 9, (), generator=generator))
            picks = torch.randint(7, (length,), generator=generator).tolist()
            lines["de"].append(" ".join(german[i] for i in picks) + ".")
            lines["en"].append(" ".join(english[i] for i in reversed(picks)) + ".")
        for language, each in lines.items():
            files[f"{name}.{language}"] = ("\n".join(each) + "\n").encode()
    return files


def pack(path, files, suffix):
    """A tar of the files."""
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PACK[suffix](data.getvalue()))


@pytest.fixture
def texts(tmp_path) -> Path:
    """A data folder with all sets."""
    folder = tmp_path / "data"
    write(folder / "multi30k", multi30k_files(), ".gz")
    write(folder / "wikitext-2", wikitext_files())
    return write(folder, imdb_files())
