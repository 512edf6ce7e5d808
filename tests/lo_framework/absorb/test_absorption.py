"""Absorbed regularizers: what the estimators return against the same unroll written out
(`absorption_tools`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lo_framework.absorb.absorption import (
    AbsorbConfig,
    Absorption,
    FunctionalLandscape,
    decompose,
    make_absorption,
    make_regularizer,
)
from lo_framework.estimators import make_estimator
from lo_framework.inner.step import Family
from lo_framework.objectives import make_objective
from lo_framework.regularizers.base import Point
from lo_framework.spec import UserError
from tests.lo_framework.absorb.reference import (
    LEARNED,
    LENGTH,
    NUM,
    TASK,
    assert_equal,
    begun,
    estimator_of,
    gam,
    loss_at,
    reference,
    sam,
    trajectory,
)
from tests.lo_framework.small_tasks import (
    NAN_LOSS,
    PlainSGD,
    PlainSGDConfig,
    Quadratic,
    copied,
    in_step,
    once,
    with_buffer,
)

VALUES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "sam": ("sam:rho=0.1", lambda f, p: sam(f, p, 0.1)),
    "gam": ("gam:rho=0.1,alpha=0.5", lambda f, p: gam(f, p, 0.1, 0.5)),
    "mixture": (
        "sam:rho=0.1+gam:rho=0.1,alpha=0.5",
        lambda f, p: sam(f, p, 0.1) + gam(f, p, 0.1, 0.5) - f(p),
    ),
}


@pytest.mark.parametrize("batch", ["own", "independent"])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("objective", ["valid", "train"])
def test_meta_gradient_is_that_of_the_detached_regularized_loss(
    name: str, batch: str, objective: str
) -> None:
    spec, value = VALUES[name]
    estimator = estimator_of(spec, f"batch={batch}", objective=objective)
    state = begun(estimator)
    found, _ = estimator.estimate(LEARNED.theta(), copied(state))
    assert_equal(found.grad, reference(estimator, state, value))
    assert found.metrics["penalty"] > 0 and found.plain is None


@pytest.mark.parametrize(
    ("options", "when", "strength"),
    [
        ("when=late", "late", 1.0),
        ("when=last,last=2", "last:2", 1.0),
        ("when=end", "end", 1.0),
        ("strength=3", "every", 3.0),
    ],
)
@pytest.mark.parametrize("spec", ["tbptt", "tbptt:segments=2"])
def test_schedules_and_strength(options: str, when: str, strength: float, spec: str) -> None:
    estimator = estimator_of("sam:rho=0.1", options, spec)
    state = begun(estimator)
    found, _ = estimator.estimate(LEARNED.theta(), copied(state))
    assert_equal(
        found.grad, reference(estimator, state, lambda f, p: sam(f, p, 0.1), when, strength)
    )


def test_attached_goes_through_the_perturbation_too() -> None:
    state = begun(estimator_of("sam:rho=0.3"))
    grads = {}
    for attached in ("true", "false"):
        estimator = estimator_of("sam:rho=0.3", f"attached={attached}")
        grads[attached] = estimator.estimate(LEARNED.theta(), copied(state))[0].grad
    estimator = estimator_of("sam:rho=0.3")
    assert_equal(
        grads["true"], reference(estimator, state, lambda f, p: sam(f, p, 0.3, attached=True))
    )
    gap = max(float((grads["true"][n] - grads["false"][n]).abs().max()) for n in LEARNED.theta())
    assert gap > 1e-5


@pytest.mark.parametrize(
    "regularizer", ["gsam:rho=0.1,alpha=0.4,space=params", "gam:exact=false,rho=0.1", "fsam"]
)
def test_a_field_without_a_value_is_pulled_back_step_by_step(regularizer: str) -> None:
    """sum_t J_t^T G_t, accumulated explicitly; the regularizer's state goes from step to step."""
    estimator = estimator_of(regularizer)
    state = begun(estimator)
    found, _ = estimator.estimate(LEARNED.theta(), copied(state))
    theta = {name: x.clone().requires_grad_() for name, x in LEARNED.theta().items()}
    rule, inputs = make_regularizer(regularizer), list(theta.values())
    carried = {n.removeprefix("absorbed."): x for n, x in state.carry.memory.items()}
    memory = [{n: x[k] for n, x in carried.items()} for k in range(NUM)]
    expected = [torch.zeros_like(x) for x in inputs]

    def pull(output: Tensor, cotangent: Tensor) -> None:
        pulled = torch.autograd.grad(
            output, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for total, x in zip(expected, pulled):
            total += x / (NUM * LENGTH)

    for moment in trajectory(estimator, theta, state):
        for k in range(NUM):
            p, f = loss_at(moment, k, False)
            pull(moment.score[k], moment.live[k])
            landscape = FunctionalLandscape(
                lambda q, b, n, f=f: f(q["params"]), (), torch.tensor(0)
            )
            at = {"params": p.detach()}
            loss, grad = landscape.gradient(at)
            step = rule.correction(landscape, Point(at, loss, grad), memory[k])
            memory[k] = step.state
            level = loss.detach().requires_grad_()
            (slope,) = torch.autograd.grad(TASK.normalize(level), level)
            if p.requires_grad:
                pull(p, moment.live[k] * slope * step.field["params"])
    assert_equal(found.grad, dict(zip(theta, expected)))


def test_gsam_in_meta_space_keeps_its_promise() -> None:
    """Along the orthogonal part the perturbed objective stands still and the gap falls, by finite
    differences.
    """
    estimator = estimator_of(
        "gsam:rho=0.2,alpha=0.7", "attached=true"
    )  # attached: gradients of the very numbers
    state = begun(estimator)
    found, _ = estimator.estimate(LEARNED.theta(), copied(state))
    assert found.plain is not None
    whole, theta = decompose(found.plain, found.grad, 0.7), LEARNED.theta()
    assert_equal(decompose(found.plain, found.grad, 0.0), found.grad)
    across = {n: (found.grad[n] - whole[n]) / 0.7 for n in theta}
    dot = sum(float((across[n] * found.grad[n]).sum()) for n in theta)
    square = sum(float((x**2).sum()) for x in across.values())
    assert abs(dot) < 1e-12 and square > 1e-9

    def objectives(shift: float) -> tuple[float, float]:
        moved = {n: x + shift * across[n] for n, x in theta.items()}
        plain = perturbed = 0.0
        for moment in trajectory(estimator, moved, state):
            for k in range(NUM):
                p, f = loss_at(moment, k, False)
                rise = TASK.normalize(sam(f, p, 0.2)) - TASK.normalize(f(p))
                plain += float(moment.live[k] * moment.score[k]) / (NUM * LENGTH)
                perturbed += float(moment.live[k] * (moment.score[k] + rise)) / (NUM * LENGTH)
        return plain, perturbed

    h = 1e-3
    (plain_up, up), (plain_down, down) = objectives(h), objectives(-h)
    assert (up - down) / (2 * h) == pytest.approx(0.0, abs=1e-4 * square)
    assert ((up - plain_up) - (down - plain_down)) / (2 * h) == pytest.approx(-square, rel=1e-3)


def test_gsam_in_meta_space_leaves_the_two_gradients_to_the_outer_loop() -> None:
    """grad is SAM's meta-gradient, plain that without a regularizer, under every estimator."""
    for spec in ("tbptt", "tbptt:segments=2", "pes:sigma=0.1", "es:sigma=0.1"):
        both = {name: estimator_of(name, spec=spec) for name in ("gsam:rho=0.1", "sam:rho=0.1")}
        state = begun(both["sam:rho=0.1"])
        split, whole = (e.estimate(LEARNED.theta(), copied(state))[0] for e in both.values())
        assert_equal(split.grad, whole.grad)
        bare = make_estimator(
            spec, Family(TASK, LEARNED), make_objective("valid"), once(2 * LENGTH, LENGTH), NUM
        )
        assert_equal(split.plain, bare.estimate(LEARNED.theta(), copied(state))[0].grad)


@pytest.mark.parametrize("engine", ["graph"])
@pytest.mark.parametrize("spec", ["tbptt", "pes"])
@pytest.mark.parametrize("regularizer", ["gsam", "fsam", "gam"])
def test_a_recorded_step_gives_the_same(engine: str, spec: str, regularizer: str) -> None:
    grads = []
    for each in ("eager", engine):
        estimator = estimator_of(regularizer, "when=late", spec, engine=each)
        state = in_step(estimator.init_state(LEARNED.theta(), torch.Generator().manual_seed(1)))
        for _ in range(2):
            found, state = estimator.estimate(LEARNED.theta(), state)
        grads.append(found.grad)
    assert_equal(grads[1], grads[0], 1e-12)


def test_pes_through_the_field_equals_pes_through_the_value() -> None:
    """Exactly where R is quadratic (the trapezoid rule is), to third order in sigma where the field
    is R's gradient.

    SAM's field leaves out how the perturbation turns, which its value does not: there they differ
    by that.
    """
    for regularizer, task, learned, tolerance in (
        ("weight_decay:lam=0.3", Quadratic(), PlainSGD(PlainSGDConfig(lr=0.06)), 1e-9),
        ("label_noise:p=0.3,classes=2", TASK, LEARNED, 6e-4),
        ("sam:rho=0.05", TASK, LEARNED, 2e-2),
    ):
        grads = []
        for through in ("value", "field"):
            estimator = estimator_of(
                regularizer,
                f"through={through},strength=4",
                "pes:sigma=0.002",
                task=task,
                learned=learned,
                num=6,
            )
            theta = learned.theta()
            state = in_step(estimator.init_state(theta, torch.Generator().manual_seed(1)))
            for _ in range(2):
                found, state = estimator.estimate(theta, state)
            grads.append(torch.cat([x.flatten() for x in found.grad.values()]))
        assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < tolerance


def test_field_pes_is_unbiased_on_a_case_with_a_known_answer() -> None:
    """SGD with step exp(theta) on a quadratic with weight decay in the objective: the smoothed
    slope by quadrature.
    """
    lr, sigma, steps, lam, pairs = 0.06, 0.15, 4, 0.5, 600
    task, learned = Quadratic(), PlainSGD(PlainSGDConfig(lr=lr))
    nodes, weights = (torch.tensor(x) for x in np.polynomial.hermite.hermgauss(20))
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    rate = (shift + torch.tensor(lr).double().log() + nodes * 2**0.5 * sigma).exp()
    p, total = torch.ones(len(nodes), 2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(steps):
        total = total + (weights * 0.5 * lam * (p**2).sum(1)).sum() / torch.pi**0.5
        p = p - rate[:, None] * task.curvature * p
        total = total + (weights * 0.5 * (task.curvature * p**2).sum(1)).sum() / torch.pi**0.5
    (expected,) = torch.autograd.grad(total / steps, shift)
    estimator = estimator_of(
        f"weight_decay:lam={lam}",
        "through=field",
        f"pes:sigma={sigma}",
        task=task,
        learned=learned,
        num=pairs,
        truncation=once(steps),
    )
    samples = []
    for seed in range(16):
        state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(seed)))
        samples.append(float(estimator.estimate(learned.theta(), state)[0].grad["log_lr"]))
    found = torch.tensor(samples, dtype=torch.float64)
    error = found.std() / len(found) ** 0.5
    assert (found.mean() - expected).abs() < 4 * error and error < 0.03 * expected.abs()


@pytest.mark.parametrize("spec", ["tbptt", "pes"])
def test_an_ill_task_does_not_reach_the_others(spec: str) -> None:
    grads = []
    for ill in (False, True):
        estimator = estimator_of("sam", spec=spec, num=3)
        state = begun(estimator)
        values = torch.zeros(len(state.carry.alive))
        if ill:
            values[[0, 3] if spec == "pes" else [0]] = NAN_LOSS
        found, _ = estimator.estimate(LEARNED.theta(), with_buffer(state, "sick", values))
        grads.append(torch.cat([x.flatten() for x in found.grad.values()]))
    assert bool(torch.isfinite(grads[1]).all()) and float(grads[1].norm()) > 0
    assert found.metrics["nonfinite"] == pytest.approx(1 / 3)


def test_steps_out_of_turn_cost_nothing() -> None:
    """A penalty at the end of episodes only: no step before it evaluates another gradient."""
    estimator = estimator_of("sam", "when=end")
    state = in_step(estimator.init_state(LEARNED.theta(), torch.Generator().manual_seed(1)))
    weights = [estimator.unroller.draw(copied(state), i)[0].weight for i in range(LENGTH)]
    assert not any(weights)
    _, state = estimator.estimate(LEARNED.theta(), state)
    weights = [estimator.unroller.draw(copied(state), i)[0].weight for i in range(LENGTH)]
    assert [not w for w in weights] == [True] * (LENGTH - 1) + [False]


def test_bad_input() -> None:
    for regularizer, options, words in (
        ("smm", "", "did you mean"),
        ("sam", "when=latest", "when"),
        ("sam", "wen=late", "did you mean"),
        ("sam", "strength=0", "strength"),
        ("sam", "last=0", "last"),
        ("gsam:space=params", "attached=true", "scalar value"),
        ("fsam", "through=value", "scalar value"),
        ("sam:rho=0", "", "rho"),
        ("sam:rho=-1", "", "rho"),
        ("sam:rho=nan", "", "rho"),
    ):
        with pytest.raises(UserError, match=words) as found:
            make_absorption(regularizer, options)
        assert "\n" not in str(found.value)
    assert Absorption(make_regularizer("gsam:alpha=0.3"), AbsorbConfig()).alpha == 0.3
