"""Meta-training in the small: every meta-parameter is reached, and the meta-loss falls."""

from __future__ import annotations

import pytest
import torch

from lo_framework.estimators import make_estimator
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from tests.lo_framework.small_tasks import ALL_KINDS, Quadratic, TinyNet, in_step, once


@pytest.mark.parametrize("spec", ["tbptt", "tbptt:second_order=false,segments=2", "pes"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_meta_parameter_gets_a_gradient(kind: str, spec: str) -> None:
    """At once, or behind a head that starts at zero, from the second outer step on."""
    learned = make_learned(kind)
    heads = {
        "attention": ["head"],
        "attention-mlp": ["head", "last"],
        ALL_KINDS[-1]: ["controller.head"],
    }.get(kind, [])
    family = Family(TinyNet(torch.float32), learned)
    estimator = make_estimator(spec, family, make_objective("valid:train=0.5"), once(8, 4), 2)
    state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
    outer = torch.optim.Adam(learned.parameters(), lr=1e-2)
    dead: list[str] = []
    for _ in range(2):
        found, state = estimator.estimate(learned.theta(), state)
        assert set(found.grad) == {n for n, _ in learned.named_parameters()}
        assert all(torch.isfinite(g).all() for g in found.grad.values())
        # Fading is for late steps of a run of unknown length: see test_rules.py.
        dead = [n for n, g in found.grad.items() if n != "fading" and not g.abs().max() > 0]
        if spec != "pes":  # random perturbations move every meta-parameter
            assert not set(dead) & {*heads, "default", "last_bias"}
        if not heads:
            assert not dead
        for name, p in learned.named_parameters():
            p.grad = found.grad[name].clone()
            assert p.grad.shape == p.shape and p.grad.dtype == p.dtype
        outer.step()
    assert not dead


@pytest.mark.parametrize(
    "spec, kind",
    [
        ("tbptt", "hyper-adamw"),
        ("tbptt", "attention-mlp"),
        ("tbptt:second_order=false,segments=0", "hyper-adamw"),
        ("es", "hyper-adamw"),
        ("pes", "attention-mlp"),
    ],
)
def test_meta_loss_falls_on_a_quadratic(spec: str, kind: str) -> None:
    learned = make_learned(f"{kind}:lr=0.02")
    family = Family(Quadratic((1.0, 6.0, 0.3), dtype=torch.float32), learned)
    truncation = once(8, 4) if spec == "pes" else once(8)
    estimator = make_estimator(
        spec, family, make_objective("valid"), truncation, 2 if "tbptt" in spec else 24
    )
    state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
    outer, curve = torch.optim.Adam(learned.parameters(), lr=0.004), []
    for _ in range(20):
        found, state = estimator.estimate(learned.theta(), state)
        curve.append(found.metrics["meta_loss"])
        for name, p in learned.named_parameters():
            p.grad = found.grad[name]
        outer.step()
    assert sum(curve[-4:]) < 0.5 * sum(curve[:4])


def test_registry_builds_each_estimator() -> None:
    family = Family(Quadratic(), make_learned("hyper-adamw").double())
    for name in ("tbptt", "es", "pes"):
        estimator = make_estimator(name, family, make_objective("valid"), once(4, 2), 1)
        state = estimator.init_state(family.learned.theta(), torch.Generator().manual_seed(0))
        found, _ = estimator.estimate(family.learned.theta(), state)
        assert {"meta_loss", "nonfinite", "diverged"} <= set(found.metrics)
        assert all(g.dtype == torch.float64 for g in found.grad.values())
