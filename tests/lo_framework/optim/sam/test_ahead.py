"""Single-step SAM around an optimizer: one pass, ahead of the weights, by a closure or between two
halves, and nothing of it left behind.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lo_framework.optim import S2SAM, GuardConfig, Learned
from lo_framework.spec import UserError
from tests.lo_framework.optim.sam import tools
from tests.lo_framework.optim.tools import moved


def noisy() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def around(trained: nn.Module, **options: Any) -> S2SAM:
    return S2SAM(tools.BASES["adamw"](trained.parameters()), rho=0.3, **options)


def half(optimizer: S2SAM, model: nn.Module, t: int) -> None:
    optimizer.zero_grad()
    assert optimizer.first_step()
    tools.loss_fn(model, t)().backward()


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [x.detach().clone() for x in model.state_dict().values()]


def assert_same(one: list[torch.Tensor], two: list[torch.Tensor]) -> None:
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_halves_are_the_closure_to_the_bit(dtype: torch.dtype) -> None:
    one, two = tools.network(dtype), tools.network(dtype)
    by_closure, by_halves = around(one), around(two)
    for t in range(6):
        tools.train(by_closure, one, [t])
        half(by_halves, two, t)
        by_halves.second_step() if t % 2 else by_halves.step()
    assert_same(bits(one), bits(two))


def test_the_pass_is_a_usual_one() -> None:
    """Running statistics and random numbers are those of the one pass, at the weights ahead."""
    model, other = noisy(), noisy()
    optimizer = around(model, model=model)
    torch.manual_seed(1)
    tools.train(optimizer, model, [0, 1])
    state = torch.get_rng_state()
    torch.manual_seed(1)
    for t in (0, 1):
        tools.loss_fn(other, t)()
    assert torch.equal(torch.get_rng_state(), state)
    assert model[1].num_batches_tracked == 2


def test_a_state_between_the_halves_goes_on_to_the_same_bits() -> None:
    model = tools.network()
    optimizer = around(model)
    tools.train(optimizer, model, [0, 1])
    half(optimizer, model, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = tools.network(seed=1)
    again = around(other)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    tools.loss_fn(other, 2)().backward()
    for each, trained in ((optimizer, model), (again, other)):
        each.second_step()
        tools.train(each, trained, [3])
    assert_same(bits(model), bits(other))


def test_what_breaks_changes_nothing() -> None:
    model = tools.network()
    optimizer = around(model)
    tools.train(optimizer, model, [0, 1])
    before, state = bits(model), copy.deepcopy(optimizer.state_dict())

    def broken() -> torch.Tensor:
        raise RuntimeError("no data")

    def infinite() -> torch.Tensor:
        optimizer.zero_grad()
        loss = tools.loss_fn(model, 2)() / 0.0
        loss.backward()
        return loss

    for closure, error in ((broken, RuntimeError), (infinite, FloatingPointError)):
        with pytest.raises(error):
            optimizer.step(closure)
        assert_same(bits(model), before)
    half(optimizer, model, 2)
    model[0].bias.grad.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError):
        optimizer.second_step()
    assert_same(bits(model), before)
    assert repr(optimizer.state_dict()) == repr(state)
    tools.train(optimizer, model, [2])


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    model = tools.network(torch.float32)
    optimizer, scaler = around(model), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = bits(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 10.0 * tools.loss_fn(model, 0)()
        scaler.scale(loss).backward()
        return loss

    optimizer.step(closure, scaler=scaler)
    scaler.update()
    assert_same(bits(model), before)
    assert scaler.get_scale() < 2.0**127


def test_parameters_without_a_gradient_take_no_part() -> None:
    model, bare = tools.network(), tools.network()
    optimizer, plain = around(model), tools.BASES["adamw"](bare.parameters())
    unused = model[2]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model[0](tools.batch(0)[0]).square().mean()
        loss.backward()
        return loss

    before = bits(unused)
    for _ in range(3):
        optimizer.step(closure)
    assert_same(bits(unused), before)
    assert all(p.grad is None for p in unused.parameters()) and plain


def test_a_base_that_looks_at_the_loss_is_told_it() -> None:
    model = tools.network(torch.float32)
    base = Learned(model, moved("scaled"), guard=GuardConfig())
    optimizer = S2SAM(base, rho=0.1)
    tools.train(optimizer, model, [0, 1])
    half(optimizer, model, 2)
    with pytest.raises(UserError, match=r"looks at the loss: call second_step\(loss\)"):
        optimizer.second_step()
    loss, before = tools.loss_fn(model, 2)().detach(), bits(model)
    optimizer.second_step(loss)
    assert not any(map(torch.equal, bits(model), before))


def test_halves_out_of_order_are_refused() -> None:
    model = tools.network()
    optimizer = around(model)
    with pytest.raises(UserError, match="comes after first_step"):
        optimizer.second_step()
    with pytest.raises(UserError, match="a backward between them of an unscaled loss"):
        optimizer.step()
    optimizer.first_step()
    with pytest.raises(UserError, match="needs gradients: run backward after first_step"):
        optimizer.second_step()
    with pytest.raises(UserError, match="in the midst of a step"):
        optimizer.first_step()
    tools.loss_fn(model, 0)().backward()
    optimizer.second_step()


def test_what_has_no_gradient_points_nowhere() -> None:
    """A parameter that was used once stays where it is, and has no share in the radius."""
    used, once = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 5.0))
    optimizer = S2SAM(torch.optim.SGD([used, once], lr=0.0), rho=1.0)
    seen = []
    for t in range(4):

        def closure(t: int = t) -> torch.Tensor:
            optimizer.zero_grad()
            seen.append((used.detach().clone(), once.detach().clone()))
            loss = used.sum() + (once.sum() if t == 0 else 0.0)
            loss.backward()
            return loss

        optimizer.step(closure)
    half, whole = torch.full((2,), 0.5), torch.full((2,), 0.5**0.5)
    for place, expected in zip(
        seen[1:], ((half, half), (whole, 0.0 * whole), (whole, 0.0 * whole))
    ):
        torch.testing.assert_close(place[0], 1.0 + expected[0])
        torch.testing.assert_close(place[1], 5.0 + expected[1])


def test_a_backward_at_the_weights_is_refused() -> None:
    """SAM's loop would add the gradient at the weights to the one ahead."""
    model = tools.network()
    optimizer = around(model)
    tools.loss_fn(model, 0)().backward()
    before = bits(model)
    with pytest.raises(UserError, match="one backward a step"):
        optimizer.first_step()
    assert_same(bits(model), before)
    optimizer.zero_grad(set_to_none=False)
    half(optimizer, model, 0)
    optimizer.second_step()


def test_parameters_that_it_cannot_move_are_untouched() -> None:
    strange = nn.Parameter(torch.tensor([1.0 + 2.0j]))
    optimizer = S2SAM(torch.optim.SGD([nn.Parameter(torch.ones(2)), strange], lr=0.1))
    for call in (optimizer.first_step, lambda: optimizer.step(lambda: torch.tensor(1.0))):
        with pytest.raises(UserError, match="complex"):
            call()
    assert strange.item() == 1.0 + 2.0j


def test_a_step_that_the_base_refuses_leaves_the_rule_as_it_was() -> None:
    model = tools.network(torch.float32)
    optimizer = S2SAM(Learned(model, moved("scaled")), rho=0.1)
    tools.train(optimizer, model, [0, 1])
    optimizer.param_groups[0]["lr"] = float("nan")
    before, entry = bits(model), copy.deepcopy(optimizer.state_dict()["regularizer"])
    with pytest.raises(UserError, match="lr must be"):
        tools.train(optimizer, model, [2])
    assert_same(bits(model), before)
    assert repr(optimizer.state_dict()["regularizer"]) == repr(entry)


def test_nothing_to_train_is_no_error() -> None:
    model = tools.network()
    optimizer = around(model)
    tools.train(optimizer, model, [0])
    model.requires_grad_(False)
    before = bits(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=False)
        return tools.loss_fn(model, 1)()

    optimizer.step(closure)
    assert_same(bits(model), before)
