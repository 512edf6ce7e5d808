"""What `task_from_module` refuses, each in one line."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lo_framework.optimizees import task_from_module
from lo_framework.spec import UserError
from tests.optimizees.modules import CE, Noisy, broken, net, rows


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: task_from_module(nn.Flatten(), CE, rows()), "no trainable parameters"),
        (
            lambda: task_from_module(net().requires_grad_(False), CE, rows()),
            "no trainable parameters",
        ),
        (
            lambda: task_from_module(net().double(), CE, rows()),
            "must be float32, found torch.float64",
        ),
        (lambda: task_from_module(nn.LazyLinear(3), CE, rows()), "lazy parameters"),
        (
            lambda: task_from_module(net(), CE, rows(), batch_size=1),
            "BatchNorm needs batches of at least 2 rows",
        ),
        (
            lambda: task_from_module(net(), CE, rows(), batch_size=0),
            "batch_size must be at least 1",
        ),
        (
            lambda: task_from_module(
                nn.Sequential(nn.BatchNorm2d(1, momentum=None), nn.Flatten()), CE, rows()
            ),
            "momentum=None",
        ),
        (lambda: task_from_module(nn.Linear(3, 3), CE, rows()), "fails on a batch"),
        (
            lambda: task_from_module(net(), nn.CrossEntropyLoss(reduction="none"), rows()),
            "must be one finite number",
        ),
        (
            lambda: task_from_module(net(), lambda o, y: o.sum() * math.nan, rows()),
            "must be one finite number",
        ),
        (lambda: task_from_module(net(), lambda o, y: 1.0, rows()), "found float"),
        (
            lambda: task_from_module(
                Noisy(lambda x, m: nn.functional.dropout(x, 0.5, m.training)), CE, rows()
            ),
            "use nn.Dropout",
        ),
        (
            lambda: task_from_module(Noisy(lambda x, m: x if x.sum() > 0 else -x), CE, rows()),
            "under torch.func.vmap",
        ),
        (lambda: task_from_module(net(), CE, rows(), num_classes=1), "num_classes=1"),
        (lambda: task_from_module(nn.Flatten(0), CE, rows()), "no trainable"),
        (
            lambda: task_from_module(net(), CE, (rows()[0], rows(99)[1])),
            "same number of rows, found [100, 99]",
        ),
        (
            lambda: task_from_module(net(), CE, ()),
            "expected a tensor, a tuple of tensors or a DataLoader",
        ),
        (lambda: task_from_module(net(), CE, [[1, 2], [3]]), "found a list of list"),
        (lambda: task_from_module(net(), CE, {"x": 1}), "found a dict"),
        (lambda: task_from_module(net(), CE, (torch.tensor(1.0),)), "without dimensions"),
        (lambda: task_from_module(net(), CE, rows(0)), "has no rows"),
        (lambda: task_from_module(net(), CE, rows(2)), "too few to cut test and valid"),
        (
            lambda: task_from_module(net(), CE, rows(), valid=rows()[:1]),
            "expected rows like float32[1, 4, 4], int64[]",
        ),
        (lambda: task_from_module(net(), CE, DataLoader([])), "gives no batch"),
        (lambda: task_from_module(net(), CE, DataLoader([{"x": 1}])), "found a dict"),
        (
            lambda: task_from_module(net(), CE, DataLoader([torch.ones(1), torch.ones(2)])),
            "do not fit together",
        ),
        (
            lambda: task_from_module(net(), CE, broken(rows())),
            "Sequential: data: 2 of 100 rows hold NaN or infinite numbers (the first is row 17)",
        ),
        (
            lambda: task_from_module(net(), CE, rows(), valid=broken(rows(30))),
            "Sequential: valid: 2 of 30 rows hold NaN or infinite numbers (the first is row 17)",
        ),
    ],
)
def test_refuses(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
