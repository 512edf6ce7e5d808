"""``scaled``: what it must not depend on, its law, and its orthogonal directions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lo_framework import unroll
from lo_framework.layout import Layout
from lo_framework.learned import make_learned
from lo_framework.learned.controller import EXCHANGES, agreement
from lo_framework.learned.law import hats, log_law
from lo_framework.learned.orthogonal import newton_schulz, orthogonalised
from lo_framework.learned.scaled import Scaled
from lo_framework.optim import Learned
from lo_framework.optimizees.variation import make_variations
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import clock

WIDTH = 12
SHAPES = {"a.weight": (WIDTH, 9), "a.bias": (WIDTH,), "b.weight": (8, WIDTH), "b.bias": (8,)}
LAYOUT = Layout.of(SHAPES)
KINDS = ["scaled", "scaled:controller=off", "scaled:controller=attention", "scaled:relative=true"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(spec: str) -> torch.nn.Module:
    """The rule with a little of everything learned."""
    learned = make_learned(spec).double()
    for p in learned.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=generator(1), dtype=torch.float64)
    return learned


def start() -> dict[str, Tensor]:
    make = generator(2)
    return {n: 0.3 * torch.randn(s, generator=make, dtype=torch.float64) for n, s in SHAPES.items()}


def loss(params: dict[str, Tensor], t: int) -> Tensor:
    x = torch.randn(16, 9, generator=generator(100 + t), dtype=torch.float64)
    h = torch.tanh(x @ params["a.weight"].T + params["a.bias"])
    return (h @ params["b.weight"].T + params["b.bias"] - x[:, :8].sin()).square().mean()


def train(spec: str, params: dict[str, Tensor], size: float = 1.0, unit: float = 1.0) -> Tensor:
    """Eight steps on ``size * loss(unit * params)``, as the scaled parameters ``[N]``."""
    learned, flat = moved(spec), LAYOUT.flatten(params) / unit
    state = learned.init_state(LAYOUT, flat)
    for t in range(8):
        at = flat.clone().requires_grad_()
        (grads,) = torch.autograd.grad(size * loss(LAYOUT.unflatten(unit * at), t), at)
        with torch.no_grad():
            flat, state = learned(LAYOUT, flat, grads, state, None, clock(t / 8, 8.0))
    return flat * unit


@pytest.mark.parametrize("size", [1e-3, 1e3])
@pytest.mark.parametrize("spec", KINDS)
def test_the_scale_of_the_loss_changes_nothing(spec: str, size: float) -> None:
    torch.testing.assert_close(train(spec, start(), size), train(spec, start()), rtol=1e-6, atol=0)


def test_relative_steps_do_not_depend_on_the_unit_of_parameters() -> None:
    """Above the floor of sizes; the floor is for parameters that start at zero."""
    there = {name: 10.0 * x for name, x in start().items()}
    expected = train("scaled:relative=true", there)
    for unit in (0.1, 1e-3):
        found = train("scaled:relative=true", there, unit=unit)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", KINDS)
def test_permuted_hidden_units_take_permuted_paths(spec: str) -> None:
    order = torch.randperm(WIDTH, generator=generator(3))

    def permuted(params: dict[str, Tensor]) -> dict[str, Tensor]:
        a = {name: params[name][order] for name in ("a.weight", "a.bias")}
        return {**a, "b.weight": params["b.weight"][:, order], "b.bias": params["b.bias"]}

    plain = LAYOUT.unflatten(train(spec, start()))
    found = LAYOUT.unflatten(train(spec, permuted(start())))
    for name, x in permuted(plain).items():
        torch.testing.assert_close(found[name], x, rtol=1e-7, atol=1e-12)


def test_the_law_has_its_powers() -> None:
    powers = torch.tensor([0.5, 0.9, 0.25, 1.5, 0.4], dtype=torch.float64)
    layout = Layout.of({"a": (64, 256), "c": (64,), "b": (10, 128)})
    wide = {name: x.double() for name, x in layout.constants.items()}
    law = log_law(wide, powers, clock(0.0, 800.0))
    shared = -1.5 * math.log(2 / 3) - 0.4 * math.log(4)
    expected = [shared - 0.5 * math.log(4), shared - 0.25 * math.log(4)]
    expected += [shared - 0.9 * math.log(2)]
    torch.testing.assert_close(law, torch.tensor(expected, dtype=torch.float64))
    unknown = log_law(wide, powers, clock(0.0, 0.0))
    torch.testing.assert_close(unknown, law + 0.4 * math.log(4))


def test_hats_interpolate_and_end_flat() -> None:
    knots, values = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 4.0, -4.0])
    for at, expected in ((0.0, 2.0), (0.5, 3.0), (2.0, 0.0), (3.0, -4.0), (9.0, -4.0)):
        assert float(hats(knots, torch.tensor(at)) @ values) == pytest.approx(expected, abs=1e-6)


def channels(spec: str, step: float, horizon: float) -> Tensor:
    learned = moved(spec)
    state = learned.init_state(LAYOUT, LAYOUT.flatten(start()))
    stats = torch.rand(6, LAYOUT.num, generator=generator(7), dtype=torch.float64)
    at = clock(0.4 if horizon else 0.0, horizon)
    state["step"] += step
    return learned.condition(LAYOUT, stats, state, None, at)[0]


@pytest.mark.parametrize("spec", KINDS)
def test_steps_are_not_counted_after_the_warm_up_where_there_is_progress(spec: str) -> None:
    assert not torch.allclose(channels(spec, 10.0, 500.0), channels(spec, 40.0, 500.0))
    torch.testing.assert_close(channels(spec, 40.0, 500.0), channels(spec, 4e5, 500.0))
    assert not torch.allclose(channels(spec, 40.0, 0.0), channels(spec, 400.0, 0.0))


def test_schedule_and_fading_are_bounded_and_stay_where_they_were_last_learned() -> None:
    learned = make_learned("scaled").double().requires_grad_(False)
    assert isinstance(learned, Scaled)
    progress = torch.linspace(0.0, 1.0, 41).double()
    before = torch.stack([learned.planned(x) for x in progress])
    learned.schedule -= 100.0
    learned.fading[0] -= 100.0
    plan = torch.stack([learned.planned(x) for x in progress])
    torch.testing.assert_close(plan, before - math.log(4.0))
    steps = torch.tensor([0.0, 30.0, 100.0, 300.0, 1e5]).double()
    faded = [float(learned.faded(x)) for x in steps]
    assert faded == pytest.approx([0.0, 0.0, *[-math.log(3.0)] * 3], abs=1e-6)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (16, 16)])
def test_newton_schulz_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=generator(4), dtype=torch.float64)
    u, s, v = torch.linalg.svd(newton_schulz(x), full_matrices=False)
    assert s.max() < 1.3 and s.min() > 0.5
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    polar = left @ right
    assert float((u @ v * polar).sum() / polar.square().sum()) > 0.999


def test_convolutions_are_outputs_by_the_rest_and_vectors_stay() -> None:
    layout = Layout.of({"conv": (8, 2, 3, 3), "bias": (8,), "small": (4, 8)})
    x = torch.randn(layout.size, generator=generator(5), dtype=torch.float64)
    found = layout.unflatten(orthogonalised(layout, x, torch.ones(3, dtype=torch.float64)))
    given = layout.unflatten(x)
    assert torch.equal(found["bias"], given["bias"]) and torch.equal(found["small"], given["small"])
    matrix = newton_schulz(given["conv"].reshape(8, 18))
    matrix = matrix * (given["conv"].square().mean() / matrix.square().mean()).sqrt()
    torch.testing.assert_close(found["conv"].reshape(8, 18), matrix)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_controller_adds_nothing_at_the_start(exchange: str) -> None:
    arenas = []
    for spec in ("scaled", f"scaled:controller={exchange}"):
        learned, flat = make_learned(spec), LAYOUT.flatten(start()).float()
        state = learned.init_state(LAYOUT, flat)
        grads = torch.randn(flat.shape, generator=generator(6))
        with torch.no_grad():
            arenas.append(learned(LAYOUT, flat, grads, state, None, clock(0.3))[0])
    assert torch.equal(*arenas)


def test_only_rules_with_a_meaning_for_it_run_without_a_horizon() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = Learned(model.named_parameters(), make_learned("scaled"))
    losses = []
    for t in range(30):
        optimizer.zero_grad()
        x = torch.randn(32, 3, generator=generator(t))
        value = (model(x) - x[:, :2]).square().mean()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(UserError, match="needs num_steps"):
        Learned(model.parameters(), make_learned("hyper-adamw"))


def test_agreement_is_the_cosine_with_the_momentum_before() -> None:
    g, before = torch.randn(2, 50, generator=generator(5), dtype=torch.float64)
    keep = torch.tensor(0.15, dtype=torch.float64)
    m = before + keep * (g - before)
    found = agreement((g * m).mean(), (g * g).mean(), (m * m).mean(), keep)
    torch.testing.assert_close(found, torch.cosine_similarity(g, before, dim=0))
    first = keep * g  # there is no momentum yet
    none = agreement((g * first).mean(), (g * g).mean(), (first * first).mean(), keep)
    torch.testing.assert_close(none, torch.zeros_like(none))


def test_a_hidden_layer_moves_as_much_on_wide_nets() -> None:
    """How far the pre-activations of hidden layers are after ten steps depends on the width by a
    power of at most .1 (muP's coordinate check; Yang et al. 2022).
    """
    x = torch.randn(128, 16, generator=generator(6))
    y = torch.randint(4, (128,), generator=generator(7))

    def change(width: int) -> Tensor:
        torch.manual_seed(8)
        sizes = (16, width, width, 4)
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
        before = [net[:1](x), net[:3](x)]
        optimizer = Learned(net, make_learned("scaled"), num_steps=200)
        for _ in range(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        after = [net[:1](x), net[:3](x)]
        return torch.stack([(b - a).std() for a, b in zip(before, after, strict=True)]).detach()

    powers = torch.log(change(512) / change(32)) / math.log(512 / 32)
    assert powers.abs().max() < 0.1, powers


def test_a_state_of_another_law_is_refused() -> None:
    net = torch.nn.Linear(3, 2)
    saved = Learned(net, make_learned("scaled"), num_steps=5).state_dict()
    for other in ("scaled:fan=0.5", "scaled:relative=true"):
        with pytest.raises(UserError):
            Learned(net, make_learned(other), num_steps=5).load_state_dict(saved)


def test_every_power_and_every_row_of_the_usual_pool_has_a_gradient() -> None:
    """Rows are roles at positions; what a pool never trains would stay at its start value."""
    learned, total, seen = make_learned("scaled"), {}, set()
    for family in make_variations("mlp,cnn"):
        for seed in range(6):
            task = family.draw(generator(seed))
            slope = torch.func.grad(unroll)(learned.theta(), task, learned, steps=3, seed=seed)
            total = {name: total.get(name, 0.0) + x.abs() for name, x in slope.items()}
            shapes = {name: x.shape for name, x in task.init(generator(seed))[0].items()}
            seen |= set(Layout.of(shapes).position_keys.tolist())
    assert torch.all(total["powers"] > 0)
    rows = total["by_role"].sum(-1)
    assert {key for key in range(len(rows)) if rows[key] > 0} == seen
