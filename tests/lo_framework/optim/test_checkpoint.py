"""States through ``torch.distributed.checkpoint``, in one process; what a refused state leaves; and
ZeroRedundancyOptimizer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from lo_framework.errors import UserError
from lo_framework.optim import (
    FSAM,
    SAM,
    GuardConfig,
    Learned,
    LookSAM,
    MetaAdamW,
    MetaOptimize,
    NetworkConfig,
)
from lo_framework.optim.checkpoint import pack_entry, take_entry
from tests.lo_framework.optim import tools

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:.torch.jit.(script|interface). is"
)
Make = Callable[[nn.Module], torch.optim.Optimizer]

MAKERS: dict[str, Make] = {
    "general": lambda m: Learned(m, "general", num_steps=40),
    "hyper-adamw": lambda m: Learned(m, tools.moved("hyper-adamw"), num_steps=40),
    "lstm": lambda m: Learned(m, tools.moved("lstm"), num_steps=40),
    "guard": lambda m: Learned(m, "general", num_steps=40, guard=True),
    "metaadamw": lambda m: MetaAdamW(m, lr=1e-2, network=NetworkConfig(head_scale=1.0)),
    "metaoptimize": lambda m: MetaOptimize(m.parameters(), alpha0=1e-3, meta_lr=1e-2),
    "nodes": lambda m: MetaOptimize(m.parameters(), 1e-3, 1e-2, blocks="node"),
    "trace": lambda m: MetaOptimize(m.parameters(), 1e-3, 1e-2, trace="l"),
    "sam": lambda m: SAM(torch.optim.AdamW(m.parameters(), lr=1e-2), model=m),
    "sgd": lambda m: SAM(torch.optim.SGD(m.parameters(), lr=1e-2), model=m),
    "fsam": lambda m: FSAM(torch.optim.AdamW(m.parameters(), lr=1e-2), model=m),
    "looksam": lambda m: LookSAM(torch.optim.AdamW(m.parameters(), lr=1e-2), model=m),
    "around": lambda m: SAM(Learned(m, "general", num_steps=40), model=m),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh())


def batch(t: int) -> tuple[Tensor, Tensor]:
    g = tools.generator(t)
    return torch.randn(6, 4, generator=g), torch.randn(6, 8, generator=g)


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: range) -> None:
    def loss_of(data: tuple[Tensor, Tensor]) -> Tensor:
        return ((model(data[0]) - data[1]) ** 2).mean()

    for t in steps:

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(batch(t))
            if getattr(optimizer, "_exact", None) is None:
                loss.backward()
            return loss

        optimizer.step(closure)
        if isinstance(optimizer, MetaAdamW) and t % 3 == 2:
            optimizer.meta_step(loss_of, *(batch(50 + t + k) for k in range(3)))


def get(model: nn.Module, optimizer: torch.optim.Optimizer, options: Any = None) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def put(
    model: nn.Module, optimizer: torch.optim.Optimizer, held: dict[str, Any], options: Any = None
) -> None:
    set_model_state_dict(model, held["model"])
    set_optimizer_state_dict(model, optimizer, held["optimizer"], options=options)


def weights(model: nn.Module) -> Tensor:
    return tools.flat(list(model.parameters()))


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_run_has_the_same_bits(name: str, flat: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = network()
    optimizer = MAKERS[name](model)
    train(optimizer, model, range(7))
    dcp.save(get(model, optimizer, options), checkpoint_id=tmp_path)
    train(optimizer, model, range(7, 14))
    again = network()
    other = MAKERS[name](again)
    held = get(again, other, options)
    assert torch.equal(weights(again), weights(network())), "torch's step moved something"
    dcp.load(held, checkpoint_id=tmp_path)
    put(again, other, held, options)
    train(other, again, range(7, 14))
    assert torch.equal(weights(again), weights(model))


@pytest.mark.filterwarnings("ignore:Learned")
@pytest.mark.parametrize("steps", [2, 5, 7])
def test_a_run_is_saved_and_goes_on_while_adamw_is_in_charge(steps: int, tmp_path: Path) -> None:
    """The loss of step 1 is not finite; AdamW makes five steps; then there is one more."""

    def start() -> tuple[nn.Module, Learned]:
        model = network()
        return model, Learned(model, "general", num_steps=40, guard=GuardConfig(steps=5))

    model, optimizer = start()
    for t in range(steps):
        train(optimizer, model, range(t, t + 1))
        if t == 0:
            optimizer.step(loss=math.nan)
    assert optimizer.guard_activations == 1
    dcp.save({"m": get_model_state_dict(model), "o": get(model, optimizer)}, checkpoint_id=tmp_path)
    other, its = start()
    state = {"m": get_model_state_dict(other), "o": get(other, its)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(other, state["m"])
    put(other, its, state["o"])
    assert its.guard_activations == 1 and torch.equal(weights(other), weights(model))
    train(its, other, range(steps, steps + 8))
    assert torch.isfinite(weights(other)).all() and its._updates == steps + 8


@pytest.mark.parametrize("name", MAKERS)
def test_saving_before_the_first_step_changes_nothing(name: str) -> None:
    """Though torch makes a step of zero gradients and rates for it."""
    model, twin = network(), network()
    optimizer, other = MAKERS[name](model), MAKERS[name](twin)
    held = copy.deepcopy(get(model, optimizer))
    train(optimizer, model, range(4))
    train(other, twin, range(4))
    assert torch.equal(weights(model), weights(twin))
    if name != "sam" and not name.endswith("sam"):  # a base of torch has counted its step
        last = network()
        put(last, resumed := MAKERS[name](last), held)
        train(resumed, last, range(4))
        assert torch.equal(weights(model), weights(last))


@pytest.mark.parametrize("name", ["general", "metaadamw", "metaoptimize", "sam"])
def test_through_a_wrapper_for_data_parallelism(name: str, tmp_path: Path) -> None:
    def resume() -> tuple[Tensor, Tensor]:
        model = nn.parallel.DistributedDataParallel(network())
        optimizer = MAKERS[name](model)
        train(optimizer, model, range(4))
        held = copy.deepcopy(get(model, optimizer))
        train(optimizer, model, range(4, 8))
        again = nn.parallel.DistributedDataParallel(network())
        other = MAKERS[name](again)
        put(again, other, held)
        train(other, again, range(4, 8))
        return weights(model), weights(again)

    with one_process(tmp_path):
        one, two = resume()  # in a function of its own: no wrapper may outlive the group
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["general", "metaadamw", "metaoptimize", "fsam"])
def test_a_state_of_before_still_loads(name: str) -> None:
    """Without what now also stands in the first parameter group."""
    model, twin = network(), network()
    optimizer, other = MAKERS[name](model), MAKERS[name](twin)
    train(optimizer, model, range(4))
    state = copy.deepcopy(optimizer.state_dict())
    key = "regularizer" if name == "fsam" else other.entry  # type: ignore[attr-defined]
    assert isinstance(state["param_groups"][0].pop(key), bytes)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    assert key not in other.param_groups[0]
    train(optimizer, model, range(4, 8))
    train(other, twin, range(4, 8))
    assert torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ("metaadamw", "another optimizer class"),
        ("hyper-adamw", "another learned optimizer"),
        ("damaged", "damaged"),
        ("torch", "another optimizer class"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_changed(
    saved: str, words: str
) -> None:
    model, source = network(), network()
    optimizer = MAKERS["general"](model)
    train(optimizer, model, range(3))
    from_torch = torch.optim.AdamW(source.parameters())
    given = {"damaged": "general"}.get(saved, saved)
    other = from_torch if saved == "torch" else MAKERS[given](source)
    train(other, source, range(3))
    held = get_optimizer_state_dict(source, other)
    if saved == "damaged":
        raw = held["param_groups"][0]["learned"]  # type: ignore[index]
        held["param_groups"][0]["learned"] = raw[:-9] + b"x" + raw[-8:]  # type: ignore[index]
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UserError, match=words) as caught:
        set_optimizer_state_dict(model, optimizer, held)
    assert "\n" not in str(caught.value)
    for i, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(x, before["state"][i][name]) for name, x in state.items())
    assert optimizer._updates == 3  # type: ignore[attr-defined]


def test_an_entry_as_bytes() -> None:
    entry = {
        "kind": {"a": [1, (2.5, None)], 3: "x"},
        "inf": float("inf"),
        "tensors": [torch.arange(3), torch.tensor(1.5, dtype=torch.float64)],
    }
    groups = [{"own": pack_entry(entry), "lr": 1.0}, {"lr": 2.0}]
    found = take_entry("own", {}, groups, "Learned")
    assert groups == [{"lr": 1.0}, {"lr": 2.0}]
    assert found["kind"] == entry["kind"] and found["inf"] == entry["inf"]
    for x, y in zip(found["tensors"], entry["tensors"], strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected bytes"):
        take_entry("own", {}, [{"own": 3}], "Learned")


def test_a_parameter_in_two_groups_is_refused() -> None:
    model = network()
    groups = [{"params": [*model.parameters()]}, {"params": [model[0].weight]}]
    with pytest.raises(UserError, match="twice: each parameter belongs in one group"):
        Learned(groups, "general", num_steps=10)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Learned, {"optimizer": "general", "num_steps": 9}),
        (MetaAdamW, {"lr": 1e-3}),
        (MetaOptimize, {"alpha0": 1e-4}),
    ],
)
def test_zero_redundancy_optimizer_is_refused(
    kind: type[torch.optim.Optimizer], options: dict[str, Any], tmp_path: Path
) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network()
    with one_process(tmp_path):
        with pytest.raises(UserError, match="use fully_shard") as caught:
            ZeroRedundancyOptimizer(model.parameters(), kind, **options)
        assert kind.__name__ in str(caught.value) and "\n" not in str(caught.value)
        ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW)
    kind(model.parameters(), **options)
