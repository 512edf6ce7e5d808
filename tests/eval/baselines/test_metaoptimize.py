"""The baseline equals the torch optimizer, alone and vmapped."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lo_framework.eval.baselines import TorchBaseline, grid_of, make_baseline, make_thetas
from lo_framework.inner.rollout import _INIT, _TRAIN, rollout, seeded
from lo_framework.layout import Layout
from lo_framework.learned.base import Clock, LearnedOptimizer
from lo_framework.optim import MetaOptimize
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError

STEPS, SEED = 7, 3
LAYOUT = Layout.of({"weight": (4, 3), "bias": (4,), "scale": ()})


def by_baseline(
    optimizer: LearnedOptimizer, theta: dict, start: torch.Tensor, grads: torch.Tensor
) -> torch.Tensor:
    params, state = start, optimizer.init_state(LAYOUT, start)
    theta = {name: x.double() for name, x in theta.items()}
    for t, grad in enumerate(grads):
        progress = torch.tensor(t / len(grads), dtype=start.dtype)
        params, state = functional_call(
            optimizer, theta, (LAYOUT, params, grad, state, None, Clock(progress, progress))
        )
    return params


@pytest.mark.parametrize(
    ("options", "vmapped"),
    [
        ("", True),
        (":blocks=tensor,products=per-block", True),
        (":diagnostics=1", False),
        (":blocks=node", False),
        (":blocks=weight", False),
        (":trace=2x2", False),
    ],
)
def test_it_is_vmapped_where_it_can_be(options: str, vmapped: bool) -> None:
    made = make_baseline(f"metaoptimize{options}")
    assert isinstance(made, TorchBaseline) is not vmapped
    assert list(made.theta()) == ["log_lr", "cosine", "log_meta_lr"]


def test_both_names_are_one_baseline() -> None:
    one, other = make_baseline("metaoptimize:diagnostics=1"), make_baseline("torch-metaoptimize")
    assert type(one) is type(other) and asdict(one.config) == asdict(other.config)
    assert grid_of("metaoptimize") == grid_of("torch-metaoptimize")


@pytest.mark.parametrize("blocks", ["scalar", "tensor"])
@pytest.mark.parametrize("meta", ["fixed", "sgd", "rmsprop", "adam", "lion"])
@pytest.mark.parametrize("base", ["sgd", "sgdm", "rmsprop", "adamw", "lion"])
def test_equals_the_torch_optimizer(base: str, meta: str, blocks: str) -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(LAYOUT.size, generator=g, dtype=torch.float64)
    grads = torch.randn(20, LAYOUT.size, generator=g, dtype=torch.float64) + 0.5
    settings = {"gamma": 0.9, "meta_every": 2, "weight_decay": 0.1}
    spec = ",".join(f"{key}={value}" for key, value in settings.items())
    baseline = make_baseline(f"metaoptimize:base={base},meta={meta},blocks={blocks},{spec}")
    (theta,) = make_thetas(baseline, [{"lr": 0.01, "meta_lr": 0.05, "cosine": 1.0}])
    params = [nn.Parameter(x.clone()) for x in LAYOUT.unflatten(start).values()]
    optimizer = MetaOptimize(params, 0.01, 0.05, base=base, meta=meta, blocks=blocks, **settings)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.0)
    for grad in grads:
        for p, x in zip(params, LAYOUT.unflatten(grad).values()):
            p.grad = x.clone()
        optimizer.step()
        schedule.step()
    expected = torch.cat([p.detach().reshape(-1) for p in params])
    # theta is float32, so its logarithms are those of slightly other settings
    torch.testing.assert_close(
        by_baseline(baseline, theta, start, grads), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("blocks", ["scalar", "tensor"])
def test_vmapped_rollout_equals_the_torch_optimizer(blocks: str) -> None:
    """A whole training of a task, two settings side by side."""
    (task,) = make_tasks("mlp:hidden=5", "digits", None, "cpu")
    baseline = make_baseline(f"metaoptimize:blocks={blocks}")
    settings = [
        {"lr": 0.003, "meta_lr": 0.03, "cosine": 0.0},
        {"lr": 0.02, "meta_lr": 0.1, "cosine": 0.0},
    ]
    found = rollout(task, baseline, make_thetas(baseline, settings), [SEED], STEPS, splits=())
    for c, setting in enumerate(settings):
        params, buffers = task.init(seeded(SEED, _INIT))
        leaves = {n: nn.Parameter(x.clone()) for n, x in params.items()}
        optimizer = MetaOptimize(
            leaves.items(),
            alpha0=setting["lr"],
            meta_lr=setting["meta_lr"],
            weight_decay=1e-2,
            blocks=blocks,
        )
        stream = seeded(SEED, _TRAIN)
        for _ in range(STEPS):
            batch = task.batch("train", stream)
            optimizer.zero_grad()
            task.loss(dict(leaves), buffers, batch, torch.tensor(0))[0].backward()
            optimizer.step()
        expected = torch.cat([x.detach().flatten() for x in leaves.values()])
        torch.testing.assert_close(found.params[c, 0], expected, rtol=1e-4, atol=2e-5)


def test_grid_is_as_large_as_that_of_adamw() -> None:
    assert len(grid_of("metaoptimize")) == len(grid_of("adamw"))
    assert len({tuple(setting.items()) for setting in grid_of("metaoptimize")}) == len(
        grid_of("adamw")
    )
    thetas = make_thetas(make_baseline("metaoptimize"), grid_of("metaoptimize"))
    assert {tuple(theta) for theta in thetas} == {("log_lr", "cosine", "log_meta_lr")}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("metaoptimize:base=adam", r'did you mean "adamw"'),
        ("metaoptimize:meta=lyon", 'did you mean "lion"'),
        ("metaoptimize:blocks=nodes", "expected one of scalar, tensor"),
        ("metaoptimize:lr=0.5", "outside the bounds"),
        ("metaoptimize:meta_lr=0", "meta_lr must be positive"),
        ("metaoptimize:gamma=2", "gamma must be"),
        ("metaoptimize:meta_every=0", "meta_every must be"),
    ],
)
def test_bad_options(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_baseline(spec)


def test_beyond_the_bounds_it_is_at_the_bound() -> None:
    """Tuning extends its grid without asking."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(LAYOUT.size, generator=g, dtype=torch.float64)
    grads = torch.randn(5, LAYOUT.size, generator=g, dtype=torch.float64)
    baseline = make_baseline("metaoptimize:meta=fixed")
    at, above, below = make_thetas(baseline, [{"lr": lr, "cosine": 0.0} for lr in (0.1, 0.9, 0.05)])
    expected = by_baseline(baseline, at, start, grads)
    torch.testing.assert_close(
        by_baseline(baseline, above, start, grads), expected, rtol=0, atol=1e-6
    )
    assert (by_baseline(baseline, below, start, grads) - expected).abs().max() > 1e-3
