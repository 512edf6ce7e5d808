"""The face as a citizen of torch: groups, schedulers, scalers, closures, dtypes, missing gradients,
clear refusals.
"""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from lo_framework.learned import make_learned
from lo_framework.optim import Learned
from lo_framework.spec import UserError
from tests.lo_framework.optim.tools import (
    ALL_KINDS,
    SHAPES,
    after,
    flat,
    flat_grads,
    give_grads,
    layout_of,
    moved,
    parameters,
    run,
)
from tests.lo_framework.small_tasks import clock


@pytest.mark.parametrize("lr", [0.0, 0.5, torch.tensor(0.5)])
def test_lr_multiplies_the_update(lr: float | Tensor) -> None:
    start = flat(parameters())
    whole = after("attention", 1) - start
    torch.testing.assert_close(
        after("attention", 1, lr=lr), start + float(lr) * whole, rtol=1e-6, atol=1e-7
    )


def test_groups_have_their_own_multiplier_and_one_attention() -> None:
    params = parameters()
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.25}]
    face = Learned(groups, moved("attention-mlp"), num_steps=10)
    assert [group["lr"] for group in face.param_groups] == [1.0, 0.25]
    start = flat(params)
    run(face, params, [0])
    scale = torch.cat(
        [torch.full((p.numel(),), 1.0 if i < 3 else 0.25) for i, p in enumerate(params)]
    )
    torch.testing.assert_close(
        flat(params), start + scale * (after("attention-mlp", 1) - start), rtol=1e-6, atol=1e-7
    )


def test_schedulers_act_without_warnings() -> None:
    for make in (
        lambda o: CosineAnnealingLR(o, T_max=4),
        lambda o: LambdaLR(o, lambda epoch: 0.5**epoch),
    ):
        params = parameters()
        face = Learned(params, moved("scaled"))
        scheduler = make(face)
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for t in range(4):
                seen.append(face.param_groups[0]["lr"])
                give_grads(params, t)
                face.step()
                scheduler.step()
        assert seen[0] == 1.0 and seen == sorted(set(seen), reverse=True)


def test_grad_scaler_skips_steps_with_infinite_gradients() -> None:
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=10)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def scaled_step(t: int, poison: bool) -> None:
        give_grads(params, t)
        grads = [p.grad.clone() for p in params if p.grad is not None]
        face.zero_grad()
        loss = torch.stack([(g * p).sum() for g, p in zip(grads, params)]).sum()
        scaler.scale(loss * (torch.inf if poison else 1.0)).backward()
        scaler.step(face, loss=loss)
        scaler.update()

    scaled_step(0, False)
    before, updates = flat(params), face._updates
    scaled_step(7, True)
    assert torch.equal(flat(params), before) and face._updates == updates
    scaled_step(1, False)
    torch.testing.assert_close(flat(params), after("attention", 2), rtol=1e-6, atol=1e-7)


def test_closure_gives_gradients_and_its_value() -> None:
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=10)

    def closure() -> Tensor:
        face.zero_grad()
        loss = torch.stack([p.square().sum() for p in params]).sum()
        loss.backward()
        return loss

    losses = [float(face.step(closure).detach()) for _ in range(5)]
    assert losses == sorted(set(losses), reverse=True)
    with pytest.raises(UserError, match="not both"):
        face.step(closure, loss=1.0)


def test_rules_that_read_the_loss_get_it() -> None:
    seen: list[Tensor | None] = []
    learned = make_learned("hyper-adamw")
    params = parameters()
    face = Learned(params, learned, num_steps=10)
    inner = face._host.learned.condition
    face._host.learned.condition = lambda *a: (seen.append(a[3]), inner(*a))[1]  # type: ignore[method-assign, func-returns-value]
    give_grads(params, 0)
    face.step()
    face.step(loss=torch.tensor(2.5, dtype=torch.float64, requires_grad=True))
    face.observe(1.0)
    face.observe(torch.tensor([4.0]))
    face.step()
    face.step(lambda: 0.25)
    assert [None if x is None else (x.dtype, x.dim(), float(x)) for x in seen] == [
        None,
        (torch.float32, 0, 2.5),
        (torch.float32, 0, 2.5),
        (torch.float32, 0, 0.25),
    ]
    with pytest.raises(UserError, match="one number"):
        face.step(loss=torch.zeros(3))


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_parameters_without_gradient_take_no_part(spec: str) -> None:
    """Also when they had one before. The others' attention does not see them; roles come from the
    whole list.
    """
    params, learned = parameters(), moved(spec)
    params[3].requires_grad_(False)
    face = Learned(params, learned, num_steps=10)
    run(face, params, range(3), skip=[3, 5])
    before = [p.detach().clone() for p in params]
    states = [{n: x.clone() for n, x in face.state.get(p, {}).items()} for p in params]
    idle, present = [1, 3, 5, 6], [0, 2, 4, 7]

    members = present
    layout = layout_of(params).pick(members)
    arena = flat([params[i] for i in members])
    state = {
        n: torch.cat(
            [states[i][n].reshape(*x.shape[: x.dim() - params[0].dim()], -1) for i in members], -1
        )
        for n, x in states[0].items()
        if n in learned.per_param
    }
    for n, x in face._store.reduced.items():  # type: ignore[union-attr]
        state[n] = torch.stack([states[i][n] for i in members], -1) if n in states[0] else x.clone()

    give_grads(params, 3, skip=idle)
    with torch.no_grad():
        expected, _ = learned(layout, arena, flat_grads(params), state, None, clock(0.3))
    face.step()
    torch.testing.assert_close(flat([params[i] for i in members]), expected, rtol=1e-6, atol=1e-6)
    for i in idle:
        assert torch.equal(params[i], before[i])
        assert all(torch.equal(x, states[i][n]) for n, x in face.state.get(params[i], {}).items())
    assert params[3] not in face.state and params[5] not in face.state


def test_layout_is_of_the_whole_list_and_uses_names() -> None:
    names = {n: nn.Parameter(torch.zeros(s)) for n, s in SHAPES.items()}
    named = Learned(names.items(), moved("attention"), num_steps=1)
    bare = Learned(parameters(), moved("attention"), num_steps=1)
    assert (
        named._store.layout.slots[0].role == "embedding"
        and bare._store.layout.slots[0].role == "matrix"
    )
    assert [s.role for s in named._store.layout.slots[1:]] == [
        s.role for s in bare._store.layout.slots[1:]
    ]
    assert named.param_groups[0]["param_names"] == list(SHAPES)


def test_step_without_any_gradient_does_nothing() -> None:
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=10)
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        face.step()
    assert face._updates == 0 and torch.equal(flat(params), flat(parameters()))


def test_empty_and_scalar_parameters() -> None:
    params = [
        nn.Parameter(torch.ones(())),
        nn.Parameter(torch.ones(0, 3)),
        nn.Parameter(torch.ones(2, 3)),
    ]
    face = Learned(params, moved("attention-mlp"), num_steps=10)
    run(face, params, range(3))
    assert torch.isfinite(flat(params)).all() and params[1].shape == (0, 3)


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_add_param_group_after_steps(spec: str) -> None:
    params, more = parameters(), parameters(seed=9, shapes=[(5, 5), (5,)])
    face = Learned(params, moved(spec), num_steps=10)
    run(face, params, range(3))
    held = {n: x.clone() for n, x in face.state[params[0]].items()}
    face.add_param_group({"params": more, "lr": 0.5})
    assert all(torch.equal(x, held[n]) for n, x in face.state[params[0]].items())
    before = flat(more)
    run(face, [*params, *more], range(3, 6))
    assert not torch.equal(flat(more), before) and torch.isfinite(flat([*params, *more])).all()
    # The state shown is the state in use, also of the columns that had to move.
    for i, p in enumerate([*params, *more]):
        for n, x in face.state[p].items():
            if n not in moved(spec).per_param:
                assert torch.equal(x, face._store.reduced[n][..., i])  # type: ignore[union-attr]


def test_progress_stays_at_its_end() -> None:
    """A schedule that is zero until the very end: it holds after the last step."""
    learned = make_learned("hyper-adamw")
    with torch.no_grad():
        learned.get_parameter("schedule")[
            0, -1
        ] = -100.0  # the learning rate at progress 1 is exp(-1000)
    params = parameters()
    face = Learned(params, learned, num_steps=3)
    changes = []
    with pytest.warns(UserWarning, match="beyond num_steps=3") as seen:
        for t in range(6):
            before = flat(params)
            run(face, params, [t])
            changes.append((not torch.equal(flat(params), before), len(seen)))
    assert changes == [(True, 0)] * 3 + [(False, 1)] * 3


@pytest.mark.parametrize("num_steps", [None, 0, -3, 2.5, True])
def test_num_steps_is_required(num_steps: object) -> None:
    with pytest.raises(UserError, match="num_steps"):
        Learned(parameters(), make_learned("hyper-adamw"), num_steps=num_steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [math.nan, math.inf, "10", torch.tensor(2.5)])
def test_num_steps_is_a_whole_number(num_steps: object) -> None:
    with pytest.raises(UserError, match="num_steps must be a whole number of at least 1, not"):
        Learned(parameters(), make_learned("hyper-adamw"), num_steps=num_steps)  # type: ignore[arg-type]


def test_refusals_are_clear() -> None:
    learned = make_learned("hyper-adamw")
    with pytest.raises(UserError, match="complex"):
        Learned([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], learned, num_steps=1)
    with pytest.raises(UserError, match="lr is a multiplier"):
        Learned(parameters(), learned, num_steps=1, lr=-1.0)
    with pytest.raises(UserError, match="chunk"):
        Learned(parameters(), learned, num_steps=1, chunk=0)
    with pytest.raises(ValueError, match="empty"):
        Learned([], learned, num_steps=1)
    embedding = nn.Embedding(5, 3, sparse=True)
    face = Learned(embedding.parameters(), learned, num_steps=1)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(UserError, match="sparse"):
        face.step()
    for refused in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="state_dict"):
            refused(face)


def test_optimizer_keeps_its_own_weights() -> None:
    learned = moved("attention")
    params = parameters()
    face = Learned(params, learned, num_steps=10)
    with torch.no_grad():
        for p in learned.parameters():
            p.fill_(torch.nan)
    run(face, params, range(2))
    assert torch.equal(flat(params), after("attention", 2))
    assert not any(p.requires_grad for p in face._host.learned.parameters())
