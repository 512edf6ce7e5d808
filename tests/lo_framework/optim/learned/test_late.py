"""The guard as it is on an accelerator, which is read at every eighth step only: here the interval
is given to it on a CPU. And what it keeps from step to step of parameters that are sharded.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from lo_framework.learned import make_learned
from lo_framework.optim import GuardConfig, Learned
from lo_framework.optim.learned import fallback
from lo_framework.optim.learned.fallback import LATER
from tests.lo_framework.optim.tools import flat, moved, parameters

SLOW = GuardConfig(every=1000, steps=20)


def learned(
    params: list[nn.Parameter], spec: str = "hyper-adamw:lr=0.01", **options: Any
) -> Learned:
    face = Learned(params, make_learned(spec), num_steps=100, guard=SLOW)
    assert face._fallback is not None
    face._fallback.interval = LATER
    return face


def train(face: Learned, steps: int, *, told: bool = False, scale: float = 1.0) -> list[float]:
    params, losses = face.param_groups[0]["params"], []
    for _ in range(steps):
        face.zero_grad()
        loss = torch.stack([(p - 1).square().sum() for p in params]).sum()
        (scale * loss).backward()
        face.step(loss=loss if told else None)
        losses.append(float(loss.detach()))
    return losses


def readings(face: Learned, steps: int, **options: Any) -> list[int]:
    """At which steps the device is waited for."""
    guard, found = face._fallback, []
    assert guard is not None
    judged = guard._judged
    for t in range(steps):
        with patch.object(guard, "_judged", side_effect=judged) as read:
            train(face, 1, **options)
        found += [t] * read.called
    return found


@pytest.mark.parametrize("told", [False, True])
def test_it_is_read_at_the_first_step_and_at_every_eighth_after_it(told: bool) -> None:
    face = learned(parameters())
    assert readings(face, 2 * LATER + 1, told=told) == [0, LATER, 2 * LATER]


def test_what_is_seen_late_is_what_is_seen_at_once() -> None:
    """After a reading the guard's memory is that of one that reads at every step."""
    late, prompt = learned(parameters()), learned(parameters())
    assert prompt._fallback is not None and late._fallback is not None
    prompt._fallback.interval = 0  # as it is good for the device: 1 on a CPU
    for face in (late, prompt):
        train(face, LATER + 1, told=True)
    a, b = (face._fallback.guard for face in (late, prompt))  # type: ignore[union-attr]
    assert a.now == b.now and a.now.seen == LATER + 1
    assert torch.equal(flat(late._params), flat(prompt._params))  # type: ignore[arg-type]


def test_a_break_is_seen_some_steps_late_and_the_parameters_go_back() -> None:
    params = parameters()
    start = flat(params)
    face = learned(params, "hyper-adamw:lr=30.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = train(face, LATER)  # broken already, and nothing said
    assert max(losses) > 100 * losses[0] and face.guard_activations == 0
    with pytest.warns(UserWarning, match="broke the guard"):
        train(face, 1)
    assert face.guard_activations == 1 and torch.equal(flat(params), start)
    assert train(face, 20)[-1] <= losses[0]


def test_a_gradient_that_is_not_finite_is_seen_late_and_the_parameters_go_back() -> None:
    params = parameters()
    face = learned(params)
    start = flat(params)
    train(face, 2)
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    face.step()
    assert not torch.isfinite(flat(params)).all()
    with pytest.warns(UserWarning, match="a gradient that is not finite broke the guard") as said:
        train(face, LATER)
    assert len(said) == 1 and face.guard_activations == 1
    assert torch.isfinite(flat(params)).all() and not torch.equal(flat(params), start)


def test_what_was_not_yet_read_is_saved() -> None:
    whole = learned(params := parameters(), "hyper-adamw:lr=30.0")
    train(whole, 4)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = learned(twins, "hyper-adamw:lr=30.0")
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert resumed._fallback is not None and len(resumed._fallback.unread) == 3
    for face in (whole, resumed):
        with pytest.warns(UserWarning, match="broke the guard"):
            train(face, LATER)
    assert torch.equal(flat(params), flat(twins))


def without_copies(face: Learned) -> dict[str, Any]:
    """The state as `torch.distributed.checkpoint` keeps it: what parameters and groups have."""
    state = copy.deepcopy(face.state_dict())
    del state["learned"]
    return state


def test_what_was_not_yet_read_goes_through_a_checkpoint() -> None:
    """A break that nobody has seen: what is loaded is no good copy, and AdamW makes the next
    steps.
    """
    broken = learned(params := parameters(), "hyper-adamw:lr=30.0")
    train(broken, 4)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = learned(twins, "hyper-adamw:lr=30.0")
    resumed.load_state_dict(without_copies(broken))
    with pytest.warns(UserWarning, match="broke the guard"):
        train(resumed, 1)
    assert resumed._fallback is not None and resumed._fallback.in_charge
    assert not resumed._fallback.snapshot and torch.equal(flat(twins), flat(params))
    losses = train(resumed, 15)
    assert losses[-1] < losses[0] and resumed.guard_activations == 1


@pytest.mark.parametrize("weights_first", [True, False])
def test_a_state_of_doubt_is_no_good_copy(weights_first: bool) -> None:
    face = learned(params := parameters())
    train(face, 3)
    assert face._fallback is not None
    face._fallback.guard.now.rise = 0.95 * face._fallback.guard.allowed
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = learned(twins if weights_first else parameters(3))
    resumed.load_state_dict(without_copies(face))
    for p, x in zip(resumed._params, params):
        p.data.copy_(x)
    doubtful = resumed._fallback
    assert doubtful is not None
    taken = []
    for _ in range(12):
        train(resumed, 1)
        taken.append(bool(doubtful.snapshot))
    assert not any(taken[:3]) and all(taken[8:]) and resumed.guard_activations == 0


def test_which_shards_count_is_asked_once_for_a_list_of_parameters(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))

        def placed(p: Tensor) -> nn.Parameter:
            return nn.Parameter(distribute_tensor(p.detach(), mesh, [Replicate()]))

        params = [placed(p) for p in parameters()]
        face = Learned(params[1:], moved("attention"), num_steps=100)
        asked = fallback.counts_here
        with patch.object(fallback, "counts_here", side_effect=asked) as counts:
            train(face, 5)
            assert counts.call_count == 1
            face.add_param_group({"params": params[:1]})
            train(face, 5)
            assert counts.call_count == 2
        assert face._fallback is not None
        assert face._fallback._counted(tuple(range(8))) == tuple(range(8))
    finally:
        torch.distributed.destroy_process_group()
