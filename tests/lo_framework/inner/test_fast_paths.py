"""The shortcuts of the hot path compute what the plain definitions compute."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from lo_framework.estimators import make_estimator
from lo_framework.inner.graph import Recorder
from lo_framework.inner.step import Family
from lo_framework.layout import Layout
from lo_framework.learned import network as module
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.learned.network import Weights, formula, network
from lo_framework.objectives import make_objective
from lo_framework.optimizees.task import Batch, Buffers, Params
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import ALL_KINDS, TinyNet, copied, doubled, in_step, once

K, F, H, O = 3, 4, 6, 2
SHAPES = ((H, F), (H, 1), (H, H), (H, 1), (O, H), (O, 1))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)), dtype=torch.float64
    )


def applied(x: Tensor, *weights: Tensor) -> Tensor:
    return network(x, Weights(*weights))


@pytest.mark.parametrize(
    "block", [1, 8 * H, 1 << 17]
)  # single columns, a few of one task, all tasks at once
@pytest.mark.parametrize("n", [0, 1, 29])
def test_network_in_blocks_is_the_formula(
    n: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    inputs = [
        t.requires_grad_()
        for t in (drawn(K, F, n), *(drawn(K, *s, seed=i) for i, s in enumerate(SHAPES)))
    ]
    found, wanted = vmap(applied)(*inputs), vmap(formula)(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    cotangent = drawn(K, O, n, seed=9)
    for create_graph in (False, True):
        slopes = torch.autograd.grad(
            found, inputs, cotangent, retain_graph=True, create_graph=create_graph
        )
        others = torch.autograd.grad(wanted, inputs, cotangent, retain_graph=True)
        for a, b in zip(slopes, others):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_network_twice_differentiable() -> None:
    inputs = [
        t.requires_grad_()
        for t in (drawn(K, F, 7), *(drawn(K, *s, seed=i) for i, s in enumerate(SHAPES)))
    ]

    def curvature(f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        slopes = torch.autograd.grad(vmap(f)(*inputs).pow(2).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in slopes), inputs)

    for a, b in zip(curvature(applied), curvature(formula)):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_network_under_torch_func() -> None:
    x, weights = drawn(K, F, 7), [drawn(*s, seed=i) for i, s in enumerate(SHAPES)]
    wanted = torch.stack([formula(row, *weights) for row in x])
    torch.testing.assert_close(
        torch.stack([applied(row, *weights) for row in x]), wanted
    )  # without vmap
    torch.testing.assert_close(
        vmap(lambda row: applied(row, *weights))(x), wanted
    )  # shared weights
    torch.testing.assert_close(
        vmap(applied, (2, *[None] * 6))(x.permute(1, 2, 0), *weights), wanted
    )
    nested = vmap(lambda scale: vmap(lambda row: applied(scale * row, *weights))(x))(
        torch.tensor([1.0, 2.0]).double()
    )
    torch.testing.assert_close(nested[0], wanted)
    slope = vmap(grad(lambda row: applied(row, *weights).sum()))(x)
    (pulled,) = vjp(vmap(lambda row: applied(row, *weights)), x)[1](torch.ones_like(wanted))
    torch.testing.assert_close(slope, pulled)


@pytest.mark.parametrize("spec", ["mlp", "mlp:features=39"])
def test_mlp_forward_is_its_three_phases(spec: str) -> None:
    learned = doubled(spec)
    layout = Layout.of({"0.weight": (4, 3), "0.bias": (4,), "1.weight": (2, 4)})
    params, state, others = drawn(layout.size), learned.init_state(layout, drawn(layout.size)), None
    for step in range(3):
        others = others or (params, state)
        arguments = (drawn(layout.size, seed=step), torch.tensor(1.0), torch.tensor(0.1).double())
        params, state = learned(layout, params, arguments[0], state, *arguments[1:])
        others = LearnedOptimizer.forward(
            learned, layout, others[0], arguments[0], others[1], *arguments[1:]
        )
        torch.testing.assert_close(params, others[0], rtol=1e-13, atol=1e-15)
        assert state.keys() == others[1].keys()
        for name, x in state.items():
            torch.testing.assert_close(x, others[1][name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "kind, spec",
    [(k, s) for k in ALL_KINDS for s in ("pes", "tbptt:segments=2")]
    + [("mlp", "tbptt:second_order=false")],
)
def test_recorded_steps_have_the_bits_of_plain_ones(kind: str, spec: str) -> None:
    small = {"attention": ":width=4,heads=2", "attention-mlp": ":width=4,heads=2,hidden=4"}
    learned = doubled(kind + small.get(kind, ""))
    results = []
    for engine in ("eager", "graph"):
        family = Family(TinyNet(), copy.deepcopy(learned), engine)
        estimator = make_estimator(spec, family, make_objective("valid:train=0.3"), once(6, 3), 2)
        state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(2)))
        for _ in range(3):
            found, state = estimator.estimate(learned.theta(), copied(state))
        results.append((found.grad, found.metrics, state.carry))
    (grads, metrics, carry), (others, other_metrics, other_carry) = results
    assert metrics == other_metrics and torch.equal(carry.params, other_carry.params)
    assert all(torch.equal(g, others[name]) for name, g in grads.items())
    assert all(torch.equal(x, other_carry.state[name]) for name, x in carry.state.items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spec", ["pes", "tbptt"])
def test_compiled_steps(spec: str) -> None:
    learned = doubled("mlp:hidden=4")
    grads = []
    for engine in ("eager", "inductor"):
        family = Family(TinyNet(), copy.deepcopy(learned), engine)
        estimator = make_estimator(spec, family, make_objective("valid:train=0.3"), once(3), 2)
        state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(2)))
        grads.append(estimator.estimate(learned.theta(), state)[0].grad)
    for name, g in grads[0].items():
        torch.testing.assert_close(g, grads[1][name], rtol=1e-7, atol=1e-9)


def test_recordings_follow_shapes_and_gradients() -> None:
    recorder = Recorder(lambda inputs: [inputs[0] * inputs[1], inputs[1] > 0], "graph")
    for size in (2, 3):
        a, b = drawn(size).requires_grad_(), drawn(size)
        for _ in range(2):
            product, positive = recorder([a, b])
            assert torch.equal(product, a * b) and torch.equal(positive, b > 0)
            assert torch.equal(torch.autograd.grad(product.sum(), a)[0], b)
        with torch.no_grad():
            assert not recorder([a, b])[0].requires_grad
    assert len(recorder.recordings) == 4


class InPlace(TinyNet):
    """Writes into one of its inputs."""

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        loss, new = super().loss(params, buffers, batch, noise)
        return loss, {**new, "bn.mean": buffers["bn.mean"].add_(1)}


def test_what_cannot_be_recorded_says_so() -> None:
    learned = doubled("hyper-adamw")
    estimator = make_estimator(
        "pes", Family(InPlace(), learned, "graph"), make_objective("valid"), once(3), 2
    )
    state = estimator.init_state(learned.theta(), torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="engine eager"):
        estimator.estimate(learned.theta(), state)
    with pytest.raises(UserError, match='did you mean "graph"'):
        Family(TinyNet(), learned, "grpah")
