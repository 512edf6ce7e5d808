"""``ett``: splits, scaling, windows, network, metrics and names, on a file made here."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lo_framework.optimizees import forecasting, make_variations
from lo_framework.optimizees.datasets import ett
from lo_framework.optimizees.models.forecaster import Forecaster, Shape, sinusoids
from lo_framework.spec import UserError
from tests.optimizees.contract import (
    make,
    renamed,
    roles,
    same_bits_twice,
    seeded,
    vmapped_equals_looped,
)
from tests.optimizees.datasets.files import ett_csv, write

HOURS, MONTH = 330, 15  # 180, 60, 60 hours and 30 that are not used
TINY = "ett:size=tiny,window=6,horizon=3,batch=4"
SPLITS = ("train", "valid", "test")


@pytest.fixture
def values(tmp_path, monkeypatch):
    """The numbers of a file in ``tmp_path``."""
    monkeypatch.setattr(ett, "ROWS", HOURS)
    monkeypatch.setattr(forecasting, "MONTH", MONTH)
    data, numbers = ett_csv(HOURS)
    write(tmp_path / "ETT-small", {"ETTh1.csv": data})
    return numbers


def hours(task, split):
    """All hours of a split, from its windows."""
    x, y = task.full(split)
    whole = torch.cat([x, y], 1)
    return torch.cat([whole[0], whole[1:, -1]])


def test_splits_follow_one_another_and_share_no_hour(tmp_path, values):
    task = make(TINY, tmp_path)
    mean, std = values[:180].mean(0), values[:180].std(0, correction=0)
    scaled = ((values - mean) / std).float()
    for split, (a, b) in zip(SPLITS, ((0, 180), (180, 240), (240, 300))):
        torch.testing.assert_close(hours(task, split), scaled[a:b])
        x, y = task.full(split)
        assert x.shape == (b - a - 8, 6, 7)
        assert y.shape == (b - a - 8, 3, 7)
        assert torch.equal(x[5, -1], task.series[split][10])
        assert torch.equal(y[5, 0], task.series[split][11])


def test_scaling_uses_the_training_part_alone(tmp_path, values):
    before = make(TINY, tmp_path).full("train")
    path = tmp_path / "ETT-small" / "ETTh1.csv"
    lines = path.read_text().splitlines()
    changed = [f"{line.partition(',')[0]}{',9' * 7}" for line in lines[181:]]
    path.write_text("\n".join(lines[:181] + changed) + "\n")
    after = make(TINY, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, after.full("train")))
    assert after.full("test")[0].std(0).max() == 0
    paper = make(f"{TINY},protocol=paper", tmp_path).full("train")[0]
    assert not torch.allclose(paper[0], before[0][0, :, 6:])


def test_the_papers_protocol(tmp_path, values):
    task = make("ett:size=tiny,protocol=paper,window=6", tmp_path)
    assert task.name == "ett:size=tiny,protocol=paper,window=6"
    assert "whole series" in task.note
    column = values[:, 6:]
    scaled = ((column - column.mean()) / column.std(correction=0)).float()
    count = HOURS - 6  # windows of six hours, each with the hour after it
    first = int(0.8 * count)
    x, y = (torch.cat(parts) for parts in zip(task.full("train"), task.full("valid")))
    assert len(task.full("train")[0]) == first
    torch.testing.assert_close(x[:, :, 0], scaled.squeeze(1).unfold(0, 6, 1)[:count])
    torch.testing.assert_close(y[:, 0], scaled[6:])
    assert all(torch.equal(a, b) for a, b in zip(task.full("valid"), task.full("test")))
    assert make(TINY, tmp_path).note == ""


def test_windows_are_views_and_batches_are_windows(tmp_path, values):
    task = make(TINY, tmp_path)
    memory = task.series["train"].untyped_storage().data_ptr()
    assert all(x.untyped_storage().data_ptr() == memory for x in task.full("train"))
    x, y = task.batch("train", seeded(3), (30,))
    assert x.shape == (30, 4, 6, 7) and y.shape == (30, 4, 3, 7)
    known = {w.numpy().tobytes() for w in torch.cat(task.full("train"), 1)}
    drawn = {w.numpy().tobytes() for w in torch.cat([x, y], 2).flatten(0, 1)}
    assert drawn <= known
    assert len(drawn) > 50
    moved = task.to("meta")
    assert {moved.full("test")[0].device.type, moved.model.places.device.type} == {"meta"}
    assert moved.full("test")[1].untyped_storage().nbytes() == 4 * 60 * 7  # still a view


def test_the_last_value_is_the_yardstick(tmp_path, values):
    task = make(TINY, tmp_path)
    for split in SPLITS:
        x, y = task.full(split)
        apart = y - x[:, -1:]
        found = task.last_value(split)
        torch.testing.assert_close(found["loss"], apart.square().mean())
        torch.testing.assert_close(found["mae"], apart.abs().mean())
    assert task.scale == pytest.approx(float(task.last_value("train")["loss"]))
    assert task.normalize(task.last_value("train")["loss"]) == pytest.approx(1)


def test_metrics_are_those_of_all_windows_and_numbers(tmp_path, values):
    task = make(TINY, tmp_path)
    params, _ = task.init(seeded())
    x, y = task.full("test")
    said, _ = task.model.apply(params, {}, x)
    found = task.metrics(params, {}, (x, y))
    assert list(found) == ["loss", "mae"]
    torch.testing.assert_close(found["loss"], nn.functional.mse_loss(said, y))
    torch.testing.assert_close(found["mae"], nn.functional.l1_loss(said, y))
    loss, _ = task.loss(params, {}, (x, y), torch.tensor(0))
    torch.testing.assert_close(loss, found["loss"])


class Reference(nn.Module):
    """The same network of torch's layers."""

    def __init__(self, s):
        super().__init__()
        self.shape = s
        self.input = nn.Linear(s.features, s.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                s.width, s.heads, s.ffn, 0.0, batch_first=True, norm_first=True
            )
            for _ in range(s.layers)
        )
        self.head = nn.Linear(s.width, s.horizon * s.features)

    def forward(self, x):
        x = self.input(x) + sinusoids(self.shape.window, self.shape.width)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, -1]).unflatten(1, (self.shape.horizon, self.shape.features))


NAMES = {
    "attn.qkv.": "self_attn.in_proj_",
    "attn.out": "self_attn.out_proj",
    "mlp.up": "linear1",
    "mlp.down": "linear2",
}
SHAPE = Shape(window=9, horizon=4, features=3, width=8, heads=2, layers=2, ffn=12, dropout=0.3)


def test_it_is_torchs_transformer():
    """Values and derivatives; the last block computes the last token only."""
    model, reference = Forecaster(SHAPE), Reference(SHAPE)
    params, theirs = renamed(model.init(seeded())[0], NAMES)
    assert list(theirs) and set(theirs) == {name for name, _ in reference.named_parameters()}
    x = torch.randn(5, 9, 3, generator=seeded(1))
    torch.testing.assert_close(model.apply(params, {}, x)[0], functional_call(reference, theirs, x))
    ours = torch.func.grad(lambda p: model.apply(p, {}, x)[0].square().sum())(params)
    other = torch.func.grad(lambda p: functional_call(reference, p, x).square().sum())(theirs)
    for one, two in zip(ours.values(), (other[k] for k in theirs)):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_how_it_starts():
    params, buffers = Forecaster(SHAPE).init(seeded())
    assert not buffers
    bound = (6 / (24 + 8)) ** 0.5  # Xavier's, of the packed matrix
    assert 0.9 * bound < params["blocks.1.attn.qkv.weight"].abs().max() <= bound
    assert all(not v.any() for k, v in params.items() if k.endswith("bias"))
    assert all((v == 1).all() for k, v in params.items() if "norm" in k and "weight" in k)
    places = sinusoids(5, 7)
    assert places.shape == (5, 7)
    torch.testing.assert_close(places[3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(places[3, 1], torch.tensor(3.0).cos())
    torch.testing.assert_close(places[3, 6], torch.tensor(3 * 10000 ** (-6 / 7)).sin())


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        # As published: 397 thousand parameters in 28 tensors.
        ("ett:size=paper,protocol=paper", 396_929),
        ("ett:size=paper,horizon=1,features=OT", 396_929),
        ("ett:size=paper", 396_929 + 6 * 128 + 671 * 129),
        ("ett:size=small", 39_520),
        ("ett:size=tiny", 2_176),
    ],
)
def test_sizes(tmp_path, values, monkeypatch, spec, count):
    monkeypatch.setattr(forecasting, "MONTH", 1)
    monkeypatch.setattr(forecasting, "MONTHS", (110, 110, 110))
    if "horizon" not in spec and "protocol" not in spec and "tiny" not in spec:
        with pytest.raises(UserError, match="has 110 hours, and window=96 with horizon=96 needs"):
            make(spec, tmp_path)
        monkeypatch.setattr(ett, "ROWS", 600)
        monkeypatch.setattr(forecasting, "MONTHS", (200, 200, 200))
        write(tmp_path / "ETT-small", {"ETTh1.csv": ett_csv(600)[0]})
    params, _ = make(spec, tmp_path).init(seeded())
    assert sum(p.numel() for p in params.values()) == count
    assert len(params) == (16 if "tiny" in spec else 28)


def test_dropout_is_a_function_of_the_noise(tmp_path, values):
    task, clean = make(f"{TINY},dropout=0.5", tmp_path), make(TINY, tmp_path)
    params, batch = task.init(seeded())[0], task.batch("train", seeded(1))
    one, same, other = (task.loss(params, {}, batch, torch.tensor(k))[0] for k in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    measured = [t.metrics(params, {}, batch)["loss"] for t in (task, clean)]
    assert torch.equal(*measured)
    torch.testing.assert_close(clean.loss(params, {}, batch, torch.tensor(1))[0], measured[0])


def test_the_contract(tmp_path, values):
    same_bits_twice(lambda: make(f"{TINY},dropout=0.2", tmp_path))
    vmapped_equals_looped(make(f"{TINY},dropout=0.2,layers=2", tmp_path), atol=5e-5)
    found = roles(make(TINY, tmp_path))
    matrices = ("input", "blocks.0.attn.qkv", "blocks.0.attn.out", "blocks.0.mlp.up", "head")
    assert {found[f"{name}.weight"] for name in matrices} == {"matrix"}
    assert {found[f"{name}.bias"] for name in matrices} == {"bias"}
    assert found["blocks.0.norm1.weight"] == found["blocks.0.norm2.bias"] == "norm"


def test_a_variation_reads_the_same_folder(tmp_path, values):
    (family,) = make_variations(f"{TINY.replace('horizon=3', 'horizon=2..5')}", data_dir=tmp_path)
    names = {family.draw(seeded(k)).name for k in range(9)}
    assert len(names) > 2
    assert family.covers("ett:size=tiny,window=6,horizon=4,batch=4", "digits")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (f"{TINY},features=OTT", '(did you mean "OT"?)'),
        (f"{TINY},width=9", "width (9) must be a multiple of heads (2)"),
        ("ett:size=tiny,horizon=0", "at least 1"),
        ("ett:size=tiny,width=5000", "at most 4096"),
        (f"{TINY},width=4096,layers=9", "ett: the model has more than 268,435,456 parameters"),
        ("ett:size=huge", "paper, small, tiny"),
        ("ett:size=tiny,protocol=fair", "honest, paper"),
        ("ett:size=tiny,dropout=1", "below 1"),
        (
            "ett:size=tiny,window=50,horizon=11",
            "ett: the valid split has 60 hours, and window=50 with horizon=11 needs at least 61",
        ),
        ("ett:size=tiny,window=300,horizon=40", "the train split has 180 hours"),
        (
            "ett:size=tiny,protocol=paper,window=300,horizon=30",
            "ett: 330 hours hold no two windows of 330 hours",
        ),
    ],
)
def test_bad_options(tmp_path, values, spec, words):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        make(spec, tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_split(tmp_path, values, monkeypatch):
    monkeypatch.setattr(forecasting, "MONTHS", (12, 4, 0))
    with pytest.raises(UserError, match="the test split has 0 hours"):
        make(TINY, tmp_path)


def test_the_published_series(data_dir):
    """The benchmark's months, and how far the last value is off."""
    task = make("ett", data_dir)
    assert {k: len(x) for k, x in task.series.items()} == {
        "train": 8640,
        "valid": 2880,
        "test": 2880,
    }
    assert task.last_value("test")["loss"] == pytest.approx(1.2798, abs=1e-4)
    paper = make("ett:size=paper,protocol=paper", data_dir)
    assert [len(paper.full(split)[0]) for split in SPLITS] == [13_859, 3_465, 3_465]
    # Below what was published for AdamW (.006147) and for MetaAdamW (.005885).
    assert paper.last_value("valid")["loss"] == pytest.approx(0.00585, abs=1e-5)
