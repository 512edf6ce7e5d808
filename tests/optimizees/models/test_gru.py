"""``gru`` against torch's own layer, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.models.gru import GRU, GRUConfig
from lo_framework.spec import UserError


def test_it_is_torchs_gru_and_a_head():
    model = GRU(GRUConfig(hidden=7), (2, 5, 3), 4)
    params, _ = model.init(torch.Generator().manual_seed(0))
    x = torch.rand(6, 2, 5, 3, generator=torch.Generator().manual_seed(1))
    cell, head = nn.GRU(6, 7, batch_first=True), nn.Linear(7, 4)
    cell.load_state_dict(
        {f"{k.removeprefix('cell.')}_l0": v for k, v in params.items() if k.startswith("cell.")}
    )
    head.load_state_dict({k[5:]: v for k, v in params.items() if k.startswith("head.")})
    rows = torch.stack([torch.cat([x[:, 0, i], x[:, 1, i]], 1) for i in range(5)], 1)
    expected = head(cell(rows)[0][:, -1])
    torch.testing.assert_close(model.apply(params, {}, x)[0], expected)


def test_it_is_an_optimizee():
    (task,) = make_tasks("gru:hidden=5,batch=3")
    params, buffers = task.init(torch.Generator().manual_seed(0))
    assert {name: tuple(p.shape) for name, p in params.items()} == {
        "cell.weight_ih": (15, 8),
        "cell.weight_hh": (15, 5),
        "cell.bias_ih": (15,),
        "cell.bias_hh": (15,),
        "head.weight": (10, 5),
        "head.bias": (10,),
    }
    batch = task.batch("train", torch.Generator().manual_seed(0), (2,))
    grads = torch.func.vmap(
        torch.func.grad(lambda p, b: task.loss(p, buffers, b, torch.tensor(0))[0]), (None, 0)
    )(params, batch)
    assert all(g.abs().amax() > 0 for g in grads.values())


def test_rows_of_numbers_are_no_images():
    with pytest.raises(UserError, match="gru: expected images"):
        GRU(GRUConfig(), (5,), 4)
