"""Kernels compute what the plain rules compute, forward and backward, whatever the tensors."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from lo_framework.episode import tile_theta
from lo_framework.layout import Layout
from lo_framework.learned import make_learned
from lo_framework.learned.base import Clock, LearnedOptimizer, State, Theta
from lo_framework.learned.kernels import with_kernels
from lo_framework.native import columns, toolchain
from tests.lo_framework.small_tasks import ALL_KINDS

pytestmark = pytest.mark.skipif(bool(toolchain.reason()), reason=toolchain.reason())

K = 3
KINDS = [*ALL_KINDS, "scaled", "attention:features=enhanced,head=bounded", "scaled:relative=1"]
KINDS += ["celo2:orthogonal=false,vectors=learned"]
# The ends of tensors lie everywhere in a block of 64 columns.
SHAPES = {"0.weight": (13, 11), "0.bias": (13,), "1.weight": (8, 16), "1.bias": (1,)}
LAYOUT = Layout.of(SHAPES)
# Both sum in float32, in another order. Of a gradient, relative to the largest of its tensor.
VALUES, SLOPES = 2e-6, 2e-4


def moved(spec: str) -> LearnedOptimizer:
    """With meta-parameters that all matter."""
    learned = make_learned(spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in learned.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
    return learned


def drawn(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(K, LAYOUT.size, generator=generator)


def trained(
    learned: LearnedOptimizer, theta: Theta, params: Tensor, steps: int = 3
) -> list[Tensor]:
    """Parameters and state after some updates."""

    def one(theta: Theta, params: Tensor, grads: Tensor, state: State) -> tuple[Tensor, State]:
        clock = Clock(torch.tensor(0.3), torch.tensor(20.0))
        loss = (params * params).mean()
        return functional_call(learned, theta, (LAYOUT, params, grads, state, loss, clock))

    state = vmap(lambda p: learned.init_state(LAYOUT, p))(params)
    for t in range(steps):
        # Gradients depend on parameters, as they do in an unroll.
        params, state = vmap(one)(theta, params, drawn(10 + t) + 0.3 * params, state)
    return [params, *(state[name] for name in sorted(state))]


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    scale = float(wanted.detach().abs().amax()) if wanted.numel() else 0.0
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * max(scale, 1e-6))


@pytest.mark.parametrize("spec", KINDS)
def test_values_and_meta_gradients_are_the_rules(spec: str) -> None:
    learned = moved(spec)
    results = []
    for rule in (learned, with_kernels(learned)):
        theta = {n: x.clone().requires_grad_() for n, x in tile_theta(learned.theta(), K).items()}
        start = drawn(1, 0.3).requires_grad_()
        made = trained(rule, theta, start)
        score = sum((x * drawn_like(x)).sum() for x in made if x.requires_grad)
        inputs = [*theta.values(), start]
        slopes = torch.autograd.grad(score, inputs, allow_unused=True, materialize_grads=True)
        results.append((made, slopes))
    (values, slopes), (others, other_slopes) = results
    for a, b in zip(others, values):
        close(a, b, VALUES)
    for a, b in zip(other_slopes, slopes):
        close(a, b, SLOPES)


def drawn_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spec", ["attention-mlp", "scaled"])
def test_what_an_accelerator_runs(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There torch's compiler makes the kernel; it can do so for a CPU too."""
    monkeypatch.setattr(columns, "COMPILED_ON", {"cpu"})
    test_values_and_meta_gradients_are_the_rules(spec)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", ["attention-mlp", "scaled", "mlp"])
def test_on_a_gpu(spec: str) -> None:
    learned = moved(spec)
    theta = tile_theta(learned.theta(), K)
    wanted = trained(learned, theta, drawn(1))
    found = run_on("cuda", learned, theta)
    for a, b in zip(found, wanted):
        close(a, b, 20 * VALUES)


def run_on(device: str, learned: LearnedOptimizer, theta: Theta) -> list[Tensor]:
    there = with_kernels(copy.deepcopy(learned).to(device))
    layout, moved_theta = (
        LAYOUT.to(torch.device(device)),
        {n: x.to(device) for n, x in theta.items()},
    )

    def one(theta: Theta, params: Tensor, grads: Tensor, state: State) -> tuple[Tensor, State]:
        clock = Clock(torch.tensor(0.3, device=device), torch.tensor(20.0, device=device))
        loss = (params * params).mean()
        return functional_call(there, theta, (layout, params, grads, state, loss, clock))

    params = drawn(1).to(device)
    state = vmap(lambda p: there.init_state(layout, p))(params)
    for t in range(3):
        grads = drawn(10 + t).to(device) + 0.3 * params
        params, state = vmap(one)(moved_theta, params, grads, state)
    return [x.cpu() for x in (params, *(state[name] for name in sorted(state)))]


@pytest.mark.parametrize("spec", KINDS)
def test_every_kind_has_all_its_kernels(spec: str) -> None:
    """Else the rule itself would run, and nothing above would notice."""
    learned = with_kernels(moved(spec))
    assert learned.kernels is not None
    theta = {n: x.clone().requires_grad_() for n, x in tile_theta(learned.theta(), K).items()}
    trained(learned, theta, drawn(1), steps=1)
    nothing_to_measure = {"hyper-adamw", "lstm"}
    for (method, *_), recipe in learned.kernels.recipes.items():
        none = method == "_measured" and learned.kind in nothing_to_measure
        none |= method == "steps" and "attention" in spec  # tokens that look at each other
        assert (recipe is None) == none, method


def test_it_is_a_kernel_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would compare the rule with itself."""
    learned = with_kernels(moved("attention-mlp"))
    assert learned.kernels is not None

    def forbidden(*_: object) -> None:
        raise AssertionError("the rule itself ran")

    theta = tile_theta(learned.theta(), K)
    trained(learned, theta, drawn(1))  # kernels are made by running the rule
    monkeypatch.setattr(type(learned), "update", forbidden)
    monkeypatch.setattr(type(learned), "measure", forbidden)
    trained(learned, theta, drawn(1))


@pytest.mark.parametrize("spec", ["hyper-adamw", "attention-mlp", "scaled", "mlp", "celo2"])
def test_second_derivatives(spec: str) -> None:
    learned = moved(spec)

    def curvature(rule: LearnedOptimizer) -> Tensor:
        theta = {n: x.clone().requires_grad_() for n, x in tile_theta(learned.theta(), K).items()}
        made = trained(rule, theta, drawn(1, 0.3), steps=2)[0]
        slopes = torch.autograd.grad(
            made.square().sum(), [*theta.values()], create_graph=True, allow_unused=True
        )
        total = sum(x.square().sum() for x in slopes if x is not None)
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, next(iter(theta.values())))[0]

    close(curvature(with_kernels(learned)), curvature(learned), 2e-3)


def test_transforms_and_nested_vmaps() -> None:
    learned = moved("hyper-adamw")
    native = with_kernels(learned)
    theta, start, grads = learned.theta(), drawn(1)[0], drawn(2)[0]

    def one(rule: LearnedOptimizer, scale: Tensor) -> Tensor:
        params = scale * start
        state = rule.init_state(LAYOUT, params)
        clock = Clock(torch.tensor(0.3), torch.tensor(20.0))
        made = functional_call(rule, theta, (LAYOUT, params, grads, state, None, clock))
        return made[0]

    scales = torch.tensor([[0.5, 1.0, 2.0], [3.0, 4.0, 5.0]])
    found, wanted = (
        vmap(vmap(lambda s, rule=rule: one(rule, s)))(scales) for rule in (native, learned)
    )
    close(found, wanted, VALUES)
    close(one(native, scales[0, 0]), wanted[0, 0], VALUES)
    slopes = [
        grad(lambda s, rule=rule: one(rule, s).sum())(scales[0, 0]) for rule in (native, learned)
    ]
    close(slopes[0], slopes[1], SLOPES)


def test_numbers_that_are_not_finite_stay_where_they_are() -> None:
    learned = moved("attention-mlp")
    params = drawn(1)
    params[0, 5], params[1, 150] = torch.nan, torch.inf
    theta = tile_theta(learned.theta(), K)
    for found, wanted in zip(
        trained(with_kernels(learned), theta, params), trained(learned, theta, params)
    ):
        assert torch.equal(found.isfinite(), wanted.isfinite())


def test_a_rule_that_no_kernel_can_do_runs_as_it_is() -> None:
    class Sorted(type(moved("hyper-adamw"))):  # type: ignore[misc]
        def update(self, channels, shared, params, grads, state):  # type: ignore[no-untyped-def]
            made, new = super().update(channels, shared, params, grads, state)
            return made + 0.0 * grads.sort().values, new

    plain = moved("hyper-adamw")
    odd = Sorted(copy.deepcopy(plain.config))
    odd.load_theta(plain.theta())
    theta = tile_theta(plain.theta(), K)
    for found, wanted in zip(
        trained(with_kernels(odd), theta, drawn(1)), trained(plain, theta, drawn(1))
    ):
        close(found, wanted, VALUES)


def test_two_orders_of_the_state_are_two_kernels() -> None:
    """A loaded state may come in another order; the wrong kernel would exchange its rows."""
    learned = moved("hyper-adamw")
    native = with_kernels(learned)
    params, clock = drawn(1)[0], Clock(torch.tensor(0.3), torch.tensor(20.0))
    state = learned.init_state(LAYOUT, params)
    state |= {"m": drawn(4)[0], "v": drawn(5)[0].abs()}
    backwards = dict(reversed(state.items()))
    found = [native(LAYOUT, params, drawn(2)[0], s, None, clock)[0] for s in (state, backwards)]
    assert torch.equal(*found)
    close(found[0], learned(LAYOUT, params, drawn(2)[0], state, None, clock)[0], VALUES)
