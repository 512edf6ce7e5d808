"""Optimizers beside ``torch.compile``: a compiled step has the bits of a plain one, and wrappers
change no role, order or name of a model's tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lo_framework.learned import make_learned
from lo_framework.optim import GAM, SAM, Learned, MetaAdamW, MetaOptimize
from lo_framework.optim.naming import plain_names
from tests.lo_framework.optim.tools import flat, generator

Make = Callable[[nn.Module], torch.optim.Optimizer]
STEPS = 12  # more than `host.WARM`, after which a plan's conditioning is recorded

PLAIN: dict[str, Make] = {
    "learned": lambda model: Learned(model, "general"),
    "hyper-adamw": lambda model: Learned(model, make_learned("hyper-adamw"), num_steps=20),
    "metaadamw": lambda model: MetaAdamW(model, lr=0.01),
    "metaoptimize": lambda model: MetaOptimize(model.parameters(), alpha0=1e-3),
}
BY_CLOSURE: dict[str, Make] = {
    "sam": lambda model: SAM(torch.optim.AdamW(model.parameters()), model=model),
    "gam": lambda model: GAM(torch.optim.AdamW(model.parameters()), model=model),
    "sam of learned": lambda model: SAM(Learned(model, "general"), model=model),
}


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Embedding(9, 6), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.LayerNorm(8)
    ).append(nn.Linear(8, 3))
    g = generator(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return model


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    x = torch.randint(9, (16, 2), generator=generator(1))
    y = torch.randint(3, (16,), generator=generator(2))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def trained(make: Make, compiled: bool, by_closure: bool) -> Tensor:
    torch._dynamo.reset()
    model = network()
    optimizer = make(model)
    closure = closure_of(model, optimizer)

    def step() -> None:
        if by_closure:
            optimizer.step(closure)
        else:
            optimizer.step()

    # As in PyTorch's recipe for compiled optimizers.
    go = torch.compile(step, fullgraph=False, backend="eager") if compiled else step
    for _ in range(STEPS):
        if not by_closure:
            closure()
        go()
    return flat(list(model.parameters()))


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("name", [*PLAIN, *BY_CLOSURE])
def test_a_compiled_step_has_the_bits_of_a_plain_one(name: str) -> None:
    by_closure = name in BY_CLOSURE
    make = (BY_CLOSURE if by_closure else PLAIN)[name]
    assert torch.equal(trained(make, True, by_closure), trained(make, False, by_closure))


@pytest.mark.filterwarnings("ignore")
def test_a_closure_runs_the_compiled_model() -> None:
    """What a step calls may be compiled, though the step is not."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = network()
    optimizer = Learned(model, "general")
    closure = closure_of(torch.compile(model, backend=backend), optimizer)  # type: ignore[arg-type]
    optimizer.step(closure)
    assert len(graphs) == 1


class Attending(nn.Module):
    """Roles that only the types of modules tell, and names that only names tell."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 20, bias=False)


def wholly(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def in_part(model: nn.Module) -> nn.Module:
    layers: Any = model.layers
    layers[1] = torch.compile(layers[1], backend="eager")
    return model


def in_place(model: nn.Module) -> nn.Module:
    model.layers[1].compile(backend="eager")  # type: ignore[operator,index]
    return model


WRAPPED = {
    "compiled": wholly,
    "part": in_part,
    "in place": in_place,
    "parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(wholly(model)),
}


def layout_of(given: Any, model: nn.Module | None = None) -> list[Any]:
    return list(Learned(given, "general", model=model)._layout.slots)


def decayed(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups of named parameters, as recipes with weight decay have them."""
    named = list(model.named_parameters())
    parts = [[x for x in named if x[1].dim() >= 2], [x for x in named if x[1].dim() < 2]]
    return [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1]}]


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_change_no_role_order_or_name(how: str) -> None:
    plain = Attending()
    wrapped = WRAPPED[how](Attending())
    for given in (
        lambda model: (model, None),
        lambda model: (list(model.named_parameters()), None),
        lambda model: (decayed(model), None),
        lambda model: (decayed(model), model),
    ):
        assert layout_of(*given(wrapped)) == layout_of(*given(plain))
    assert layout_of(list(plain.named_parameters()))[0].role == "embedding"


def test_distributed_wrapper_too(tmp_path: Any) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(Attending(), find_unused_parameters=True)
        named = list(wrapped.named_parameters())
        assert all(name.startswith("module.") for name, _ in named)
        assert layout_of(named) == layout_of(list(Attending().named_parameters()))
        assert layout_of(wrapped) == layout_of(Attending())
    finally:
        torch.distributed.destroy_process_group()


def test_a_state_goes_from_a_plain_model_to_a_compiled_one() -> None:
    plain, model = network(), network()
    first = Learned(plain, "general")
    closure_of(plain, first)()
    first.step()
    second = Learned(wholly(model), "general")
    second.load_state_dict(first.state_dict())
    model.load_state_dict(plain.state_dict())
    for net, optimizer in ((plain, first), (model, second)):
        closure_of(net, optimizer)()
        optimizer.step()
    assert torch.equal(flat(list(plain.parameters())), flat(list(model.parameters())))


def test_names_without_wrappers() -> None:
    given = ["module._orig_mod.a.weight", "module._orig_mod.b._orig_mod.weight"]
    assert plain_names(given) == ["a.weight", "b.weight"]
    assert plain_names(["module.a", "b"]) == ["module.a", "b"]  # not in front of all
    assert plain_names(["a._orig_mod.w", "a.w"]) == ["a._orig_mod.w", "a.w"]  # two, not one
    assert plain_names(["_orig_mod"]) == ["_orig_mod"] and plain_names([]) == []
