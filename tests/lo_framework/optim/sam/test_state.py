"""States of explicit regularizers: the same bits from a file, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from lo_framework.optim import (
    FSAM,
    S2SAM,
    SAM,
    LookSAM,
    MetaAdamW,
    MetaOptimize,
)
from lo_framework.spec import UserError
from tests.lo_framework.optim.sam import tools


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("saved_at", [0, 1, 7])
@pytest.mark.parametrize("face", tools.FACES)
def test_state_goes_on_to_the_same_bits(face: tools.Face, saved_at: int) -> None:
    whole, parted = tools.network(torch.float32), tools.network(torch.float32)
    one = face(torch.optim.AdamW(whole.parameters(), lr=0.02))
    tools.train(one, whole, range(12))
    two = face(torch.optim.AdamW(parted.parameters(), lr=0.02))
    tools.train(two, parted, range(saved_at))
    state = through_a_file(two.state_dict())
    resumed = face(torch.optim.AdamW(parted.parameters(), lr=9.0))
    resumed.load_state_dict(state)
    tools.train(resumed, parted, range(saved_at, 12))
    assert torch.equal(tools.weights(whole), tools.weights(parted))


@pytest.mark.parametrize("face", [LookSAM, FSAM])
def test_state_of_low_precision_parameters_stays_float32(face: tools.Face) -> None:
    whole, parted = tools.network(torch.bfloat16), tools.network(torch.bfloat16)
    optimizers = [face(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (whole, parted)]
    for optimizer, model in zip(optimizers, (whole, parted)):
        tools.train(optimizer, model, range(3))
    assert {x.dtype for x in optimizers[1].state_dict()["regularizer"]["state"].values()} <= {
        torch.float32,
        torch.int64,
    }
    optimizers[1].load_state_dict(through_a_file(optimizers[1].state_dict()))
    for optimizer, model in zip(optimizers, (whole, parted)):
        tools.train(optimizer, model, range(3, 8))
    assert torch.equal(tools.weights(whole), tools.weights(parted))


def test_state_is_exchanged_with_the_bare_base() -> None:
    """Training may begin plain and end with SAM, or the other way round."""
    model = tools.network()
    plain = torch.optim.AdamW(model.parameters(), lr=0.02)
    for t in range(3):
        plain.step(tools.closure_of(plain, tools.loss_fn(model, t)))
    optimizer = LookSAM(torch.optim.AdamW(model.parameters(), lr=0.02))
    tools.train(optimizer, model, [0])
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.state_dict()["regularizer"]["steps"] == 0
    calls = list[int]()
    tools.train(optimizer, model, [3], calls)
    assert len(calls) == 2 and float(optimizer.state[next(model.parameters())]["step"]) == 4
    plain.load_state_dict(optimizer.state_dict())
    assert float(plain.state[next(model.parameters())]["step"]) == 4


@pytest.mark.parametrize("other", [MetaAdamW, MetaOptimize])
def test_state_around_another_class_is_refused(other: Any) -> None:
    model = nn.Linear(3, 2)
    optimizer, saved = SAM(torch.optim.AdamW(model.parameters())), other(model).state_dict()
    before = optimizer.state_dict()
    with pytest.raises(UserError, match="another optimizer class, not of SAM around AdamW"):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_state_of_something_else_is_refused() -> None:
    model = tools.network()
    sam, fsam = (
        SAM(torch.optim.AdamW(model.parameters())),
        FSAM(torch.optim.AdamW(model.parameters())),
    )
    with pytest.raises(UserError, match='is of the regularizer "sam", not of "fsam"'):
        fsam.load_state_dict(sam.state_dict())
    tools.train(fsam, model, [0])
    other = [nn.Parameter(torch.zeros(p.numel(), 2)) for p in model.parameters()]
    wrong = FSAM(torch.optim.SGD(other, lr=0.1))
    wrong.load_state_dict(
        {**wrong.base.state_dict(), "regularizer": fsam.state_dict()["regularizer"]}
    )
    for p in other:
        p.grad = torch.ones_like(p)
    with pytest.raises(
        UserError, match=r"state is of other parameters: fsam's m/0 has shape \(6, 4\)"
    ):
        wrong.step(lambda: 1.0)
    for copier in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="FSAM is copied and saved through state_dict"):
            copier(fsam)


@pytest.mark.parametrize("face", [SAM, S2SAM])
def test_weights_left_ahead_by_a_loaded_state_are_said(face: Any) -> None:
    """A loop that is stopped between the halves and goes back to an older state."""
    model = tools.network()
    optimizer = face(tools.BASES["adamw"](model.parameters()))
    weights, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())

    def first_half() -> None:
        optimizer.zero_grad()
        if face is SAM:
            tools.loss_fn(model, 0)().backward()
        optimizer.first_step()

    first_half()
    model.load_state_dict(weights)
    optimizer.load_state_dict(saved)  # no warning, which would be an error
    first_half()
    optimizer.cancel_step()
    optimizer.load_state_dict(saved)
    first_half()
    with pytest.warns(UserWarning, match="load the model's weights too, or call cancel_step"):
        optimizer.load_state_dict(saved)
    model.load_state_dict(weights)
    first_half()
