"""AdamW by the law: torch's at rates of each tensor's own, and nothing is tuned."""

from __future__ import annotations

import pytest
import torch

from lo_framework.eval.api import evaluate
from lo_framework.eval.baselines import make_baseline
from lo_framework.eval.running.tuning import make_grid
from lo_framework.layout import Layout
from lo_framework.learned import make_learned
from lo_framework.spec import UserError
from tests.eval.baselines.stepping import by_baseline, by_torch, problem

SHAPES = {"a.weight": (7, 4), "a.bias": (7,), "b.weight": (5, 7, 3, 3), "c.weight": (2, 5)}
LAYOUT = Layout.of(SHAPES)
FANS = {"a.weight": 4, "a.bias": 4, "b.weight": 63, "c.weight": 5}


def test_equals_torch_at_the_rates_of_the_law() -> None:
    start, grads = problem(LAYOUT)
    params = {n: torch.nn.Parameter(x.clone()) for n, x in LAYOUT.unflatten(start).items()}
    groups = [{"params": [p], "lr": 0.03 * (64 / FANS[n]) ** 0.55} for n, p in params.items()]
    adamw = torch.optim.AdamW(groups, foreach=False)  # three matrices: depth adds nothing
    expected = by_torch([adamw], params, LAYOUT, grads, cosine=True)
    got = by_baseline("adamw:law=true", LAYOUT, {}, start, grads)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)  # theta is float32


def test_deeper_nets_get_lower_rates() -> None:
    deep = Layout.of({f"{i}.weight": (64, 64) for i in range(6)})
    channels = make_baseline("adamw:law=true").channels(deep, torch.zeros(0, deep.num))
    torch.testing.assert_close(channels, torch.full((1, 6), 2.0**-1.3))


def test_it_has_one_setting_whatever_is_asked() -> None:
    for size in (None, 5):
        grid = make_grid("adamw:law=true,weight_decay=0", size)
        assert grid.settings == ({"lr": 0.03, "cosine": 1.0},)
    options = dict(steps=3, seeds=2, tuning_seeds=1, step_scales="none")
    result = evaluate(
        "quadratic", make_learned("hyper-adamw"), baselines=["adamw:law=true"], **options
    )
    (runs,) = result.arm("quadratic", "adamw:law=true").runs
    assert runs.setting == {"lr": 0.03, "cosine": 1.0}
    assert "adamw:law=true: lr=0.03 cosine (every metric)" in result.table()


@pytest.mark.parametrize("spec", ["adamw:law=true,lr=0.1", "adamw:law=true,cosine=true"])
def test_rates_of_ones_own_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match="gives the learning rate and its schedule: leave them out"):
        make_baseline(spec)
