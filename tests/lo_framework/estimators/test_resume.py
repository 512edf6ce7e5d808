"""A killed and resumed estimator goes on with the same bits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from lo_framework.estimators import make_estimator
from lo_framework.estimators.state import UnrollState, state_from_tensors, state_to_tensors
from lo_framework.estimators.truncation import Truncation
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from tests.lo_framework.small_tasks import TinyNet


def assert_same(a: UnrollState, b: UnrollState) -> None:
    ours, theirs = state_to_tensors(a), state_to_tensors(b)
    assert set(ours) == set(theirs)
    for name, x in ours.items():
        assert x.dtype == theirs[name].dtype and torch.equal(x, theirs[name]), name


@pytest.mark.parametrize("spec", ["tbptt", "tbptt:segments=2,second_order=false", "es", "pes"])
def test_resumed_run_repeats_the_uninterrupted_one(spec: str) -> None:
    learned = make_learned("attention-mlp:width=4,heads=2,hidden=4")
    family = Family(TinyNet(torch.float32), learned)
    arguments = (
        family,
        make_objective("valid:train=0.5"),
        Truncation(unroll_length=4, episode=(6, 11)),
        3,
    )
    estimator, theta = make_estimator(spec, *arguments), learned.theta()
    state = estimator.init_state(theta, torch.Generator().manual_seed(0))
    for killed_after in range(2):
        data = save(state_to_tensors(state))
        resumed, fresh = state_from_tensors(load(data)), make_estimator(spec, *arguments)
        assert_same(state, resumed)
        going = state
        for _ in range(2):
            expected, going = estimator.estimate(theta, going)
            found, resumed = fresh.estimate(theta, resumed)
            assert found.metrics == expected.metrics, killed_after
            assert all(torch.equal(g, expected.grad[n]) for n, g in found.grad.items())
            assert_same(going, resumed)
        state = going


def test_names_and_independence() -> None:
    family = Family(TinyNet(), make_learned("hyper-adamw").double())
    estimator = make_estimator(
        "pes", family, make_objective("valid"), Truncation(unroll_length=2, episode=(6, 6)), 2
    )
    state = estimator.init_state(family.learned.theta(), torch.Generator().manual_seed(0))
    tensors = state_to_tensors(state)
    assert set(tensors) == {
        "params",
        "alive",
        "generator",
        "t",
        "horizon",
        "stop",
        "extra.xi",
        "buffers.sick",
        "buffers.bn.mean",
        "buffers.bn.count",
        "state.step",
        "state.log_power",
        "state.m",
        "state.v",
    }
    assert all(x.is_contiguous() and x.device.type == "cpu" for x in tensors.values())
    addresses = [x.data_ptr() for x in tensors.values()]
    assert len(set(addresses)) == len(addresses)
    before = {n: x.clone() for n, x in tensors.items()}
    loaded = state_from_tensors(tensors)
    estimator.estimate(family.learned.theta(), loaded)
    estimator.estimate(family.learned.theta(), state)
    assert all(
        torch.equal(x, before[n]) for n, x in tensors.items()
    )  # neither state writes into what was saved
    assert set(loaded.carry.buffers) == {"sick", "bn.mean", "bn.count"}


def test_a_missing_tensor_is_named() -> None:
    family = Family(TinyNet(), make_learned("hyper-adamw").double())
    estimator = make_estimator("es", family, make_objective("valid"), Truncation(), 1)
    tensors = state_to_tensors(
        estimator.init_state(family.learned.theta(), torch.Generator().manual_seed(0))
    )
    del tensors["horizon"]
    with pytest.raises(KeyError, match="horizon"):
        state_from_tensors(tensors)
