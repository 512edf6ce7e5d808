"""``imdb``: its reader, its splits and its network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lo_framework.optimizees.datasets import imdb
from lo_framework.optimizees.datasets.vocabulary import Rules
from lo_framework.optimizees.models.lstm import BiLSTM, LSTMSizes
from tests.optimizees.contract import (
    make,
    refused,
    roles,
    same_bits_twice,
    seeded,
    vmapped_equals_looped,
)
from tests.optimizees.texts.conftest import PACK, imdb_files, pack, write

TINY = "imdb:size=tiny,length=6,batch=3,hidden=5,embed=4"
RULES = Rules(size=30, words="basic_english")


@pytest.mark.parametrize("suffix", list(PACK))
@pytest.mark.parametrize("name", ["aclImdb", "aclImdb_v1", "aclImdb_subset"])
@pytest.mark.parametrize("place", ["", "aclImdb_subset"])
def test_archives_and_folders_give_the_same_reviews(tmp_path, suffix, name, place):
    files = imdb_files()
    write(tmp_path / "a", files)
    pack(tmp_path / "b" / place / f"{name}.tar{suffix}", files, suffix)
    one, two = imdb.read(str(tmp_path / "a")), imdb.read(str(tmp_path / "b"))
    assert one == two
    assert {part: len(each) for part, each in one.items()} == {"train": 20, "test": 6}
    for part, each in one.items():
        assert [r.label for r in each] == [0] * (len(each) // 2) + [1] * (len(each) // 2)
        for k, review in enumerate(each):
            side = "pos" if review.label else "neg"
            (path,) = (
                p for p in files if p.startswith(f"aclImdb/{part}/{side}/{k % (len(each) // 2)}_")
            )
            assert review.text == files[path].decode()


def test_splits_are_disjoint_and_words_are_of_the_training_reviews(tmp_path):
    files = imdb_files(train=40)
    for k, path in enumerate(
        p for p in files if p.startswith("aclImdb/train/") and p.count("/") == 3
    ):
        files[path] = f"only{k} here".encode()
    write(tmp_path, files)
    data = imdb.load(str(tmp_path), Rules(size=500, words="basic_english"), 8, False)
    assert {part: len(x) for part, (x, _) in data.splits.items()} == {
        "train": 36,
        "valid": 4,
        "test": 6,
    }
    known = set(data.vocabulary.decode(range(len(data.vocabulary))))
    assert "test" not in known  # the word that begins each test review
    reviews = imdb.read(str(tmp_path))["train"]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    parts = {"valid": order[:4], "train": order[4:]}
    for part, numbers in parts.items():
        for row, label, k in zip(*data.splits[part], numbers, strict=True):
            (ids,) = data.vocabulary.encode([reviews[k].text.replace("\n", " ")])
            assert row.tolist() == (ids + [0] * 8)[:8]
            assert label == reviews[k].label
    alone = [
        reviews[k].text.split()[0] in known for k in parts["train"] if "only" in reviews[k].text
    ]
    held = [
        reviews[k].text.split()[0] in known for k in parts["valid"] if "only" in reviews[k].text
    ]
    assert all(alone) and not any(held) and alone and held


def test_in_the_paper_test_reviews_validate(texts):
    task = make(f"{TINY},protocol=paper", texts)
    assert all(torch.equal(a, b) for a, b in zip(task.full("valid"), task.full("test")))
    assert len(task.full("train")[0]) == 20
    assert task.note == ("20 of IMDB's 25,000 training reviews; validated on its test reviews")
    assert make(TINY, texts).note == "20 of IMDB's 25,000 training reviews"


def reference(sizes, params):
    lstm = nn.LSTM(sizes.embed, sizes.hidden, sizes.layers, batch_first=True, bidirectional=True)
    lstm.load_state_dict({k[5:]: v for k, v in params.items() if k.startswith("lstm.")})
    return lstm


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pad", [None, 0])
def test_it_is_torchs_lstm(layers, pad):
    sizes = LSTMSizes(vocab=9, embed=4, hidden=5, layers=layers, classes=3, dropout=0.4, pad=pad)
    model = BiLSTM(sizes)
    params, _ = model.init(seeded())
    lengths = torch.tensor([7, 3, 1, 6])
    x = torch.randint(1, 9, (4, 7), generator=seeded(1))
    x = torch.where(torch.arange(7) < lengths[:, None], x, 0)
    seen = params["embed.weight"][x]
    if pad is not None:
        seen = nn.utils.rnn.pack_padded_sequence(
            seen, lengths, batch_first=True, enforce_sorted=False
        )
    _, (h, _) = reference(sizes, params)(seen)
    expected = torch.cat([h[-2], h[-1]], -1) @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(model.apply(params, {}, x)[0], expected)


def test_padding_changes_nothing(texts):
    short, long = (make(f"imdb:size=tiny,length={n}", texts) for n in (40, 60))
    params, _ = short.init(seeded())
    for part in ("train", "test"):
        one, two = (t.metrics(params, {}, t.full(part)) for t in (short, long))
        torch.testing.assert_close(one, two)


def test_dropout_is_a_function_of_the_noise(texts):
    task = make(f"{TINY},dropout=0.5,layers=2", texts)
    params, batch = task.init(seeded())[0], task.batch("train", seeded(1))
    one, same, other = (task.loss(params, {}, batch, torch.tensor(k))[0] for k in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_contract(texts):
    same_bits_twice(lambda: make(f"{TINY},dropout=0.2,layers=2", texts))
    vmapped_equals_looped(make(f"{TINY},dropout=0.2,layers=2", texts))
    found = roles(make(TINY, texts))
    assert found["embed.weight"] == "embedding"
    assert found["lstm.weight_ih_l0"] == found["lstm.weight_hh_l0_reverse"] == "matrix"
    assert found["head.weight"] == "matrix"
    assert found["head.bias"] == "bias"


def test_the_predictor_of_the_majority(texts):
    path = texts / "aclImdb" / "train" / "pos"
    for file in sorted(path.iterdir())[2:]:
        file.unlink()
    task = make(f"{TINY},protocol=paper", texts)
    share = torch.tensor([11.0, 3.0])  # ten negative and two positive, each counted once more
    logits = share.log().expand(6, 2)
    expected = nn.functional.cross_entropy(logits, task.full("test")[1])
    assert task.naive_loss("test") == pytest.approx(float(expected), rel=1e-5)


def remove(part):
    return lambda files: [files.pop(p) for p in list(files) if part in p]


def become(path, data):
    return lambda files: files.update({f"aclImdb/{path}": data})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("aclImdb"), ["missing aclImdb, aclImdb_v1, aclImdb_subset", "looked in"]),
        (remove("test/neg"), ["the split is empty", "test/neg/<id>_<rating>.txt"]),
        (remove("/train"), ["the split is empty", "train/neg"]),
        (become("train/pos/0_7.txt", b" \n"), ["train/pos/0_7.txt", "found an empty file"]),
        (become("train/pos/0_7.txt", b"\xff\xfe"), ["train/pos/0_7.txt", "UTF-8"]),
        (become("train/neg/9_8.txt", b"good"), ["neg/9_8.txt", "expected a rating of 1 to 4"]),
        (become("test/pos/9_2.txt", b"bad"), ["pos/9_2.txt", "expected a rating of 7 to 10"]),
    ],
)
@pytest.mark.parametrize("suffix", [None, ".gz"])
def test_files_that_are_refused(tmp_path, change, words, suffix):
    files = imdb_files()
    change(files)
    (tmp_path / "data").mkdir()
    if suffix is None or not files:
        write(tmp_path / "data", files)
    else:
        pack(tmp_path / "data" / f"aclImdb.tar{suffix}", files, suffix)
    line = refused(TINY, tmp_path / "data")
    assert all(word in line for word in words), line


def test_too_few_reviews(tmp_path):
    write(tmp_path / "data", imdb_files(train=8))
    assert "8 training reviews are too few" in refused(TINY, tmp_path / "data")


@pytest.mark.parametrize("suffix", list(PACK))
def test_a_truncated_archive_is_refused(tmp_path, suffix):
    path = tmp_path / "data" / f"aclImdb.tar{suffix}"
    pack(path, imdb_files(), suffix)
    whole = path.read_bytes()
    for share in (0.3, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)])
        line = refused(TINY, tmp_path / "data")
        assert str(path) in line, line
    path.write_bytes(b"no archive at all, but some text that is long enough" * 40)
    assert f"{path}: broken archive" in refused(TINY, tmp_path / "data")
