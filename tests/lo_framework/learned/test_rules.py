"""The update rules: vmap against a loop, AdamW at the start, growth, degenerate inputs, live
meta-parameters.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from lo_framework.learned import LearnedOptimizer, make_learned
from lo_framework.learned.base import Clock
from tests.lo_framework.optim.tools import (
    ALL_KINDS,
    flat,
    flat_grads,
    generator,
    give_grads,
    layout_of,
    moved,
    parameters,
)
from tests.lo_framework.small_tasks import clock

ADAMW_FAMILY = ["hyper-adamw", "attention", "attention:head=bounded", "attention-mlp"]
SETTINGS = "lr=0.003,beta1=0.8,beta2=0.99,weight_decay=0.1,eps=1e-6"


def with_settings(spec: str) -> str:
    return spec + ("," if ":" in spec else ":") + SETTINGS


def trajectory(
    learned: LearnedOptimizer, steps: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """The whole arena after ``steps`` updates."""
    params = parameters(seed, dtype=dtype)
    layout, arena = layout_of(params), flat(params)
    state = learned.init_state(layout, arena)
    with torch.no_grad():
        for t in range(steps):
            give_grads(params, t)
            progress = torch.tensor(t / steps, dtype=dtype)
            arena, state = learned(
                layout, arena, flat_grads(params), state, None, Clock(progress, progress)
            )
    assert float(state["step"]) == steps
    return arena


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("settings", ["", SETTINGS])
@pytest.mark.parametrize("spec", ADAMW_FAMILY)
def test_starts_as_adamw(spec: str, settings: str, dtype: torch.dtype, tolerance: float) -> None:
    learned = make_learned(with_settings(spec) if settings else spec).double()
    c = learned.config
    # The start values are float32 logarithms: AdamW gets the numbers that they stand for.
    layout = layout_of(parameters())
    raw = learned.hyper(layout, torch.zeros((), dtype=torch.float64))[:, 0].detach()  # type: ignore[operator]
    lr, decay, eps = (float(raw[i].exp()) for i in (0, 3, 4))
    betas = tuple(float(torch.sigmoid(raw[i])) for i in (1, 2))
    expected = [c.lr, c.weight_decay, c.eps, c.beta1, c.beta2]
    assert [lr, decay, eps, *betas] == pytest.approx(expected, rel=3e-6)

    params = parameters(dtype=dtype)
    adamw = torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=decay)  # type: ignore[arg-type]
    for t in range(20):
        give_grads(params, t)
        adamw.step()
    torch.testing.assert_close(
        trajectory(learned.to(dtype), 20, dtype), flat(params), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    "smaller, larger", [("hyper-adamw", "attention"), ("attention", "attention-mlp")]
)
def test_growth_keeps_the_function(smaller: str, larger: str) -> None:
    incumbent = moved(smaller)
    grown = make_learned(larger)
    fresh = trajectory(grown, 10)
    grown.grow_from(incumbent)
    expected = trajectory(incumbent, 10)
    torch.testing.assert_close(trajectory(grown, 10), expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(fresh, expected, rtol=1e-4)


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_vmap_over_tasks_is_a_loop_over_tasks(spec: str) -> None:
    learned = moved(spec)
    num, steps = 3, 5
    models = [parameters(seed) for seed in range(num)]
    layout = layout_of(models[0])
    theta = {
        name: torch.stack(
            [x + 0.01 * torch.randn(x.shape, generator=generator(k)) for k in range(num)]
        )
        for name, x in learned.theta().items()
    }

    def step(
        theta: dict[str, Tensor], arena: Tensor, grads: Tensor, state: dict[str, Tensor]
    ) -> tuple:
        return functional_call(learned, theta, (layout, arena, grads, state, None, clock(0.3)))

    arenas = torch.stack([flat(params) for params in models])
    states = [learned.init_state(layout, arena) for arena in arenas]
    batched_state = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    batched, looped = arenas, list(arenas)
    for t in range(steps):
        grads = torch.randn(arenas.shape, generator=generator(t))
        batched, batched_state = vmap(step)(theta, batched, grads, batched_state)
        for k in range(num):
            looped[k], states[k] = step(
                {name: x[k] for name, x in theta.items()}, looped[k], grads[k], states[k]
            )
    torch.testing.assert_close(batched, torch.stack(looped), rtol=1e-6, atol=1e-6)
    for name, x in batched_state.items():
        torch.testing.assert_close(x, torch.stack([s[name] for s in states]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grad", [0.0, 1e-30, 1e10])
@pytest.mark.parametrize("spec", ALL_KINDS)
def test_degenerate_inputs_give_finite_updates_and_meta_gradients(spec: str, grad: float) -> None:
    learned = moved(spec)
    layout = layout_of(parameters())
    arena = torch.zeros(layout.size)
    state = learned.init_state(layout, arena)
    for _ in range(3):
        arena, state = learned(layout, arena, torch.full_like(arena, grad), state, None, clock(0.0))
    assert torch.isfinite(arena).all() and all(torch.isfinite(x).all() for x in state.values())
    arena.square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in learned.parameters())


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_every_meta_parameter_moves_the_result(spec: str) -> None:
    learned = moved(spec, spread=0.05)
    params = parameters()
    layout, arena = layout_of(params), flat(params)
    state = learned.init_state(layout, arena)
    for t in range(4):
        give_grads(params, t)
        arena, state = learned(layout, arena, flat_grads(params), state, None, clock(0.03 + t / 4))
    if learned.open_ended and "step" in state:  # late in a run of unknown length
        state = {**state, "step": state["step"] + 40}
        arena, state = learned(layout, arena, flat_grads(params), state, None, clock(0.0, 0.0))
    arena.square().sum().backward()
    dead = [
        n for n, p in learned.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert dead == []


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_update_is_pure(spec: str) -> None:
    learned = moved(spec)
    params = parameters()
    layout, arena = layout_of(params), flat(params)
    give_grads(params, 0)
    grads = flat_grads(params)
    _, state = learned(layout, arena, grads, learned.init_state(layout, arena), None, clock(0.1))
    inputs = [arena, grads, *state.values()]
    before = [x.clone() for x in inputs]
    first = learned(layout, arena, grads, state, None, clock(0.1))
    second = learned(layout, arena, grads, state, None, clock(0.1))
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))
    assert torch.equal(first[0], second[0])
