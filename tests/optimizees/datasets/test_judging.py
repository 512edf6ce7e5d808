"""Data sets that are kept for judging: tables, and known functions of drawn points."""

from __future__ import annotations

import math

import pytest
import torch

from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.datasets import load
from lo_framework.spec import UserError


@pytest.mark.parametrize(
    "name, rows, inputs, classes, outputs",
    [
        ("wine", 178, 13, 3, 3),
        ("breast_cancer", 569, 30, 2, 2),
        ("iris", 150, 4, 3, 3),
        ("diabetes", 442, 10, None, 1),
        ("linnerud", 20, 3, None, 3),
    ],
)
def test_tables(name, rows, inputs, classes, outputs):
    table = load(f"table:name={name}")
    assert sum(len(table.splits[split][0]) for split in table.splits) == rows
    assert (table.shape, table.num_classes, table.outputs) == ((inputs,), classes, outputs)
    x, y = table.splits["train"]
    torch.testing.assert_close(x.mean(0), torch.zeros(inputs), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(inputs), atol=1e-4, rtol=0)
    if classes:
        assert sorted(set(y.tolist())) == list(range(classes))
    else:
        torch.testing.assert_close(y.std(0, correction=0), torch.ones(outputs), rtol=1e-4, atol=0)
    # no row of a test split is a training row
    held = {tuple(row) for row in table.splits["test"][0].tolist()}
    assert name == "iris" or not held & {tuple(row) for row in x.tolist()}


def test_an_unknown_table_is_refused():
    with pytest.raises(UserError, match=r'option name="wines".*did you mean "wine"'):
        load("table:name=wines")


def test_friedmans_function():
    data = load("friedman:rows=500,noise=0,seed=3")
    x, y = data.splits["train"]
    u = x.double() / math.sqrt(12) + 0.5
    assert u.min() >= -1e-6 and u.max() <= 1 + 1e-6
    raw = 10 * torch.sin(math.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2
    raw += 10 * u[:, 3] + 5 * u[:, 4]
    line = torch.stack([raw, torch.ones_like(raw)], 1)
    fit = torch.linalg.lstsq(line, y.double()).solution
    torch.testing.assert_close(line @ fit, y.double(), atol=1e-5, rtol=0)
    assert (data.num_classes, data.outputs) == (None, 1)
    other = load("friedman:rows=500,noise=0,seed=4").splits["train"][0]
    assert not torch.equal(other, x)


def test_spirals_are_told_apart_by_radius_and_angle():
    data = load("spirals:arms=4,turns=2,noise=0,rows=400")
    x, y = data.splits["train"]
    radius = x.norm(dim=1) / 2
    arm = (torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) - 2 * radius) * 4
    torch.testing.assert_close(arm.round() - arm, torch.zeros_like(arm), atol=1e-3, rtol=0)
    assert torch.equal(arm.round().long() % 4, y)
    assert (data.num_classes, data.outputs, data.shape) == (4, 4, (2,))


@pytest.mark.parametrize("data", ["table:name=linnerud", "table", "friedman", "spirals"])
def test_they_are_trained(data):
    (task,) = make_tasks("mlp:hidden=4,batch=8", data)
    params, buffers = task.init(torch.Generator().manual_seed(0))
    batch = task.batch("train", torch.Generator().manual_seed(0))
    loss, _ = task.loss(params, buffers, batch, torch.tensor(0))
    assert 0 < loss < 10 and task.metrics(params, buffers, task.full("test"))["loss"] > 0


def test_images_are_not_rows():
    with pytest.raises(UserError, match="needs images"):
        make_tasks("gru", "table")
