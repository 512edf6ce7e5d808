"""Explicit regularizers: steps against the formulas, their costs, and refused options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework import regularizers as rules
from lo_framework.optim import ASAM, FSAM, GAM, GSAM, S2SAM, SAM, LookSAM, Regularized
from lo_framework.spec import UserError
from tests.lo_framework.optim.sam import reference, tools

Case = tuple[tools.Face, dict[str, Any], Callable[..., Tensor], dict[str, Any]]
CASES: dict[str, Case] = {
    "sam": (SAM, {"rho": 0.1}, reference.sam, {"rho": 0.1}),
    "asam": (ASAM, {"rho": 0.7, "eta": 0.05}, reference.asam, {"rho": 0.7, "eta": 0.05}),
    "gsam": (GSAM, {"rho": 0.1, "alpha": 0.4}, reference.gsam, {"rho": 0.1, "alpha": 0.4}),
    "gam": (
        GAM,
        {"rho": 0.1, "rho_prime": 0.03, "beta_1": 0.4, "beta_0": 0.6, "gamma": 0.2},
        reference.gam,
        {"rho": 0.1, "rho_prime": 0.03, "a": 0.4, "b": 0.6, "gamma": 0.2},
    ),
    "looksam": (
        LookSAM,
        {"rho": 0.1, "k": 3},
        reference.looksam,
        {"rho": 0.1, "k": 3, "alpha": 0.7},
    ),
    "fsam": (
        FSAM,
        {"rho": 0.1, "sigma": 0.8},
        reference.fsam,
        {"rho": 0.1, "sigma": 0.8, "lam": 0.9},
    ),
    "s2sam": (S2SAM, {"rho": 0.1}, reference.s2sam, {"rho": 0.1}),
}


@pytest.mark.parametrize("base", tools.BASES)
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_formulas(name: str, base: str) -> None:
    face, options, formula, constants = CASES[name]
    fast, slow = tools.network(), tools.network()
    optimizer = face(tools.BASES[base](fast.parameters()), **options)
    plainly = reference.Slow(slow, tools.BASES[base](slow.parameters()))
    for t in range(20):
        returned = tools.train(optimizer, fast, [t])[0]
        loss = tools.loss_fn(slow, t)
        if not optimizer.regularizer.is_ahead:  # else it is of the weights before the step
            assert returned == pytest.approx(float(loss().detach()), abs=1e-10)
        plainly.step(lambda s, l, g: formula(s, l, g, **constants), loss)
    torch.testing.assert_close(tools.weights(fast), tools.weights(slow), rtol=0, atol=1e-10)
    moved = tools.network()
    plain = tools.BASES[base](moved.parameters())
    for t in range(20):
        plain.step(tools.closure_of(plain, tools.loss_fn(moved, t)))  # type: ignore[arg-type]
    assert (
        tools.weights(fast) - tools.weights(moved)
    ).norm() > 1e-3  # the regularizer does something


@pytest.mark.parametrize("name", CASES)
def test_passes_are_what_the_rule_costs(name: str) -> None:
    face, options, _, _ = CASES[name]
    model, calls = tools.network(), list[int]()
    optimizer = face(torch.optim.SGD(model.parameters(), lr=0.1), **options)
    tools.train(optimizer, model, range(12), calls)
    assert len(calls) == pytest.approx(12 * optimizer.regularizer.cost.gradients)


def test_any_regularizer_and_mixtures() -> None:
    """A penalty that needs no further pass, and two at once: their corrections add."""
    mixture = rules.Mixture(
        [
            rules.sam.SAM(rules.sam.SAMConfig(rho=0.1)),
            rules.weight_decay.WeightDecay(rules.weight_decay.WeightDecayConfig(lam=0.3)),
        ]
    )
    one, two = tools.network(), tools.network()
    calls = list[int]()
    mixed = Regularized(torch.optim.SGD(one.parameters(), lr=0.1), mixture)
    coupled = SAM(torch.optim.SGD(two.parameters(), lr=0.1, weight_decay=0.3), rho=0.1)
    tools.train(mixed, one, range(5), calls)
    tools.train(coupled, two, range(5))
    assert len(calls) == 10
    torch.testing.assert_close(tools.weights(one), tools.weights(two), rtol=0, atol=1e-12)
    mixed.load_state_dict(mixed.state_dict())
    assert "sam:rho=0.1+weight_decay:lam=0.3" in repr(mixed)


def test_random_regularizers_draw_from_the_step_alone() -> None:
    class Jitter(rules.Regularizer):
        cost = rules.Cost(1)
        stochastic = True
        name = "jitter"

        def correction(
            self, landscape: rules.Landscape, here: rules.Point, state: Any
        ) -> rules.Correction:
            field = {
                n: landscape.uniform(tuple(x.shape), i)
                for i, (n, x) in enumerate(here.params.items())
            }
            again = {
                n: landscape.uniform(tuple(x.shape), i)
                for i, (n, x) in enumerate(here.params.items())
            }
            assert all(
                torch.equal(field[n], again[n]) and field[n].min() >= 0 and field[n].max() < 1
                for n in field
            )
            drawn.append(field)
            return rules.Correction(field, None, state)

    drawn: list[dict[str, Tensor]] = []
    model = tools.network()
    before = torch.get_rng_state()
    optimizer = Regularized(
        torch.optim.SGD(model.parameters(), lr=0.01), Jitter(rules.sam.SAMConfig())
    )
    tools.train(optimizer, model, [0, 1])
    state = optimizer.state_dict()
    tools.train(optimizer, model, [2])
    optimizer.load_state_dict(state)
    tools.train(optimizer, model, [2])
    first, second, third, replayed = (step["0"] for step in drawn)
    assert torch.equal(third, replayed)
    assert not (torch.equal(first, second) or torch.equal(second, third))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_options_are_one_line() -> None:
    base = torch.optim.SGD(tools.network().parameters(), lr=0.1)
    with pytest.raises(
        UserError, match=r'^SAM: unknown option "roh" \(did you mean "rho"\?\); known: rho, model'
    ):
        SAM(base, roh=0.1)
    with pytest.raises(
        UserError, match=r'^GSAM: unknown option "modle" \(did you mean "model"\?\)'
    ):
        GSAM(base, modle=None)
    with pytest.raises(UserError, match=r"^SAM: option rho=-1.0: expected above 0"):
        SAM(base, rho=-1.0)
    with pytest.raises(UserError, match=r'^GAM: option variant="papr".*did you mean "paper"'):
        GAM(base, variant="papr")
    with pytest.raises(UserError, match=r"^SAM: model must be a torch.nn.Module, got int"):
        SAM(base, model=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^SAM goes around an optimizer.*got generator"):
        SAM(tools.network().parameters())  # type: ignore[arg-type]


def test_what_a_closure_cannot_give_is_refused() -> None:
    params = list(tools.network().parameters())
    base = torch.optim.SGD(params, lr=0.1)
    with pytest.raises(
        UserError, match=r"^GAM: gam needs Hessian-vector products.*use exact=False$"
    ):
        GAM(base, exact=True)
    penalty = rules.hessian_trace.HessianTrace(rules.hessian_trace.HessianTraceConfig())
    with pytest.raises(
        UserError, match=r"hessian_trace needs Hessian-vector.*choose a regularizer"
    ):
        Regularized(base, rules.Mixture([rules.sam.SAM(rules.sam.SAMConfig()), penalty]))
    for inner in (torch.optim.LBFGS(params), SAM(base)):
        with pytest.raises(UserError, match="runs the closure itself"):
            SAM(inner)
    model = tools.network()
    noisy = Regularized(
        torch.optim.SGD(model.parameters(), lr=0.1),
        rules.label_noise.LabelNoise(rules.label_noise.LabelNoiseConfig()),
    )
    with pytest.raises(UserError, match="changes the data, and a closure hides them"):
        tools.train(noisy, model, [0])


def test_a_closure_is_needed_and_must_return_the_loss() -> None:
    model = tools.network()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    before = tools.weights(model)
    with pytest.raises(UserError, match="^SAM needs a closure"):
        optimizer.step()
    loss = tools.loss_fn(model, 0)
    with pytest.raises(UserError, match="must return the loss, one number; it returned nothing"):
        optimizer.step(lambda: loss().backward())
    assert torch.equal(tools.weights(model), before)
