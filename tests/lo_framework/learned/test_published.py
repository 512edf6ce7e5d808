"""Features as published, and as files of feature version 1 mean them."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from lo_framework.layout import Layout
from lo_framework.learned import fingerprint, load, make_learned, save_optimizer
from lo_framework.learned.features import log_and_sign
from tests.lo_framework.learned.reference import AdafacMLP
from tests.lo_framework.small_tasks import clock

SHAPES = {
    "conv": (6, 5, 2),
    "image": (4, 2, 3, 3),
    "weight": (7, 4),
    "square": (5, 5),
    "bias": (9,),
    "scale": (),
}


@pytest.mark.parametrize("version", [1, 2])
def test_39_features_against_the_slow_rule(version: int) -> None:
    learned = make_learned("mlp:features=39,step_mult=0.001", feature_version=version)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in learned.named_parameters():
            if "decay" not in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    weights = {name: p.detach().double().numpy() for name, p in learned.named_parameters()}
    layout = Layout.of(SHAPES)
    params = torch.randn(layout.size, generator=generator)
    start, state = params.clone(), learned.init_state(layout, params)
    slow = {name: AdafacMLP(weights, shape, version) for name, shape in SHAPES.items()}
    points = {name: x.double().numpy() for name, x in layout.unflatten(params).items()}
    sizes = {"conv": 10.0, "image": 1e-3, "bias": 3e-5, "weight": 1.0, "square": 0.1, "scale": 1.0}
    for _ in range(12):
        grads = torch.randn(layout.size, generator=generator)
        parts = {name: x * sizes[name] for name, x in layout.unflatten(grads).items()}
        with torch.no_grad():
            params, state = learned(layout, params, layout.flatten(parts), state, None, clock(0.0))
        for name, rule in slow.items():
            points[name] = rule.update(points[name], parts[name].double().numpy())
    moved = float((params - start).abs().max())
    for name, x in layout.unflatten(params).items():
        error = np.abs(x.double().numpy() - points[name]).max()
        assert error < 1e-4 * moved, (name, error / moved)


def test_rows_are_relative_to_their_own_slice() -> None:
    """Slices that differ by 1e4 only in size: the scaled gradient is as large in both."""
    layout = Layout.of({"a": (6, 5, 2)})
    g = torch.Generator().manual_seed(0)
    rank_one = torch.outer(torch.rand(6, generator=g) + 0.5, torch.rand(5, generator=g) + 0.5)
    squared = torch.stack([1e4 * rank_one, rank_one], dim=-1)
    grads = squared.sqrt().reshape(-1)
    got = {}
    for version in (1, 2):
        learned = make_learned("mlp:features=39", feature_version=version)
        state = learned.prepare(layout, grads, grads, learned.init_state(layout, grads))
        factor = state["grad_factor" if version == 2 else "factor"][0].detach()
        scaled = (grads * factor).reshape(6, 5, 2)
        got[version] = [float(scaled[..., k].square().mean().sqrt()) for k in range(2)]
    assert got[2] == pytest.approx([10**0.5, 10**0.5], rel=1e-3)
    assert got[1][0] == pytest.approx(5**0.5, rel=1e-2) and got[1][1] > 100  # version 1, as it was


def test_the_eps_of_a_vectors_gradient() -> None:
    layout = Layout.of({"a": (3,)})
    grads = torch.full((3,), math.sqrt(1e-9 / 0.1))  # a second moment of 1e-9 at decay .9
    for version, want in ((1, 999.5), (2, 22361.0)):
        learned = make_learned("mlp:features=39", feature_version=version)
        state = learned.prepare(layout, grads, grads, learned.init_state(layout, grads))
        factor = state["grad_factor" if version == 2 else "factor"][0, 0].detach()
        assert float(factor) == pytest.approx(want, rel=1e-3)
        assert float(state["factor"][0, 0].detach()) == pytest.approx(
            999.5, rel=1e-3
        )  # of the momentum


def test_log_and_sign_has_no_upper_cap() -> None:
    g = torch.tensor([1e4, -1e4, 1.0, 1e-3, -1e-9, 0.0])
    size, sign = log_and_sign(g)
    want = [math.log(1e4) / 5] * 2 + [0.0, -1.0, -1.0, -1.0]
    assert size.tolist() == pytest.approx(want, abs=1e-6)
    assert sign.tolist() == pytest.approx(
        [1, -1, 1, 1e-3 * math.e**5, -1e-9 * math.e**5, 0], rel=1e-5
    )
    assert log_and_sign(g, version=1)[0].tolist() == pytest.approx([1.0, 1.0, *want[2:]], abs=1e-6)


@pytest.mark.parametrize("spec", ["mlp:features=39", "lstm"])
def test_a_file_of_version_1_goes_on_with_it(spec: str, tmp_path: Path) -> None:
    new = make_learned(spec)
    config = asdict(new.config)
    assert config.pop("feature_version") == 2
    for version in (1, 2):
        save_optimizer(
            tmp_path / "x",
            new.theta(),
            kind=new.kind,
            config=config,
            summary={},
            feature_version=version,
        )
        learned = load(tmp_path / "x")
        assert learned.config.feature_version == version
        assert "feature_version" not in str(learned.config)  # old training states know it so
        assert fingerprint(learned) == fingerprint(new)
