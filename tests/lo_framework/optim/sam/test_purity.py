"""Later passes leave nothing behind: weights, statistics, random state, gradients, casts; also when
they break.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lo_framework.optim import GAM, SAM
from tests.lo_framework.optim.sam import tools


def breaking(
    closure: Callable[[], Tensor], at: int, how: Callable[[Tensor], Tensor]
) -> Callable[[], Tensor]:
    """``closure`` whose call number ``at`` ends in ``how``."""
    calls = 0

    def wrapped() -> Tensor:
        nonlocal calls
        calls += 1
        value = closure()
        return how(value) if calls == at else value

    return wrapped


def interrupt(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at", [2, 3])
def test_weights_come_back_bit_for_bit_when_the_closure_raises(dtype: torch.dtype, at: int) -> None:
    model = tools.network(dtype)
    optimizer = GAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.7, model=model)
    tools.train(optimizer, model, [0])
    before, seen = tools.weights(model), list[Tensor]()
    closure = tools.closure_of(optimizer, tools.loss_fn(model, 1))

    def watched() -> Tensor:
        seen.append(tools.weights(model))
        return closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(breaking(watched, at, interrupt))
    assert torch.equal(tools.weights(model).view(torch.uint8), before.view(torch.uint8))
    assert not torch.equal(seen[at - 1], before)
    tools.train(optimizer, model, [1])
    assert not torch.equal(tools.weights(model), before)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_raises_and_changes_nothing(at: int, what: str) -> None:
    model = tools.network(torch.float32)
    optimizer = SAM(torch.optim.AdamW(model.parameters()))
    tools.train(optimizer, model, [0])
    before, steps = tools.weights(model), float(optimizer.state[next(model.parameters())]["step"])

    def poison(value: Tensor) -> Tensor:
        if what == "loss":
            return value * torch.nan
        next(model.parameters()).grad[0, 0] = torch.inf  # type: ignore[index]
        return value

    with pytest.raises(FloatingPointError, match="not finite; the weights are as before"):
        optimizer.step(breaking(tools.closure_of(optimizer, tools.loss_fn(model, 1)), at, poison))
    assert torch.equal(tools.weights(model), before)
    assert float(optimizer.state[next(model.parameters())]["step"]) == steps
    tools.train(optimizer, model, [2])


def test_low_precision_steps_are_float32_steps_rounded() -> None:
    """Norms are taken in float32: in float16 the squares of these gradients underflow."""
    model = nn.Linear(64, 1, bias=False, dtype=torch.float16)
    nn.init.constant_(model.weight, 1.0)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.5)
    points = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        points.append(model.weight.detach().float().clone())
        model.weight.grad = torch.full_like(model.weight, 1e-5)
        return torch.tensor(1.0)

    optimizer.step(closure)
    torch.testing.assert_close(
        points[1] - points[0], torch.full((1, 64), 0.5 / 8), rtol=2e-2, atol=0
    )


class Watched(nn.Module):
    """Statistics, a mask that is an expanded tensor, a buffer that is replaced, and one that is
    counted in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.average = nn.BatchNorm1d(3, momentum=None)
        self.channels = nn.InstanceNorm1d(3, track_running_stats=True)
        self.register_buffer("mask", torch.ones(1).expand(3), persistent=False)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.get_buffer("seen") + x.sum()
        self.get_buffer("count").add_(1)
        z = self.average(self.head(torch.relu(self.norm(self.first(x)))))
        return self.channels(z.T[None])[0].T * self.mask


@pytest.mark.parametrize("face", [SAM, GAM])
def test_statistics_are_those_of_the_first_pass(face: tools.Face) -> None:
    torch.manual_seed(0)
    model, plain = Watched(), Watched()
    plain.load_state_dict(model.state_dict())
    optimizer = face(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    for t in range(4):
        tools.loss_fn(plain, t)()
        tools.train(optimizer, model, [t])
        held = dict(model.named_buffers())
        assert all(torch.equal(b, held[name]) for name, b in plain.named_buffers())
        assert (
            int(model.get_buffer("count"))
            == int(model.get_buffer("norm.num_batches_tracked"))
            == t + 1
        )
        plain.load_state_dict(model.state_dict())
    before = {name: b.clone() for name, b in model.named_buffers()}
    once = Watched()
    once.load_state_dict(model.state_dict())
    tools.loss_fn(once, 9)()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(breaking(tools.closure_of(optimizer, tools.loss_fn(model, 9)), 2, interrupt))
    assert not torch.equal(before["norm.running_mean"], model.norm.running_mean)  # type: ignore[arg-type]
    assert all(
        torch.equal(b, dict(model.named_buffers())[name]) for name, b in once.named_buffers()
    )


def test_without_a_model_statistics_see_every_pass() -> None:
    model = Watched()
    tools.train(SAM(torch.optim.SGD(model.parameters(), lr=0.1)), model, [0])
    assert int(model.norm.num_batches_tracked) == 2  # type: ignore[arg-type]


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.drop(torch.ones(len(x), 32))
        self.masks.append(z)
        return self.head(self.first(x) * z)


@pytest.mark.parametrize("same_noise", [True, False])
def test_dropout_noise_and_where_the_generator_ends(same_noise: bool) -> None:
    model = Dropped()
    optimizer = GAM(torch.optim.SGD(model.parameters(), lr=0.1), same_noise=same_noise)
    torch.manual_seed(3)
    tools.train(optimizer, model, [0])
    after = torch.get_rng_state()
    assert len(model.masks) == 4
    assert all(torch.equal(model.masks[0], mask) == same_noise for mask in model.masks[1:])
    torch.manual_seed(3)
    tools.loss_fn(model, 0)()
    assert torch.equal(torch.get_rng_state(), after) == same_noise
    torch.manual_seed(3)
    closure = tools.closure_of(optimizer, tools.loss_fn(model, 0))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(breaking(closure, 3, interrupt))
    assert torch.equal(torch.get_rng_state(), after) == same_noise


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dropout_noise_on_a_device() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 3)).cuda()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=1e-12)
    x, grads = torch.randn(8, 64, device="cuda"), list[Tensor]()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        grads.append(model[0].weight.grad.clone())  # type: ignore[union-attr, operator]
        return loss

    torch.cuda.manual_seed(3)
    optimizer.step(closure)
    after = torch.cuda.get_rng_state()
    torch.testing.assert_close(grads[0], grads[1])
    torch.cuda.manual_seed(3)
    closure()
    assert torch.equal(torch.cuda.get_rng_state(), after)


def test_gradients_of_other_parameters_are_those_of_the_first_pass() -> None:
    model, twin = tools.network(), tools.network()
    optimizer = SAM(torch.optim.SGD(model[2].parameters(), lr=0.1), rho=0.5, model=model)
    tools.train(optimizer, model, [0])
    tools.loss_fn(twin, 0)().backward()
    for p, q in zip(model[0].parameters(), twin[0].parameters()):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


def test_closures_need_not_zero_the_gradients() -> None:
    one, two = tools.network(), tools.network()
    usual, bare = (SAM(torch.optim.SGD(m.parameters(), lr=0.1), rho=0.5) for m in (one, two))

    def closure() -> Tensor:
        loss = tools.loss_fn(two, t)()
        loss.backward()
        return loss

    for t in range(3):
        tools.train(usual, one, [t])
        bare.zero_grad(set_to_none=t > 0)
        bare.step(closure)
    assert torch.equal(tools.weights(one), tools.weights(two))


def test_autocast_around_the_step_casts_the_perturbed_weights() -> None:
    """Autocast keeps casts of weights while its context lasts; those of w must not serve at w + rho
    u.
    """
    inside, around = tools.network(torch.float32), tools.network(torch.float32)
    one, two = (SAM(torch.optim.SGD(m.parameters(), lr=0.5), rho=1.0) for m in (inside, around))
    for t in range(3):
        loss = tools.loss_fn(inside, t)

        def cast(loss: Callable[[], Tensor] = loss) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return loss()

        one.step(tools.closure_of(one, cast))
        with torch.autocast("cpu", torch.bfloat16):
            two.step(tools.closure_of(two, tools.loss_fn(around, t)))
    torch.testing.assert_close(tools.weights(inside), tools.weights(around), rtol=1e-5, atol=1e-6)
