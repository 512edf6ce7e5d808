"""``multi30k``: its reader, its splits, its network and its translations."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from lo_framework.optimizees.datasets import multi30k
from lo_framework.optimizees.datasets.vocabulary import Rules
from lo_framework.optimizees.models.translator import Translator, TranslatorSizes
from lo_framework.optional import missing
from lo_framework.spec import UserError
from tests.optimizees.contract import (
    make,
    refused,
    roles,
    same_bits_twice,
    seeded,
    vmapped_equals_looped,
)
from tests.optimizees.texts.conftest import PACK, multi30k_files, write

TINY = "multi30k:size=tiny,width=6,length=5,batch=3"
RULES = Rules(size=99, least=2, words="punctuated", marked=True)


@pytest.mark.parametrize("suffix", list(PACK))
def test_every_suffix_gives_the_same_pairs(tmp_path, suffix):
    files = multi30k_files()
    write(tmp_path, files, suffix)
    lines = multi30k.read(str(tmp_path))
    for part, name in multi30k.PARTS.items():
        for language in ("de", "en"):
            assert "\n".join([*lines[part][language], ""]).encode() == files[f"{name}.{language}"]


def test_each_language_has_the_words_of_its_own_training_sentences(tmp_path):
    files = multi30k_files()
    for name in ("val.en", "test_2016_flickr.en", "train.de"):
        files[name] = files[name].replace(b"\n", b" zebra zebra\n")
    write(tmp_path, files)
    data = multi30k.load(str(tmp_path), RULES, 50, 1000, False)
    german, english = (set(w.decode(range(len(w)))) for w in data.words.values())
    assert {"<pad>", "<unk>", "<s>", "</s>"} == german & english - {".", ",", ",."}
    assert {"mann", "wald", "zebra"} <= german and {"man", "woods"} <= english
    assert "zebra" not in english
    x, y = data.splits["valid"]
    lines = multi30k.read(str(tmp_path))["valid"]
    for row, words, line in zip(x, y, lines["de"], strict=True):
        (ids,) = data.words["de"].encode([line])
        assert row[row != 0].tolist() == [2, *ids, 3]
        assert words[words != 0][-3:].tolist() == [1, 1, 3]  # zebra, zebra and the end
    few = multi30k.load(str(tmp_path), RULES, 2, 4, False)
    assert few.splits["train"][0].shape == (4, 4)
    assert few.splits["train"][0][:, -1].unique().tolist() == [3]


def test_in_the_paper_english_is_looked_up_in_german(texts):
    task = make(f"{TINY},protocol=paper", texts)
    assert re.search(
        r"; English in the German vocabulary: \d+% of its words are unknown$", task.note
    )
    share = (task.full("train")[1] == 1).sum() / (task.full("train")[1] > 3).sum()
    assert share > 1  # "." and "," are the words that both have
    params, _ = task.init(seeded())
    assert "target_embed.weight" not in params


def test_a_part_of_the_files_is_noted_and_not_taken_for_the_whole(texts, monkeypatch):
    there = {part: len(each["de"]) for part, each in multi30k.read(str(texts)).items()}
    wanted = [
        f"{there[part]} of Multi30k's {count} {word} pairs"
        for part, count, word in (
            *(("train", "29,000", "training"), ("valid", "1,014", "validation")),
            ("test", "1,000", "test"),
        )
    ]
    assert make(TINY, texts).note == "; ".join(wanted)
    line = refused(f"multi30k:size=tiny,pairs={there['train'] + 1}", texts)
    assert f"pairs={there['train'] + 1}" in line and f"have {there['train']}" in line
    monkeypatch.setattr(multi30k, "WHOLE", there)
    assert make(TINY, texts).note == ""


class Reference(nn.Module):
    """The same network of torch's layers."""

    def __init__(self, s):
        super().__init__()
        self.net = nn.Transformer(
            s.width, s.heads, s.layers, s.layers, s.ffn, 0.0, batch_first=True
        )
        self.head = nn.Linear(s.width, s.target)

    def load(self, params):
        found = {"head.weight": params["head.weight"], "head.bias": params["head.bias"]}
        for name, value in params.items():
            side, _, rest = name.partition(".")
            if side not in ("encoder", "decoder"):
                continue
            if rest.startswith("norm."):
                found[f"net.{side}.{rest}"] = value
                continue
            number, _, rest = rest.partition(".")
            for a, b in (
                *(("attn.qkv.", "self_attn.in_proj_"), ("attn.out", "self_attn.out_proj")),
                *(("cross.out", "multihead_attn.out_proj"), ("mlp.up", "linear1")),
                *(("mlp.down", "linear2"),),
            ):
                rest = rest.replace(a, b)
            found[f"net.{side}.layers.{number}.{rest}"] = value
        for key in [k for k in found if ".cross.q." in k]:
            both = [found.pop(key), found.pop(key.replace(".q.", ".kv."))]
            joined = key.replace("cross.q.", "multihead_attn.in_proj_")
            found[joined] = torch.cat(both)
        self.load_state_dict(found)

    def forward(self, x, y, pads):
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
        out = self.net(
            x,
            y,
            tgt_mask=mask.isinf(),
            src_key_padding_mask=pads[0],
            memory_key_padding_mask=pads[0],
            tgt_key_padding_mask=pads[1],
        )
        return self.head(out)


@pytest.mark.parametrize("shared", [False, True])
def test_it_is_torchs_transformer(shared):
    sizes = TranslatorSizes(
        **dict(source=9, target=9, places=8, width=8, layers=2, heads=2, ffn=12),
        **dict(dropout=0.3, pad=0, shared=shared),
    )
    model, reference = Translator(sizes), Reference(sizes)
    params, _ = model.init(seeded())
    for k, v in params.items():  # gains of 1 and biases of 0 would hide a mistake
        params[k] = v + 0.2 * torch.randn(v.shape, generator=seeded(len(k)))
    reference.load(params)
    x = torch.randint(1, 9, (4, 7), generator=seeded(1))
    y = torch.randint(1, 9, (4, 5), generator=seeded(2))
    x = torch.where(torch.arange(7) < torch.tensor([7, 3, 1, 6])[:, None], x, 0)
    y = torch.where(torch.arange(5) < torch.tensor([2, 5, 4, 1])[:, None], y, 0)
    place = torch.arange(8)[:, None] / 10_000 ** (torch.arange(0, 8, 2) / 8)
    sines = torch.stack([place.sin(), place.cos()], -1).flatten(1)
    target = params["source_embed.weight" if shared else "target_embed.weight"]
    seen = [
        math.sqrt(8) * weight[words] + sines[: words.shape[1]]
        for weight, words in ((params["source_embed.weight"], x), (target, y))
    ]
    expected = reference(*seen, (x == 0, y == 0))
    ours = model.outputs(params, x, y).reshape(expected.shape)
    there = y != 0
    torch.testing.assert_close(ours[there], expected[there], atol=2e-6, rtol=1e-5)


def test_padding_and_later_words_change_nothing(texts):
    task = make(TINY, texts)
    params, _ = task.init(seeded())
    x, y = task.batch("train", seeded(1))
    longer = [nn.functional.pad(rows, (0, 2)) for rows in (x, y)]
    before = task.metrics(params, {}, (x, y))
    wide = make("multi30k:size=tiny,width=6,length=9,batch=3", texts)
    torch.testing.assert_close(wide.metrics(params, {}, tuple(longer)), before)
    logits = task.model.outputs(params, x, y[:, :-1]).reshape(3, -1, len(task.english))
    changed = y.clone()
    changed[:, 2] = 5 - (changed[:, 2] == 5).long()
    after = task.model.outputs(params, x, changed[:, :-1]).reshape(logits.shape)
    torch.testing.assert_close(after[:, :2], logits[:, :2])
    assert not torch.allclose(after[:, 2], logits[:, 2])


def test_losses_are_per_word(texts):
    """Of a batch with rows of other lengths: every word counts alike, and padding does not."""
    task = make(TINY, texts)
    params, _ = task.init(seeded())
    x, y = task.full("test")
    each = [
        task.loss(params, {}, (x[i : i + 1], y[i : i + 1]), torch.tensor(0))[0] for i in range(6)
    ]
    counts = (y[:, 1:] != 0).sum(1)
    assert counts.unique().numel() > 1
    expected = (torch.stack(each) * counts).sum() / counts.sum()
    torch.testing.assert_close(task.loss(params, {}, (x, y), torch.tensor(0))[0], expected)
    torch.testing.assert_close(task.metrics(params, {}, (x, y))["loss"], expected)
    words = task.full("train")[1][:, 1:]
    frequency = torch.ones(len(task.english))
    for word in words[words != 0]:
        frequency[word] += 1
    asked = y[:, 1:][y[:, 1:] != 0]
    naive = nn.functional.cross_entropy(frequency.log().expand(len(asked), -1), asked)
    assert task.naive_loss("test") == pytest.approx(float(naive), rel=1e-5)


def test_the_contract(texts):
    same_bits_twice(lambda: make(f"{TINY},dropout=0.2", texts))
    vmapped_equals_looped(make(f"{TINY},dropout=0.2", texts))
    task = make(f"{TINY},dropout=0.5", texts)
    params, batch = task.init(seeded())[0], task.batch("train", seeded(1))
    one, same, other = (task.loss(params, {}, batch, torch.tensor(k))[0] for k in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    found = roles(task)
    assert found["source_embed.weight"] == found["target_embed.weight"] == "embedding"
    assert found["decoder.0.cross.kv.weight"] == found["head.weight"] == "matrix"
    assert found["encoder.0.norm1.weight"] == found["decoder.norm.bias"] == "norm"
    assert found["encoder.0.attn.out.bias"] == found["decoder.0.mlp.down.bias"] == "bias"


def test_it_learns_to_translate_and_bleu_says_so(texts, monkeypatch):
    """Training pairs by heart; before that, hardly a word is right."""
    task = make("multi30k:size=tiny,width=32,length=9,batch=30", texts)
    params, _ = task.init(seeded())
    before = task.translate(params, task.full("train")[0])
    params = {k: p.requires_grad_() for k, p in params.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=0.01)
    for step in range(150):
        optimizer.zero_grad()
        task.loss(params, {}, task.full("train"), torch.tensor(step))[0].backward()
        optimizer.step()
    params = {k: p.detach() for k, p in params.items()}
    after = task.translate(params, task.full("train")[0])
    wanted = [line.lower().replace(".", " .") for line in multi30k.read(str(texts))["train"]["en"]]
    right = sum(a == b for a, b in zip(after, wanted, strict=True))
    assert right >= 27 > 3 > sum(a == b for a, b in zip(before, wanted, strict=True))
    if not missing("sacrebleu"):
        assert task.bleu(params, "train") > 85
        assert task.bleu(params, "train", pairs=4) > 60


def remove(name):
    return lambda files: files.pop(name)


def become(name, data):
    return lambda files: files.update({name: data})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("val.en"), ["missing val.en (plain, .gz or .xz); looked in", "multi30k"]),
        (become("val.en", b""), ["val.en", "the split is empty"]),
        (become("val.en", b"\xff"), ["val.en", "UTF-8"]),
        (become("val.en", b"One.\n"), ["val.en", "expected 6 lines", "val.de", "found 1"]),
        (become("val.en", b"One.\n\nTwo.\n"), ["val.en", "line 2 is empty"]),
        (become("train.de", b"Ein Mann"), ["train.de", "truncated"]),
    ],
)
def test_files_that_are_refused(tmp_path, change, words):
    files = multi30k_files()
    change(files)
    write(tmp_path / "data" / "multi30k", files)
    line = refused(TINY, tmp_path / "data")
    assert all(word in line for word in words), line


def test_options_that_do_not_fit(texts):
    with pytest.raises(UserError, match="must be a multiple of heads"):
        make("multi30k:width=10,heads=4", texts)
