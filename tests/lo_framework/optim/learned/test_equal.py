"""One rule, several hosts: the face, the whole arena at once, the vmapped unroll; chunked or not,
kernels or not.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lo_framework.episode import Draw, tile_theta
from lo_framework.inner.step import Family
from lo_framework.learned.base import Clock
from lo_framework.optim import Learned
from lo_framework.optim.learned import store
from lo_framework.optimizees import make_tasks
from tests.lo_framework.optim.tools import (
    ALL_KINDS,
    GivenGradients,
    flat,
    flat_grads,
    generator,
    give_grads,
    layout_of,
    moved,
    parameters,
    run,
)

STEPS, HORIZON = 20, 16  # the last steps lie beyond the horizon


@pytest.mark.filterwarnings("ignore:Learned. the run goes on beyond num_steps")
@pytest.mark.parametrize("spec", ALL_KINDS)
def test_face_arena_and_vmapped_unroll_are_equal(spec: str) -> None:
    task, learned = GivenGradients(), moved(spec)
    family = Family(task, learned)
    start = family.start(generator(3), 2)
    draws = [
        Draw(
            task.batch("train", generator(100 + t), (2,)),
            (),
            torch.zeros(2, dtype=torch.int64),
            Clock(torch.full((2,), min(t / HORIZON, 1.0)), torch.full((2,), float(HORIZON))),
        )
        for t in range(STEPS)
    ]

    step, carry = family.step(), start
    with torch.no_grad():
        for draw in draws:
            carry, _ = step(tile_theta(learned.theta(), 2), carry, draw)

    for k in range(2):
        layout, arena = family.layout, start.params[k].clone()
        params = {n: nn.Parameter(x.clone()) for n, x in layout.unflatten(arena).items()}
        face = Learned(params.items(), learned, num_steps=HORIZON)
        state = learned.init_state(layout, arena)
        for draw in draws:
            grads = draw.train[0][k, 0]
            for n, x in layout.unflatten(grads).items():
                params[n].grad = x
            face.step()
            with torch.no_grad():
                arena, state = learned(
                    layout, arena, grads, state, None, Clock(*(x[k] for x in draw.clock))
                )
        torch.testing.assert_close(carry.params[k], arena, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(flat(list(params.values())), arena, rtol=1e-6, atol=1e-6)
        for n, x in state.items():
            if n in learned.per_param:
                whole = torch.cat(
                    [face.state[p][n].reshape(*x.shape[:-1], -1) for p in params.values()], -1
                )
                torch.testing.assert_close(whole, x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", ["attention-mlp", "mlp"])
def test_face_trains_as_the_unroll_trains(spec: str) -> None:
    """A real loss, with gradients by ``backward`` here and by ``torch.func`` there.

    No norm: a bias before one has nothing but rounding for a gradient, and AdamW brings that to
    full size.
    """
    task = make_tasks("cnn:channels=4", "digits")[0]
    learned = moved(spec, spread=0.005)
    family = Family(task, learned)
    carry = family.start(generator(0), 1)
    params = {
        n: nn.Parameter(x[0].clone()) for n, x in family.layout.unflatten(carry.params).items()
    }
    buffers = {n: x[0].clone() for n, x in carry.buffers.items()}
    face = Learned(params.items(), learned, num_steps=10)
    step, noise = family.step(), torch.zeros(1, dtype=torch.int64)
    for t in range(10):
        batch = task.batch("train", generator(t), (1,))
        with torch.no_grad():
            carry, losses = step(
                tile_theta(learned.theta(), 1),
                carry,
                Draw(batch, (), noise, Clock(torch.tensor([t / 10]), torch.tensor([10.0]))),
            )
        face.zero_grad()
        loss, buffers = task.loss(params, buffers, tuple(x[0] for x in batch), noise[0])  # type: ignore[arg-type]
        loss.backward()
        face.step(loss=loss)
        torch.testing.assert_close(loss.detach(), losses.train[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flat(list(params.values())), carry.params[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("spec", ALL_KINDS)
def test_chunked_is_unchunked(spec: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(20, 15), (15,), (15,), (7, 9), (), (9, 5, 3, 3)]
    results = []
    for chunk, small in ((100, 16), (100, 2048), (7, 0), (None, 2048), (1 << 20, 0)):
        monkeypatch.setattr(store, "SMALL", small)
        params = parameters(shapes=shapes)
        face = Learned(params, moved(spec), num_steps=10, chunk=chunk)
        if not kernels:
            face._host.columns = None
        run(face, params, range(5))
        results.append(flat(params))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("multiplier", [1.0, 0.3])
@pytest.mark.parametrize(
    "spec", ["hyper-adamw", "attention", "attention:head=bounded", "attention-mlp"]
)
def test_kernels_are_the_rules(
    spec: str, multiplier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SMALL", 64)
    shapes = [
        (150, 120),
        (120,),
        (9, 8),
        (8,),
        (),
    ]  # the first has more elements than a chunk of any kernel
    models = [parameters(shapes=shapes) for _ in range(2)]
    faces = [Learned(params, moved(spec), num_steps=30, lr=multiplier) for params in models]
    assert faces[0]._host.columns is not None
    faces[1]._host.columns = None
    for face, params in zip(faces, models):
        run(face, params, range(20))
    torch.testing.assert_close(flat(models[0]), flat(models[1]), rtol=1e-6, atol=1e-6)
    for p, q in zip(*models):
        for name, x in faces[1].state[q].items():
            torch.testing.assert_close(faces[0].state[p][name], x, rtol=1e-4, atol=1e-6)


def test_kernels_leave_extremes_to_the_rule() -> None:
    """A learning rate of zero: the kernel would divide by it."""
    learned = moved("attention", spread=0.0)
    with torch.no_grad():
        learned.get_parameter("default")[0] = -20.0
    params = parameters()
    before = flat(params)
    run(Learned(params, learned, num_steps=5), params, range(3))
    assert torch.equal(flat(params), before)


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_float64_parameters_compute_in_float64(spec: str) -> None:
    learned = moved(spec)
    params = parameters(dtype=torch.float64)
    wide = moved(spec, dtype=torch.float64)
    layout, arena = layout_of(params), flat(params)
    state = wide.init_state(layout, arena)
    face = Learned(params, learned, num_steps=5, chunk=20)
    for t in range(5):
        give_grads(params, t)
        face.step()
        with torch.no_grad():
            progress = torch.tensor(t / 5, dtype=torch.float64)
            arena, state = wide(
                layout,
                arena,
                flat_grads(params),
                state,
                None,
                Clock(progress, torch.full_like(progress, 5.0)),
            )
    torch.testing.assert_close(flat(params), arena, rtol=1e-12, atol=1e-12)


def test_zero_gradients_and_zero_parameters() -> None:
    for spec in ALL_KINDS:
        params = parameters()
        for p in params:
            p.detach().zero_()
            p.grad = torch.zeros_like(p)
        face = Learned(params, moved(spec), num_steps=3)
        for _ in range(3):
            face.step()
        assert torch.isfinite(flat(params)).all(), spec
