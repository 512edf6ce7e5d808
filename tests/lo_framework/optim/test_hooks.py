"""Hooks of a user around our optimizers: they see a whole state, and every step once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from lo_framework.optim import SAM, GuardConfig, Learned, LookSAM, MetaAdamW, MetaOptimize
from tests.lo_framework.optim.tools import moved

Make = Callable[[Any], torch.optim.Optimizer]
ALL: dict[str, tuple[Make, set[str]]] = {
    "learned": (lambda ps: Learned(ps, moved("attention"), num_steps=9), {"learned"}),
    "metaoptimize": (lambda ps: MetaOptimize(ps, alpha0=1e-3), {"metaoptimize"}),
    "metaadamw": (lambda ps: MetaAdamW(ps), {"metaadamw"}),
    "sam": (lambda ps: SAM(torch.optim.SGD(ps, lr=0.1, momentum=0.9)), {"regularizer"}),
    "looksam, learned": (
        lambda ps: LookSAM(Learned(ps, moved("attention"), num_steps=9)),
        {"regularizer", "learned"},
    ),
    "sam, metaoptimize": (
        lambda ps: SAM(MetaOptimize(ps, alpha0=1e-3)),
        {"regularizer", "metaoptimize"},
    ),
}
each = pytest.mark.parametrize(("make", "entries"), ALL.values(), ids=ALL.keys())


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, 2))


def train(optimizer: torch.optim.Optimizer, p: nn.Parameter, steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]


@pytest.fixture
def counts() -> Iterator[dict[str, int]]:
    counted = {"before": 0, "after": 0}

    def count(name: str) -> Callable[..., None]:
        return lambda *_: counted.update({name: counted[name] + 1})

    handles = [
        register_optimizer_step_pre_hook(count("before")),
        register_optimizer_step_post_hook(count("after")),
    ]
    yield counted
    for handle in handles:
        handle.remove()


@each
def test_every_step_is_counted_once(make: Make, entries: set[str], counts: dict[str, int]) -> None:
    p, own = parameter(), [0, 0]
    optimizer = make([p])
    optimizer.register_step_pre_hook(lambda *_: own.__setitem__(0, own[0] + 1))
    optimizer.register_step_post_hook(lambda *_: own.__setitem__(1, own[1] + 1))
    train(optimizer, p, 3)
    assert counts == {"before": 3, "after": 3} and own == [3, 3]


def test_the_steps_of_a_guard_are_counted_once(counts: dict[str, int]) -> None:
    p = parameter()
    guard = GuardConfig(every=1, warmup=1, steps=2)
    optimizer = Learned([p], moved("attention"), num_steps=9, guard=guard)
    train(optimizer, p, 1)
    with pytest.warns(UserWarning, match="broke the guard"):
        optimizer.step(loss=float("nan"))
    start = p.detach().clone()
    train(optimizer, p, 2)  # AdamW's
    assert counts == {"before": 4, "after": 4} and not torch.equal(p, start)


def test_a_hook_of_sam_can_replace_the_closure() -> None:
    p, calls = parameter(), list[int]()
    optimizer = SAM(torch.optim.SGD([p], lr=0.1))

    def replace(_: Any, args: Any, kwargs: Any) -> Any:
        sam, closure = args
        return (sam, lambda: (calls.append(1), closure())[1]), kwargs

    optimizer.register_step_pre_hook(replace)
    train(optimizer, p, 1)
    assert len(calls) == 2


@each
def test_hooks_see_the_whole_state(make: Make, entries: set[str]) -> None:
    p, seen = parameter(), list[Any]()
    optimizer = make([p])
    train(optimizer, p, 2)
    # Those in front of others too.
    optimizer.register_state_dict_post_hook(lambda _, state: seen.append(set(state)), prepend=True)
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    state = optimizer.state_dict()
    assert seen == [entries | {"param_groups", "state"}]
    assert set(state) == seen[0] | {"note"}


@each
def test_a_hook_may_store_a_copy_and_adapt_it_back(make: Make, entries: set[str]) -> None:
    p, kept = parameter(), list[dict[str, Any]]()
    optimizer = make([p])
    train(optimizer, p, 2)
    optimizer.register_state_dict_post_hook(lambda _, state: kept.append(copy.deepcopy(state)))
    wrapped = {"mine": optimizer.state_dict(), "param_groups": [], "state": {}}
    q = parameter()
    with torch.no_grad():
        q.copy_(p)
    done = list[bool]()
    other = make([q])
    other.register_load_state_dict_pre_hook(lambda _, state: kept[0] if "mine" in state else None)
    other.register_load_state_dict_post_hook(lambda o: done.append(len(o.state) == 1))
    other.load_state_dict(wrapped)
    train(optimizer, p, 2)
    train(other, q, 2)
    assert torch.equal(p, q) and done == [True]
