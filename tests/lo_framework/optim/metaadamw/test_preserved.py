"""A meta step leaves no trace: parameters, gradients, running statistics and generators stay bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lo_framework.errors import UserError
from lo_framework.optim.metaadamw.preserved import preserved
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.tools import D, snapshot, theta

OBJECTIVES = ["combined", "gradient", "loss_decrease", "gen_gap"]
ORDERS = ["exact", "difference", "first"]


def trace(model: nn.Module) -> list[Any]:
    """Everything that a pass could touch, to the last bit."""
    grads = [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()]
    buffers = [(name, id(b), b.tolist()) for name, b in model.named_buffers()]
    flags = [(p.requires_grad, p.tolist()) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    return [grads, buffers, flags, modes, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("reproduce", [None, "paper", "reference"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_of_the_model_changes(objective: str, order: str, reproduce: str | None) -> None:
    """D16, D23. In training mode, with BatchNorm and Dropout, a frozen parameter, and one without a
    gradient.
    """
    model = tools.noisy_network()
    model[4].bias.requires_grad_(False)
    options: dict[str, Any] = {"network": {"width": 12, "heads": 4}} if reproduce else {}
    # The published gap does not depend on the network (D4); of the gradient term nothing but the
    # product learns.
    idle = [("gen_gap", order, "paper"), ("gradient", "first", None)]
    optimizer = tools.make(
        model.named_parameters(), objective=objective, order=order, reproduce=reproduce, **options
    )
    tools.run(optimizer, model, range(2))
    for grads in ("there", "partly", "none"):
        if grads != "there":
            model[0].weight.grad = None
        if grads == "none":
            optimizer.zero_grad()
        before, learned = trace(model), theta(optimizer)
        tools.meta(optimizer, model)
        assert trace(model) == before
        assert torch.equal(theta(optimizer), learned) == ((objective, order, reproduce) in idle)
    tools.run(optimizer, model, range(2, 4))
    assert model[1].num_batches_tracked == 4


@pytest.mark.parametrize("fail_at", range(1, 5))
def test_nothing_changes_when_the_loss_raises(fail_at: int) -> None:
    """In each of the passes; nor does the optimizer."""
    model = tools.noisy_network()
    optimizer = tools.make(model.named_parameters(), order="difference")
    tools.run(optimizer, model, range(3), meta_every=2)
    before, state, calls = trace(model), snapshot(optimizer), list[int]()

    def loss(pair: tools.Batch) -> Tensor:
        value = tools.loss_of(model)(pair)
        calls.append(1)
        if len(calls) == fail_at:
            raise ArithmeticError("in the middle")
        return value

    with pytest.raises(ArithmeticError, match="in the middle"):
        optimizer.meta_step(loss, *(tools.batch(t) for t in range(3)))
    assert len(calls) == fail_at and trace(model) == before and snapshot(optimizer) == state


def test_all_passes_see_the_same_dropout_masks() -> None:
    """D16: so both sides of the decrease of the loss differ by the step alone."""
    model = tools.noisy_network()
    optimizer = tools.make(model.named_parameters(), order="difference")
    tools.run(optimizer, model, range(2))
    masks: list[Tensor] = []
    model[3].register_forward_hook(lambda module, inputs, out: masks.append(out.detach() == 0))
    optimizer.meta_step(tools.loss_of(model), *(tools.batch(t) for t in range(3)))
    assert len(masks) == 4 and masks[0].any() and not masks[0].all()
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_a_meta_step_draws_no_random_numbers_and_the_next_ones_are_new() -> None:
    """D28: with and without meta steps a training sees the same dropout."""
    found = []
    for with_meta in (False, True):
        torch.manual_seed(3)
        model = tools.noisy_network()
        optimizer = tools.make(model.named_parameters(), alpha_range=0.0, beta_range=0.0)
        for t in range(4):
            tools.step(optimizer, model, t)
            if with_meta:
                tools.meta(optimizer, model, t)
        found.append(tools.weights(model))
    assert torch.equal(found[0], found[1])


def test_without_a_step_the_loss_decreases_by_nothing() -> None:
    """The same batch, masks and statistics on both sides: their ratio is 1."""
    model = tools.noisy_network()
    optimizer = tools.make(model.named_parameters(), objective="loss_decrease")
    tools.run(optimizer, model, range(2))
    optimizer.param_groups[0]["lr"] = 0.0
    assert tools.meta(optimizer, model)["loss_decrease"] == 1.0


class Strange(nn.Module):
    """Buffers that a child has and the parent changes, one that is replaced, and one that cannot be
    written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.child = nn.Linear(4, 3, dtype=D), nn.BatchNorm1d(3)
        self.register_buffer("last", torch.zeros(3, dtype=D), persistent=False)
        self.register_buffer("wide", torch.zeros(1).expand(5))

    def forward(self, x: Tensor) -> Tensor:
        self.child.running_mean += 1  # type: ignore[assignment, operator]
        x = self.linear(x)
        self.last = x.detach().mean(0)
        return x


def test_buffers_that_are_changed_in_strange_ways() -> None:
    model = Strange()
    optimizer = tools.make(model.linear.named_parameters())
    tools.step(optimizer, model, 0)
    before = trace(model)
    tools.meta(optimizer, model)
    assert trace(model) == before and model.child.running_mean[0] == 1  # type: ignore[index]


def test_buffers_that_a_functional_call_brings() -> None:
    """They are put away again; the model's own stay."""
    model = tools.noisy_network()
    optimizer = tools.make(model.named_parameters())
    tools.step(optimizer, model, 0)
    own = dict(model.named_buffers())
    theirs = {name: x.clone() for name, x in own.items()}

    def loss(pair: tools.Batch) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, theirs, (pair[0],)), pair[1])

    before, brought = trace(model), {name: x.clone() for name, x in theirs.items()}
    optimizer.meta_step(loss, *(tools.batch(t) for t in range(3)))
    assert trace(model) == before and all(x is own[name] for name, x in model.named_buffers())
    assert all(torch.equal(x, brought[name]) for name, x in theirs.items())


class Averages(nn.Module):
    """Writes a buffer where no hook sees it, outside of any forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, dtype=D)
        self.register_buffer("mean", torch.zeros(3, dtype=D))

    def training_step(self, pair: tools.Batch) -> Tensor:
        logits = self.linear(pair[0])
        self.mean.mul_(0.9).add_(logits.detach().mean(0))  # type: ignore[operator, union-attr]
        return nn.functional.cross_entropy(logits, pair[1])


def test_buffers_written_outside_of_forward_with_the_model_given() -> None:
    model = Averages()
    optimizer = tools.make(model.named_parameters())
    model.training_step(tools.batch(0)).backward()
    optimizer.step()
    before, batches = trace(model), [tools.batch(t) for t in range(3)]
    optimizer.meta_step(model.training_step, *batches, model=model)
    assert trace(model) == before
    optimizer.meta_step(model.training_step, *batches)
    assert trace(model) != before  # what the argument is for


def test_the_hook_is_gone_afterwards() -> None:
    model = tools.network()
    with pytest.raises(ArithmeticError), preserved(list(model.parameters())):
        raise ArithmeticError
    assert not nn.modules.module._global_forward_pre_hooks
    assert not nn.modules.module._global_buffer_registration_hooks


class Attends(nn.Module):
    """torch's fused attention, which has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 12, dtype=D), nn.Linear(4, 3, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.enter(x)[None, None].chunk(3, -1)
        return self.leave(nn.functional.scaled_dot_product_attention(q, k, v))[0, 0]


@pytest.mark.parametrize("order", ["difference", "first"])
def test_fused_attention_can_be_trained_without_second_derivatives(order: str) -> None:
    """D24."""
    torch.manual_seed(0)
    model = Attends()
    optimizer = tools.make(model.named_parameters(), order=order)
    before = theta(optimizer)
    tools.run(optimizer, model, range(4), meta_every=2)
    assert not torch.equal(theta(optimizer), before) and optimizer.skipped == 0


def test_exact_order_says_what_to_do_about_fused_attention() -> None:
    torch.manual_seed(0)
    model = Attends()
    optimizer = tools.make(model.named_parameters(), order="exact")
    tools.run(optimizer, model, range(2))
    before, state = trace(model), snapshot(optimizer)
    with pytest.raises(UserError, match='use order="difference" or "first"') as caught:
        tools.meta(optimizer, model)
    assert "\n" not in str(caught.value) and trace(model) == before and snapshot(optimizer) == state


def test_other_errors_of_the_model_stay_what_they_are() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), order="exact")
    tools.run(optimizer, model, range(1))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        optimizer.meta_step(
            lambda pair: model(pair[0][:, :2]).sum(), *(tools.batch(t) for t in range(3))
        )


@pytest.mark.parametrize("call", [torch.no_grad, torch.enable_grad])
def test_a_meta_step_within_no_grad(call: Callable[[], Any]) -> None:
    model, other = tools.network(), tools.network()
    one, two = (tools.make(m.named_parameters()) for m in (model, other))
    for optimizer, net in ((one, model), (two, other)):
        tools.run(optimizer, net, range(2))
    with call():
        tools.meta(one, model)
    tools.meta(two, other)
    assert torch.equal(theta(one), theta(two))
