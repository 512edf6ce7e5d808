"""``wikitext``: its reader, its splits, its windows and its network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

import lo_framework as lo
from lo_framework.optimizees.datasets import wikitext
from lo_framework.optimizees.language import cut_windows
from lo_framework.optimizees.models.gpt import GPT, GPTSizes
from lo_framework.spec import UserError
from tests.optimizees.contract import (
    make,
    refused,
    renamed,
    roles,
    same_bits_twice,
    seeded,
    vmapped_equals_looped,
)
from tests.optimizees.texts.conftest import PACK, wikitext_files, write

TINY = "wikitext:size=tiny,context=6,batch=3,vocab=12"


@pytest.mark.parametrize("suffix", list(PACK))
@pytest.mark.parametrize("place", ["", "wikitext-2"])
def test_every_suffix_and_place_gives_the_same_splits(tmp_path, suffix, place):
    files = wikitext_files()
    write(tmp_path / place, files, suffix)
    corpus = wikitext.read(str(tmp_path))
    text = files["wiki.valid.tokens"].decode()
    assert corpus.lines["train"] + corpus.lines["valid"] == text.split("\n")[:-1]
    assert "\n".join(corpus.lines["test"]) + "\n" == files["wiki.test.tokens"].decode()


def test_half_of_the_validation_split_trains_where_the_training_split_is_absent(texts):
    corpus = wikitext.read(str(texts))
    assert corpus.trained == "half of valid"
    titles = {
        part: {line for line in lines if wikitext.TITLE.fullmatch(line)}
        for part, lines in corpus.lines.items()
    }
    assert titles["train"] == {f" = Valid article {k} = " for k in range(3)}
    assert titles["valid"] == {f" = Valid article {k} = " for k in range(3, 6)}
    assert make(TINY, texts).note == (
        "78 of WikiText-2's 3,760 validation lines; 78 of WikiText-2's 4,358 test lines; "
        "trained on one half of WikiText-2's validation split, validated on the other"
    )


def test_the_training_split_is_used_where_it_is(tmp_path, monkeypatch):
    write(tmp_path, wikitext_files(("train", "valid", "test")))
    corpus = wikitext.read(str(tmp_path))
    assert corpus.trained == "train"
    assert " = Train article 5 = " in corpus.lines["train"]
    assert " = Valid article 0 = " in corpus.lines["valid"]
    assert make(TINY, tmp_path).note.startswith("78 of WikiText-2's 36,718 training lines; 78 of")
    monkeypatch.setattr(wikitext, "WHOLE", corpus.counts)
    assert make(TINY, tmp_path).note == ""


def test_words_are_those_of_the_training_split(texts):
    """A word of the other splits alone is unknown, however often it is there."""
    for part in ("valid", "test"):
        path = texts / "wikitext-2" / f"wiki.{part}.tokens"
        path.write_bytes(path.read_bytes() + b" zebra" * 500 + b" \n")
    streams = wikitext.load(str(texts), 64, True)
    words = streams.vocabulary.decode(range(len(streams.vocabulary)))
    assert words[:2] == ["<pad>", "<unk>"]
    assert len(set(words)) == len(words)
    assert "zebra" not in words
    assert {"the", "of", ",", "<eos>", "="} <= set(words)
    assert streams.ids["test"][-1].count(1) >= 500


def test_windows_cover_the_text(texts):
    task = make(TINY, texts)
    streams = wikitext.load(str(texts), 12, True)
    for part, lines in streams.ids.items():
        text = torch.tensor([i for line in lines for i in line])
        x, y = task.full(part)
        assert x.shape[1] == 6
        assert torch.equal(x.flatten().reshape(-1, 6)[:, 1:], y[:, :-1])
        whole = torch.cat([x, y[:, -1:]], 1).flatten()
        assert torch.equal(whole, text[: len(whole)])
        assert len(text) - len(whole) < 7
    x, y = task.batch("train", seeded(4), (50,))
    assert x.shape == y.shape == (50, 3, 6)
    assert torch.equal(x[..., 1:], y[..., :-1])
    text = torch.tensor([i for line in streams.ids["train"] for i in line])
    everywhere = {tuple(w) for w in text.unfold(0, 7, 1).tolist()}
    drawn = {tuple(w) for w in torch.cat([x, y[..., -1:]], -1).reshape(-1, 7).tolist()}
    assert drawn <= everywhere
    assert len(drawn) > len(task.full("train")[0]) / 2  # from any place, not from a few


def test_the_papers_windows_stay_in_a_line(texts):
    task = make(f"{TINY},protocol=paper", texts)
    lines = wikitext.load(str(texts), 12, False).ids["train"]
    expected = [line[i : i + 7] for line in lines for i in range(0, len(line) - 6, 7)]
    x, y = task.full("train")
    assert torch.cat([x, y[:, -1:]], 1).tolist() == expected
    bx, _ = task.batch("train", seeded(0))
    assert all(row in x.tolist() for row in bx.tolist())


class Reference(nn.Module):
    """The same network of torch's layers."""

    def __init__(self, s):
        super().__init__()
        self.token_embed = nn.Embedding(s.vocab, s.width)
        self.position_embed = nn.Embedding(s.context, s.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                s.width, s.heads, s.ffn, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(s.layers)
        )
        self.norm = nn.LayerNorm(s.width)
        self.head = nn.Linear(s.width, s.vocab)

    def forward(self, x):
        length = x.shape[1]
        h = self.token_embed(x) + self.position_embed.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for block in self.blocks:
            h = block(h, mask, is_causal=True)
        return self.head(self.norm(h)).flatten(0, 1)


NAMES = {
    **{f"attn.qkv.{k}": f"self_attn.in_proj_{k}" for k in ("weight", "bias")},
    **{"attn.out": "self_attn.out_proj", "mlp.up": "linear1", "mlp.down": "linear2"},
}


def test_it_is_torchs_transformer():
    sizes = GPTSizes(vocab=11, context=7, width=8, layers=2, heads=2, ffn=12, dropout=0.3)
    model, reference = GPT(sizes), Reference(sizes)
    params, theirs = renamed(model.init(seeded())[0], NAMES)
    assert set(theirs) == {name for name, _ in reference.named_parameters()}
    for length in (7, 4):
        x = torch.randint(11, (5, length), generator=seeded(1))
        ours = model.apply(params, {}, x)[0]
        torch.testing.assert_close(ours, functional_call(reference, theirs, (x,)))


def test_a_later_token_changes_no_earlier_loss(texts):
    task = make(TINY, texts)
    params, _ = task.init(seeded())
    x, _ = task.batch("train", seeded(1))
    before = task.model.apply(params, {}, x)[0].reshape(3, 6, -1)
    x = x.clone()
    x[:, 4] = (x[:, 4] + 1) % 12
    after = task.model.apply(params, {}, x)[0].reshape(3, 6, -1)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_dropout_is_a_function_of_the_noise(texts):
    task = make(f"{TINY},dropout=0.5", texts)
    params, batch = task.init(seeded())[0], task.batch("train", seeded(1))
    one, same, other = (task.loss(params, {}, batch, torch.tensor(k))[0] for k in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    clean = make(TINY, texts)
    metrics = [t.metrics(params, {}, batch)["loss"] for t in (task, clean)]
    assert torch.equal(*metrics)
    torch.testing.assert_close(clean.loss(params, {}, batch, torch.tensor(1))[0], metrics[0])


def test_the_contract(texts):
    same_bits_twice(lambda: make(f"{TINY},dropout=0.2", texts))
    vmapped_equals_looped(make(f"{TINY},dropout=0.2", texts))
    found = roles(make(TINY, texts))
    assert found["token_embed.weight"] == found["position_embed.weight"] == "embedding"
    assert found["head.weight"] == found["blocks.0.attn.qkv.weight"] == "matrix"
    assert found["norm.weight"] == found["blocks.0.norm1.bias"] == "norm"
    assert found["head.bias"] == found["blocks.0.mlp.up.bias"] == "bias"


def test_metrics_and_the_predictor_of_frequencies(texts):
    task = make(TINY, texts)
    params, _ = task.init(seeded())
    pieces, whole = make(TINY, texts), task.full("test")
    pieces.metric_rows = 2
    measured = task.metrics(params, {}, whole)
    torch.testing.assert_close(measured, pieces.metrics(params, {}, whole))
    torch.testing.assert_close(measured["perplexity"], measured["loss"].exp())
    counts = torch.ones(task.vocab)
    for word in task.full("train")[1].flatten():
        counts[word] += 1
    logits = counts.log().expand(whole[1].numel(), -1)
    expected = nn.functional.cross_entropy(logits, whole[1].flatten())
    assert task.naive_loss("test") == pytest.approx(float(expected), rel=1e-5)
    assert float(task.normalize(torch.tensor(task.naive_loss("train")))) == pytest.approx(1)


def test_sizes_and_single_options(texts):
    names = {"size=tiny": (16, 128), "size=tiny,width=6": (6, 128), "size=tiny,vocab=9": (16, 9)}
    for options, (width, most) in names.items():
        params, _ = make(f"wikitext:{options}", texts).init(seeded())
        rows, columns = params["token_embed.weight"].shape
        assert columns == width and rows <= most
    assert make("wikitext:size=paper,context=16", texts).model.sizes == GPTSizes(
        vocab=len(wikitext.load(str(texts), 10_000, True).vocabulary),
        **dict(context=16, width=128, layers=2, heads=4, ffn=512, dropout=0.2),
    )


def remove(name):
    return lambda files: files.pop(name)


def become(name, data):
    return lambda files: files.update({name: data})


VALID, TEST = "wiki.valid.tokens", "wiki.test.tokens"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove(VALID), ["missing wiki.valid.tokens (plain, .gz or .xz); looked in", "wikitext-2"]),
        (remove(TEST), ["missing wiki.test.tokens", "not downloaded"]),
        (become(TEST, b""), [TEST, "the split is empty"]),
        (become(TEST, b" \n \n"), [TEST, "the split is empty"]),
        (become(TEST, wikitext_files()[TEST][:-5]), [TEST, "truncated", "line end"]),
        (become(TEST, b"\x89PNG\xff" * 9), [TEST, "UTF-8", "byte 0"]),
        (become(TEST, b" = A = \n\0\0 \n"), [TEST, "expected text, found zero bytes"]),
        (become(TEST, b"Once upon a time \n"), [TEST, "articles that begin with a line"]),
        (become(VALID, b" = One = \n a b c \n"), ["missing wiki.train.tokens", "two articles"]),
    ],
)
def test_files_that_are_refused(tmp_path, change, words):
    files = wikitext_files()
    change(files)
    write(tmp_path / "data" / "wikitext-2", files)
    line = refused(TINY, tmp_path / "data")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_truncated_archive_is_refused(tmp_path, suffix):
    write(tmp_path / "data", wikitext_files(), suffix)
    path = tmp_path / "data" / f"{TEST}{suffix}"
    path.write_bytes(path.read_bytes()[:-30])
    line = refused(TINY, tmp_path / "data")
    assert str(path) in line and "truncated or broken after" in line


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"missing wiki.valid.tokens, wiki.test.tokens .*; it is"):
        lo.make_tasks(TINY)
    with pytest.raises(UserError, match="the data folder .* does not exist"):
        lo.make_tasks(TINY, data_dir=tmp_path / "nowhere")


def test_a_context_that_is_too_long(texts):
    line = refused("wikitext:size=tiny,context=4000", texts)
    assert line.startswith("wikitext: train: context=4000 is longer than the text: expected 4,001")
    assert "at least 1 and at most 4096" in refused("wikitext:context=9999", texts)
    line = refused("wikitext:size=tiny,context=50,protocol=paper", texts)
    assert "expected 51 words in a row" in line
    with pytest.raises(UserError, match="train: context=3 is longer .* found 0"):
        cut_windows([], 4, "train")
    model = GPT(GPTSizes(vocab=4, context=3, width=2, layers=1, heads=1, ffn=2, dropout=0))
    with pytest.raises(UserError, match="4 words in a row, and the model takes 3"):
        model.apply(model.init(seeded())[0], {}, torch.zeros(1, 4, dtype=torch.int64))


def test_options_that_do_not_fit(texts):
    assert "must be a multiple of heads" in refused("wikitext:width=10,heads=4", texts)
    assert "one of paper, small, tiny" in refused("wikitext:size=big", texts)
    assert "dropout" in refused("wikitext:dropout=1", texts)
