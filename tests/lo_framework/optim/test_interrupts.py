"""A step that is interrupted, wherever that is: training goes on (cells of notebooks)."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lo_framework
from lo_framework.optim import SAM, Learned, MetaAdamW, MetaOptimize
from lo_framework.optim.interrupts import Held
from tests.lo_framework.optim.test_options import network, weights
from tests.lo_framework.optim.tools import generator, moved

HOME = str(Path(lo_framework.__file__).parent)
PLACES = 10  # of a step at which it is interrupted
Make = Callable[[nn.Module], torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """What Python does with an interrupt, also where the tests run in the background: a shell lets
    its background jobs ignore them.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def sam(model: nn.Module) -> SAM:
    return SAM(torch.optim.AdamW(model.parameters(), lr=1e-3), rho=50.0, model=model)


MAKERS: dict[str, Make] = {
    "general": lambda m: Learned(m, "general", num_steps=200),
    "attention-mlp": lambda m: Learned(m, moved("attention-mlp"), num_steps=200),
    "metaadamw": lambda m: MetaAdamW(m, lr=1e-2),
    "metaoptimize": lambda m: MetaOptimize(m, alpha0=1e-2),
    "sam": sam,
    "sam of general": lambda m: SAM(Learned(m, "general", num_steps=200), rho=50.0, model=m),
    "halves of sam": sam,
}


def loss_of(model: nn.Module) -> Tensor:
    g = generator(4)
    x, y = torch.randn(64, 4, generator=g), torch.randint(3, (64,), generator=g)
    return nn.functional.cross_entropy(model(x), y)


def step(kind: str, optimizer: Any, model: nn.Module) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss.detach()

    if kind != "halves of sam":
        optimizer.step(closure)
        return
    if optimizer._half is None:  # else what first_step() has begun is brought to its end
        optimizer.first_step(closure())
    closure()
    optimizer.second_step()


def interrupted(place: float, work: Callable[[], None]) -> int:
    """Run ``work`` and press Ctrl-C in the midst of this package's code, before line number
    ``place`` that it runs. How many lines it has run.
    """
    count = 0

    def each(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line":
            count += 1
            if count == place:
                signal.raise_signal(signal.SIGINT)
        return each

    usual = sys.gettrace()
    sys.settrace(each)
    try:
        work()
    finally:
        sys.settrace(usual)
    return count


@pytest.mark.parametrize("before", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("kind", MAKERS)
def test_training_goes_on_after_an_interrupt(kind: str, before: int) -> None:
    def start() -> tuple[nn.Module, Any]:
        model = network()
        optimizer = MAKERS[kind](model)
        for _ in range(before):
            step(kind, optimizer, model)
        return model, optimizer

    for _ in range(2):  # the first makes kernels and plans that others find
        model, optimizer = start()
        lines = interrupted(0, partial(step, kind, optimizer, model))
    assert lines > PLACES
    for k in range(PLACES):
        model, optimizer = start()
        place, here, first = 1 + k * lines // PLACES, weights(model), loss_of(model).detach()
        with pytest.raises(KeyboardInterrupt):
            interrupted(place, partial(step, kind, optimizer, model))
        if kind != "halves of sam":  # between which the weights are elsewhere
            assert (weights(model) - here).abs().max() < 1.0, place
        for _ in range(10):
            step(kind, optimizer, model)
        assert (weights(model) - here).abs().max() < 20.0 and loss_of(model) < first, place


def test_nothing_is_held_where_no_interrupt_can_arrive() -> None:
    """In other threads, and where a person ignores interrupts."""
    raised = list[BaseException]()
    model = network()
    optimizer = sam(model)

    def work() -> None:
        try:
            step("sam", optimizer, model)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)
    assert not raised


def test_blocks_in_blocks_raise_at_the_end_of_the_outermost() -> None:
    usual, reached = signal.getsignal(signal.SIGINT), list[str]()
    with pytest.raises(KeyboardInterrupt), Held():
        with Held() as inner:
            signal.raise_signal(signal.SIGINT)
            reached.append("in the inner one")
            with inner.released():
                reached.append("released, into the outer one")
        reached.append("after the inner one")
    assert len(reached) == 3 and signal.getsignal(signal.SIGINT) is usual
    with pytest.raises(KeyboardInterrupt), Held() as held:
        with held.released():
            signal.raise_signal(signal.SIGINT)
        pytest.fail("the user's own code is not held")
    assert signal.getsignal(signal.SIGINT) is usual
