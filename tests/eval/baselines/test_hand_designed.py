"""The functional baselines are torch's optimizers, alone and as a vmapped grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call, vmap

from lo_framework.eval.baselines import (
    BASELINES,
    grid_of,
    make_baseline,
    make_thetas,
    register_baseline,
    setting_label,
)
from lo_framework.layout import Layout
from lo_framework.learned.base import Clock
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import clock

STEPS = 50
SHAPES = {"weight": (5, 3), "bias": (5,)}
LAYOUT = Layout.of(SHAPES)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}

TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr, foreach=False),
    "sgdm": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9, foreach=False),
}


def problem(dtype):
    """Start [N] and gradients [STEPS, N], with exact zeros and two scales."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(LAYOUT.size, generator=generator, dtype=torch.float64)
    grads = torch.randn(STEPS, LAYOUT.size, generator=generator, dtype=torch.float64)
    grads[:, 0] = 0.0
    grads[:20, 1] = 0.0
    grads[:, 2] *= 1e-4
    return start.to(dtype), grads.to(dtype)


def by_torch(name, lr, cosine, dtype):
    start, grads = problem(dtype)
    params = {k: torch.nn.Parameter(v.clone()) for k, v in LAYOUT.unflatten(start).items()}
    optimizer = TORCH[name](list(params.values()), lr=lr)
    schedule = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=0.0)
        if cosine
        else None
    )
    for grad in grads:
        for key, value in LAYOUT.unflatten(grad).items():
            params[key].grad = value.clone()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return LAYOUT.flatten({k: p.detach() for k, p in params.items()})


def by_baseline(optimizer, theta, start, grads, steps=STEPS):
    params, state = start, optimizer.init_state(LAYOUT, start)
    for t in range(steps):
        progress = torch.tensor(t / STEPS, dtype=start.dtype)
        params, state = functional_call(
            optimizer, theta, (LAYOUT, params, grads[t], state, None, Clock(progress, progress))
        )
    return params, state


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cosine", [0.0, 1.0])
@pytest.mark.parametrize(
    ("name", "lr"), [("adamw", 0.001), ("adamw", 0.2), ("sgdm", 0.003), ("sgdm", 0.1)]
)
def test_equals_torch(name, lr, cosine, dtype):
    optimizer = make_baseline(name)
    theta = {
        "log_lr": torch.tensor(math.log(lr), dtype=dtype),
        "cosine": torch.tensor(cosine, dtype=dtype),
    }
    params, state = by_baseline(optimizer, theta, *problem(dtype))
    expected = by_torch(name, lr, cosine, dtype)
    # Relative to the distance gone: SGD at lr .1 and momentum .9 goes far.
    scale = max(1.0, (expected - problem(dtype)[0]).abs().max().item())
    torch.testing.assert_close(params, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
    assert params.dtype == dtype and state["step"] == STEPS


@pytest.mark.parametrize("name", ["adamw", "sgdm"])
def test_grid_under_vmap_equals_each_setting_alone(name):
    optimizer, grid = make_baseline(name), grid_of(name)
    thetas, data = make_thetas(optimizer, grid), problem(torch.float32)
    stacked = {key: torch.stack([theta[key] for theta in thetas]) for key in thetas[0]}
    together = vmap(lambda theta: by_baseline(optimizer, theta, *data, steps=10)[0])(stacked)
    assert together.shape == (len(grid), LAYOUT.size)
    for i, (theta, setting) in enumerate(zip(thetas, grid, strict=True)):
        alone = by_baseline(optimizer, theta, *data, steps=10)[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-6, atol=1e-6)
        assert theta["log_lr"].exp().item() == pytest.approx(setting["lr"], rel=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgdm"])
def test_chunked_apply_equals_the_whole(name):
    optimizer = make_baseline(name)
    start, grads = problem(torch.float32)
    state = {
        key: torch.rand(LAYOUT.size) if key in optimizer.per_param else value
        for key, value in optimizer.init_state(LAYOUT, start).items()
    }
    progress = torch.tensor(0.5)
    with torch.no_grad():
        whole, _ = optimizer(LAYOUT, start, grads[3], state, None, Clock(progress, progress))
        stats = optimizer.stats(LAYOUT, start, grads[3], state)
        channels, shared, _ = optimizer.condition(
            LAYOUT, stats, state, None, Clock(progress, progress)
        )
        parts = []
        for chunk in (slice(0, 7), slice(7, LAYOUT.size)):
            chunk_state = {key: state[key][chunk] for key in optimizer.per_param}
            parts.append(
                optimizer.update(
                    channels[:, :1], shared, start[chunk], grads[3][chunk], chunk_state
                )[0]
            )
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adamw", "sgdm"])
def test_gradient_of_the_settings_is_finite_at_exact_zeros(name):
    optimizer = make_baseline(name)
    generator = torch.Generator().manual_seed(1)
    params = torch.randn(LAYOUT.size, generator=generator)
    state = optimizer.init_state(LAYOUT, params)
    for t in range(3):  # gradients that depend on theta, and are exactly zero in half of the places
        grads = torch.where(torch.arange(LAYOUT.size) % 2 == 0, params, params * 0.0)
        params, state = optimizer(LAYOUT, params, grads, state, None, clock(t / 3))
    params.square().sum().backward()
    for parameter in optimizer.parameters():
        assert torch.isfinite(parameter.grad) and parameter.grad != 0


def test_default_grids():
    for name in BASELINES:
        grid = grid_of(name)
        for cosine in {s.get("cosine", 0.0) for s in grid}:
            lrs = [s["lr"] for s in grid if s.get("cosine", 0.0) == cosine]
            assert len(lrs) >= 7 and lrs == sorted(lrs), name
    assert len(grid_of("adamw")) == 16 and len(grid_of("sgdm")) == 14


def test_spec_options_and_own_values():
    optimizer = make_baseline("adamw:lr=0.02,cosine=1,weight_decay=0.1")
    assert optimizer.log_lr.exp().item() == pytest.approx(0.02) and optimizer.cosine.item() == 1.0
    first, second = make_thetas(optimizer, [{"lr": 0.5}, {"cosine": 0.0}])
    assert (first["log_lr"].exp().item(), first["cosine"].item()) == (pytest.approx(0.5), 1.0)
    assert (second["log_lr"].exp().item(), second["cosine"].item()) == (pytest.approx(0.02), 0.0)


def test_labels():
    assert setting_label({"lr": 0.01, "cosine": 1.0}) == "lr=0.01 cosine"
    assert setting_label({"lr": 3.0, "cosine": 0.0}) == "lr=3"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_baseline("adamv"), r'unknown baseline "adamv" \(did you mean "adamw"\?\)'),
        (lambda: make_baseline("sgdm:momentun=0.5"), r'did you mean "momentum"'),
        (lambda: make_baseline("adamw:lr=-1"), "lr must be positive"),
        (lambda: make_baseline("adamw:beta2=1"), "betas must be in"),
        (
            lambda: make_thetas(make_baseline("adamw"), [{"lrr": 1.0}]),
            r'no setting "lrr" \(did you mean "lr"\?\)',
        ),
        (lambda: make_thetas(make_baseline("adamw"), [{"lr": 0.0}]), '"lr" must be positive'),
        (lambda: make_thetas(make_baseline("adamw"), []), "at least one setting"),
        (lambda: register_baseline("adamw", [])(BASELINES["sgdm"].build), "exists already"),
    ],
)
def test_user_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_registering_a_baseline():
    cls = BASELINES["sgdm"].build
    try:
        assert register_baseline("mine", [{"lr": 1.0}])(cls) is cls
        assert isinstance(make_baseline("mine:momentum=0"), cls) and grid_of("mine") == (
            {"lr": 1.0},
        )
    finally:
        del BASELINES["mine"]
