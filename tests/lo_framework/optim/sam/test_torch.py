"""Explicit regularizers in torch: state, groups, schedulers, scalers, hooks, accumulation, learned
bases.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

from lo_framework.optim import (
    ASAM,
    FSAM,
    GAM,
    GSAM,
    SAM,
    GuardConfig,
    Learned,
    LookSAM,
    MetaAdamW,
    MetaOptimize,
)
from lo_framework.spec import UserError
from tests.lo_framework.optim.sam import tools
from tests.lo_framework.optim.tools import moved

FACES: list[tools.Face] = [SAM, ASAM, GSAM, GAM, LookSAM, FSAM]
DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "explicit.md"


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("saved_at", [0, 1, 7])
@pytest.mark.parametrize("face", FACES)
def test_state_goes_on_to_the_same_bits(face: tools.Face, saved_at: int) -> None:
    whole, parted = tools.network(torch.float32), tools.network(torch.float32)
    one = face(torch.optim.AdamW(whole.parameters(), lr=0.02))
    tools.train(one, whole, range(12))
    two = face(torch.optim.AdamW(parted.parameters(), lr=0.02))
    tools.train(two, parted, range(saved_at))
    state = through_a_file(two.state_dict())
    resumed = face(torch.optim.AdamW(parted.parameters(), lr=9.0))
    resumed.load_state_dict(state)
    tools.train(resumed, parted, range(saved_at, 12))
    assert torch.equal(tools.weights(whole), tools.weights(parted))


@pytest.mark.parametrize("face", [LookSAM, FSAM])
def test_state_of_low_precision_parameters_stays_float32(face: tools.Face) -> None:
    whole, parted = tools.network(torch.bfloat16), tools.network(torch.bfloat16)
    optimizers = [face(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (whole, parted)]
    for optimizer, model in zip(optimizers, (whole, parted)):
        tools.train(optimizer, model, range(3))
    assert {x.dtype for x in optimizers[1].state_dict()["regularizer"]["state"].values()} <= {
        torch.float32,
        torch.int64,
    }
    optimizers[1].load_state_dict(through_a_file(optimizers[1].state_dict()))
    for optimizer, model in zip(optimizers, (whole, parted)):
        tools.train(optimizer, model, range(3, 8))
    assert torch.equal(tools.weights(whole), tools.weights(parted))


def test_state_is_exchanged_with_the_bare_base() -> None:
    """Training may begin plain and end with SAM, or the other way round."""
    model = tools.network()
    plain = torch.optim.AdamW(model.parameters(), lr=0.02)
    for t in range(3):
        plain.step(tools.closure_of(plain, tools.loss_fn(model, t)))
    optimizer = LookSAM(torch.optim.AdamW(model.parameters(), lr=0.02))
    tools.train(optimizer, model, [0])
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.state_dict()["regularizer"]["steps"] == 0
    calls = list[int]()
    tools.train(optimizer, model, [3], calls)
    assert len(calls) == 2 and float(optimizer.state[next(model.parameters())]["step"]) == 4
    plain.load_state_dict(optimizer.state_dict())
    assert float(plain.state[next(model.parameters())]["step"]) == 4


@pytest.mark.parametrize("other", [MetaAdamW, MetaOptimize])
def test_state_around_another_class_is_refused(other: Any) -> None:
    model = nn.Linear(3, 2)
    optimizer, saved = SAM(torch.optim.AdamW(model.parameters())), other(model).state_dict()
    before = optimizer.state_dict()
    with pytest.raises(UserError, match="another optimizer class, not of SAM around AdamW"):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_state_of_something_else_is_refused() -> None:
    model = tools.network()
    sam, fsam = (
        SAM(torch.optim.AdamW(model.parameters())),
        FSAM(torch.optim.AdamW(model.parameters())),
    )
    with pytest.raises(UserError, match='is of the regularizer "sam", not of "fsam"'):
        fsam.load_state_dict(sam.state_dict())
    tools.train(fsam, model, [0])
    other = [nn.Parameter(torch.zeros(p.numel(), 2)) for p in model.parameters()]
    wrong = FSAM(torch.optim.SGD(other, lr=0.1))
    wrong.load_state_dict(
        {**wrong.base.state_dict(), "regularizer": fsam.state_dict()["regularizer"]}
    )
    for p in other:
        p.grad = torch.ones_like(p)
    with pytest.raises(
        UserError, match=r"state is of other parameters: fsam's m/0 has shape \(6, 4\)"
    ):
        wrong.step(lambda: 1.0)
    for copier in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="FSAM is copied and saved through state_dict"):
            copier(fsam)


def test_groups_hooks_and_defaults_are_those_of_the_base() -> None:
    model = tools.network()
    base = torch.optim.SGD(model[0].parameters(), lr=0.1)
    optimizer = LookSAM(base, k=2)
    tools.train(optimizer, model, [0])
    before, held = tools.weights(model), optimizer.state_dict()["regularizer"]["state"]
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.0})
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    assert optimizer.defaults["lr"] == 0.1 and "sam" in repr(optimizer) and "SGD" in repr(optimizer)
    tools.train(optimizer, model, [1])  # reuses a direction that the new group does not have yet
    now = optimizer.state_dict()["regularizer"]["state"]
    assert torch.equal(now["g_v/0"], held["g_v/0"]) and not now["g_v/2"].any()
    base.param_groups[1]["lr"] = 0.1
    tools.train(optimizer, model, [2])
    assert (tools.weights(model) != before).all()
    seen = []
    optimizer.register_state_dict_post_hook(lambda o, state: seen.append(o))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o))
    optimizer.state_dict()
    tools.train(optimizer, model, [3])
    assert seen == [base, optimizer]


@pytest.mark.parametrize("on_base", [True, False])
@pytest.mark.parametrize(
    "make", [lambda o: CosineAnnealingLR(o, 6), lambda o: OneCycleLR(o, 0.3, total_steps=6)]
)
def test_schedulers_on_wrapper_or_base(make: Callable[[Any], Any], on_base: bool) -> None:
    models, seen = [tools.network(), tools.network()], list[list[float]]()
    for model, here in zip(models, (on_base, True)):
        optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=0.1))
        scheduler = make(optimizer.base if here else optimizer)
        seen.append([])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for t in range(5):
                tools.train(optimizer, model, [t])
                scheduler.step()
                seen[-1].append(optimizer.param_groups[0]["lr"])
    assert seen[0] == seen[1] and len(set(seen[0])) == 5
    assert torch.equal(tools.weights(models[0]), tools.weights(models[1]))


@pytest.mark.parametrize("face", FACES)
def test_parameters_without_gradient_take_no_part(face: tools.Face) -> None:
    """Frozen, unused, and used in some steps only: the others move as if these were not there."""
    model, alone = tools.network(), tools.network()
    unused, empty, sometimes = (
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(0, 2)),
        nn.Parameter(torch.ones(2)),
    )
    for m in (model, alone):
        m[0].bias.requires_grad_(False)
    everything = [unused, empty, *model.parameters(), sometimes]
    optimizer = face(torch.optim.SGD(everything, lr=0.1, weight_decay=0.1))
    reference = face(
        torch.optim.SGD(
            [p for p in alone.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
        )
    )

    def extended(loss: tools.LossFn, use: bool) -> Tensor:
        return loss() + (sometimes.exp().sum() if use else 0.0)

    for t in range(7):
        use, loss = t in (2, 3), tools.loss_fn(model, t)
        optimizer.step(tools.closure_of(optimizer, partial(extended, loss, use)))
        if not use:
            tools.train(reference, alone, [t])
        elif t == 3:
            assert not torch.equal(sometimes, torch.ones(2))
            break
        if t == 1:
            torch.testing.assert_close(
                tools.weights(model), tools.weights(alone), rtol=0, atol=1e-12
            )
            assert torch.equal(sometimes, torch.ones(2)) and sometimes.grad is None
    left = sometimes.detach().clone()
    tools.train(optimizer, model, range(4, 9))
    assert (
        torch.equal(sometimes, left) and torch.equal(unused, torch.ones(3)) and unused.grad is None
    )
    assert torch.equal(model.get_parameter("0.bias"), tools.network().get_parameter("0.bias"))
    optimizer.step(lambda: optimizer.zero_grad() or 1.0)  # type: ignore[func-returns-value]


def test_gradients_it_cannot_use_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    with pytest.raises(UserError, match="sparse gradients"):
        optimizer.step(tools.closure_of(optimizer, lambda: embedding(torch.tensor([1])).sum()))
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = SAM(torch.optim.SGD([z], lr=0.1))
    with pytest.raises(UserError, match="complex"):
        optimizer.step(tools.closure_of(optimizer, lambda: z.abs().sum()))


@pytest.mark.parametrize("face", FACES)
def test_accumulated_micro_batches_are_one_batch(face: tools.Face) -> None:
    whole, parts = tools.network(), tools.network()
    one, two = (face(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)) for m in (whole, parts))
    for t in range(6):
        tools.train(one, whole, [t])
        x, y = tools.batch(t)

        def closure(x: Tensor = x, y: Tensor = y) -> float:
            two.zero_grad()
            total = 0.0
            for xs, ys in zip(x.split(4), y.split(4)):
                loss = nn.functional.cross_entropy(parts(xs), ys) / 3
                loss.backward()
                total += float(loss.detach())
            return total

        two.step(closure)
    torch.testing.assert_close(tools.weights(whole), tools.weights(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("face", FACES)
def test_grad_scaler_changes_nothing_but_steps_that_overflow(face: tools.Face) -> None:
    model, plain = tools.network(torch.float32), tools.network(torch.float32)
    optimizer, reference = (
        face(torch.optim.AdamW(m.parameters(), lr=0.02)) for m in (model, plain)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)

    def scaled(t: int, infinite_at: int = 0) -> list[int]:
        calls = list[int]()

        def closure() -> Tensor:
            calls.append(1)
            optimizer.zero_grad()
            loss = tools.loss_fn(model, t)()
            scaler.scale(loss * (torch.inf if len(calls) == infinite_at else 1.0)).backward()
            return loss

        optimizer.step(closure, scaler=scaler)
        scaler.update()
        return calls

    for t in range(3):
        scaled(t)
    before, state = tools.weights(model), copy.deepcopy(optimizer.state_dict())
    assert scaler.get_scale() == 1024
    assert len(scaled(7, infinite_at=1)) == 1 and scaler.get_scale() == 512
    if face is not LookSAM:  # step number 3 makes one pass
        scaled(7, infinite_at=2)
        assert scaler.get_scale() == 256
    assert torch.equal(tools.weights(model), before)
    after = optimizer.state_dict()
    assert str(after) == str(state)
    for t in range(3, 6):
        scaled(t)
    tools.train(reference, plain, range(6))
    torch.testing.assert_close(tools.weights(model), tools.weights(plain), rtol=1e-5, atol=1e-6)


def test_a_disabled_scaler_is_none() -> None:
    model, plain = tools.network(), tools.network()
    one, two = (SAM(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, plain))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    one.step(tools.closure_of(one, tools.loss_fn(model, 0)), scaler=scaler)
    scaler.update()
    tools.train(two, plain, [0])
    assert torch.equal(tools.weights(model), tools.weights(plain))
    with pytest.raises(FloatingPointError):
        one.step(
            tools.closure_of(one, lambda: tools.loss_fn(model, 0)() * torch.nan), scaler=scaler
        )


def test_gradients_can_be_clipped_before_the_base_steps() -> None:
    model = tools.network()
    base = torch.optim.SGD(model.parameters(), lr=1.0)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    base.register_step_pre_hook(clip)
    before = tools.weights(model)
    tools.train(SAM(base), model, [0])
    assert float((tools.weights(model) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_around_a_learned_optimizer() -> None:
    """Its updates are those for the regularized gradients, and rules that read the loss get the
    first pass's.
    """
    model, other = tools.network(torch.float32), tools.network(torch.float32)
    optimizer = SAM(Learned(model.parameters(), moved("attention-mlp"), num_steps=10), rho=0.1)
    bare = Learned(other.parameters(), moved("attention-mlp"), num_steps=10)
    scheduler = StepLR(optimizer, 3, 2.0)
    seen: list[float] = []
    inner = optimizer.base._host.learned.condition  # type: ignore[attr-defined]
    optimizer.base._host.learned.condition = lambda *a: (seen.append(float(a[3])), inner(*a))[1]  # type: ignore[attr-defined, func-returns-value]
    losses = []
    for t in range(4):
        losses += tools.train(optimizer, model, [t])
        for p, q in zip(model.parameters(), other.parameters()):
            q.grad = p.grad.clone()  # type: ignore[union-attr]
        bare.step(loss=losses[-1])
        bare.param_groups[0]["lr"] = 2.0 if t == 2 else 1.0
        scheduler.step()
    assert seen == pytest.approx(losses)
    torch.testing.assert_close(tools.weights(model), tools.weights(other))

    again = SAM(Learned(model.parameters(), moved("attention-mlp"), num_steps=10), rho=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    kept = tools.weights(model)
    tools.train(optimizer, model, range(4, 7))
    expected = tools.weights(model)
    with torch.no_grad():
        nn.utils.vector_to_parameters(kept, model.parameters())
    tools.train(again, model, range(4, 7))
    assert torch.equal(tools.weights(model), expected)


def test_a_guarded_base_decides_about_a_broken_loss() -> None:
    model = tools.network(torch.float32)
    base = Learned(
        model.parameters(),
        moved("attention"),
        num_steps=10,
        guard=GuardConfig(every=1, warmup=1, steps=2),
    )
    optimizer = SAM(base)
    tools.train(optimizer, model, range(3))
    before = tools.weights(model)
    with pytest.warns(UserWarning, match="is left out"):
        optimizer.step(tools.closure_of(optimizer, lambda: tools.loss_fn(model, 3)() * torch.nan))
    assert base.guard_activations == 0
    assert torch.equal(tools.weights(model), before)
    tools.train(optimizer, model, range(4, 7))


def test_code_in_the_document_runs() -> None:
    blocks = [part.split("```")[0] for part in DOCUMENT.read_text().split("```python\n")[1:]]
    assert blocks
    torch.manual_seed(0)
    x, y = tools.batch(0, torch.float32)
    names: dict[str, Any] = {
        "x": x,
        "y": y,
        "loader": [(x, y)] * 4,
        "loss_fn": nn.functional.cross_entropy,
    }
    names["model"] = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    for block in blocks:
        before = tools.weights(names["model"])
        exec(compile(block, str(DOCUMENT), "exec"), names)
        assert not torch.equal(tools.weights(names["model"]), before)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("zeroes", ["nothing", "in place", "afterwards"])
def test_gradients_from_outside_are_refused_not_dropped(face: tools.Face, zeroes: str) -> None:
    """A closure gives no gradient of earlier micro-batches at another point, so what it adds to
    gradients that were there is an error; zeroing them is none, whichever way and whenever.
    """
    model, alone = tools.network(), tools.network()
    optimizer, plain = (face(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, alone))
    tools.train(plain, alone, [1])
    loss = tools.loss_fn(model, 1)
    tools.loss_fn(model, 0)().backward()
    accumulated = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    start = tools.weights(model)

    def closure() -> Tensor:
        if zeroes == "in place":
            optimizer.zero_grad(set_to_none=False)
        elif zeroes == "afterwards":  # of another gradient, which is not accumulated
            torch.autograd.grad(loss(), list(model.parameters()))
            optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    if zeroes == "nothing":
        with pytest.raises(UserError, match="must zero the gradients and run all micro-batches"):
            optimizer.step(closure)
        assert torch.equal(tools.weights(model), start)
        # Nothing is lost: the sum is there.
        latest = torch.autograd.grad(loss(), list(model.parameters()))
        for p, first, last in zip(model.parameters(), accumulated, latest):
            torch.testing.assert_close(p.grad, first + last)
        optimizer.zero_grad()  # outside, and a closure that does not zero
    optimizer.step(closure)
    assert torch.equal(tools.weights(model), tools.weights(alone))


@pytest.mark.parametrize("guard", [False, True])
def test_overflows_of_a_scaler_are_no_concern_of_a_guard(guard: bool) -> None:
    """The first passes overflow, as in float16: skipped steps, and the weights are those without
    a guard. Without a scaler a broken gradient still reaches the guard.
    """
    results = []
    for guarded in (guard, False):
        model = tools.network(torch.float32)
        base = Learned(model.parameters(), moved("attention"), num_steps=100, guard=guarded)
        optimizer, scaler = SAM(base), torch.amp.GradScaler("cpu", init_scale=2.0**17)

        def closure(
            model: nn.Module = model, optimizer: SAM = optimizer, scaler: Any = scaler
        ) -> Tensor:
            optimizer.zero_grad()
            loss = tools.loss_fn(model, 0)()
            overflows = scaler.get_scale() > 2**16
            (scaler.scale(loss) * (torch.inf if overflows else 1.0)).backward()
            return loss

        for _ in range(6):
            optimizer.step(closure, scaler=scaler)
            scaler.update()
        assert base.guard_activations == 0
        results.append(tools.weights(model))
    assert torch.equal(*results)
    assert not torch.equal(results[0], tools.weights(tools.network(torch.float32)))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_broken_gradient_or_loss_reaches_the_guard(scaled: bool) -> None:
    """A gradient where no scaler can have made it overflow, the loss itself always."""
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    model = tools.network(torch.float32)
    guard = GuardConfig(every=1, warmup=1, steps=2)
    base = Learned(model.parameters(), moved("attention"), num_steps=9, guard=guard)
    optimizer = SAM(base)
    tools.train(optimizer, model, range(2))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = tools.loss_fn(model, 2)() * (torch.nan if scaled else 1.0)
        ((loss if scaler is None else scaler.scale(loss)) * torch.nan).backward()
        return loss

    before = tools.weights(model)
    with pytest.warns(UserWarning, match="is left out"):
        optimizer.step(closure, scaler=scaler)
    assert base.guard_activations == 0 and torch.equal(tools.weights(model), before)


def test_a_scaler_that_steps_itself_is_refused() -> None:
    """By ``scaler.step``, passes would be scaled and the update longer by the scale."""
    model, alone = tools.network(torch.float32), tools.network(torch.float32)
    optimizer, plain = (SAM(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, alone))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = tools.loss_fn(model, 0)()
        scaler.scale(loss).backward()
        return loss

    start = tools.weights(model)
    scaler.scale(tools.loss_fn(model, 0)()).backward()
    words = r"call step\(closure, scaler=scaler\) instead of scaler\.step"
    for arguments in ((closure,), ()):
        with pytest.raises(UserError, match=words):
            scaler.step(optimizer, *arguments)
    with pytest.raises(UserError, match=words):
        optimizer.step()
    assert torch.equal(tools.weights(model), start)
    optimizer.step(closure, scaler=scaler)  # what was refused leaves nothing behind
    scaler.update()
    tools.train(plain, alone, [0])
    torch.testing.assert_close(tools.weights(model), tools.weights(alone))
