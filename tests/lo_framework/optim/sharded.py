"""What each of several processes does in the tests of sharded parameters, and the models, batches
and optimizers that it shares with the one process that they are compared with.
"""

from __future__ import annotations

import copy
import gc
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    S2SAM,
    SAM,
    GuardConfig,
    Learned,
    MetaAdamW,
    MetaOptimize,
    NetworkConfig,
)
from tests.lo_framework.optim import tools

STEPS, HALF, ROWS = 20, 10, 8
DOUBLE = torch.float64
Result = dict[str, Any]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Rows that two processes cannot share evenly (13, 17), and one row, of which one has none."""
    torch.manual_seed(0)
    layers = (nn.Embedding(13, 12), nn.Flatten(), nn.Linear(36, 17), nn.LayerNorm(17), nn.ReLU())
    more = (nn.Linear(17, 16), nn.Tanh(), nn.Linear(16, 1))
    return nn.Sequential(*layers, *more).to(dtype)


def make(spec: str, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer off its start; ``spec`` is a kind, or a class with an option."""
    name, _, option = spec.partition("|")
    if name == "metaadamw":
        return MetaAdamW(model, lr=1e-2, network=NetworkConfig(head_scale=1.0))
    if name == "metaoptimize":
        chosen = {"blocks": option} if option else {}
        return MetaOptimize(model.named_parameters(), alpha0=1e-3, meta_lr=1e-2, **chosen)
    if name in (kinds := {"sam": SAM, "fsam": FSAM, "s2sam": S2SAM}):
        return kinds[name](torch.optim.AdamW(model.parameters(), lr=1e-2), model=model)
    options: dict[str, Any] = {"guard": option == "guard"}
    if option == "decay":
        options |= {"weight_decay": 0.1, "lr": 0.5}
    if name == "general":
        return Learned(model, "general", num_steps=50, **options)
    dtype = next(model.parameters()).dtype
    return Learned(model, tools.moved(name, dtype=dtype), num_steps=50, **options)


def train(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    steps: Sequence[int],
    rank: int = 0,
    world: int = 1,
) -> None:
    """Steps on this process's part of each batch."""
    dtype, part = next(model.parameters()).dtype, slice(rank, None, world)
    for t in steps:
        g = tools.generator(100 + t)
        x = torch.randint(13, (ROWS, 3), generator=g)[part]
        y = torch.randn(ROWS, 1, generator=g).to(dtype)[part]

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def fully_sharded(dtype: torch.dtype) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = network(dtype)
    for layer in model.children():
        if [*layer.parameters()]:
            fully_shard(layer)
    return fully_shard(model)  # type: ignore[no-any-return]


def whole(model: nn.Module) -> list[Tensor]:
    return [
        p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach().clone()
        for p in model.parameters()
    ]


def distance(one: Iterable[Tensor], two: Iterable[Tensor]) -> float:
    """The greatest distance of two tensors relative to their size."""
    pairs = [(x.detach().double(), y.detach().double()) for x, y in zip(one, two, strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def work(
    rank: int, folder: str, job: str, cases: Sequence[tuple[str, torch.dtype]], world: int
) -> None:
    """Do ``job`` (a function of this module) for each case and write what comes of it."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    try:
        run: Callable[..., Result] = globals()[job]
        found = {case: run(*case, rank, Path(folder)) for case in cases}
        if rank == 0:
            torch.save(found, Path(folder) / "found.pt")
    finally:
        gc.collect()  # sharded modules are cycles, and hold the groups
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the groups, which aborts an ordinary end


def spawned(
    job: str, cases: Sequence[tuple[str, torch.dtype]], folder: Path, world: int = 2
) -> dict[Any, Result]:
    """What ``job`` gives for each case in so many processes."""
    torch.multiprocessing.spawn(work, (str(folder), job, list(cases), world), nprocs=world)
    return torch.load(folder / "found.pt", weights_only=True)  # type: ignore[no-any-return]


@contextmanager
def counted() -> Iterator[list[int]]:
    """Numbers that are summed over processes by each call in the block."""
    calls, usual = list[int](), dist.all_reduce

    def all_reduce(x: Tensor, *args: Any, **options: Any) -> Any:
        calls.append(x.numel())
        return usual(x, *args, **options)

    dist.all_reduce = all_reduce
    try:
        yield calls
    finally:
        dist.all_reduce = usual


def trained(spec: str, dtype: torch.dtype, rank: int, folder: Path) -> Result:
    """Weights after some steps, and what was summed over processes in the last one."""
    model = fully_sharded(dtype)
    optimizer = make(spec, model)
    train(optimizer, model, range(STEPS - 1), rank, 2)
    with counted() as calls:
        train(optimizer, model, [STEPS - 1], rank, 2)
    for p in model.parameters():
        for name, x in optimizer.state[p].items():
            if isinstance(x, Tensor) and x.shape == p.shape and p.dim() > 1:
                assert type(x) is type(p) and x.placements == p.placements, name
    return {"weights": whole(model), "calls": calls}


def resumed(spec: str, dtype: torch.dtype, rank: int, folder: Path) -> Result:
    """Weights of a run, and of one that was saved in the middle and went on in new objects."""
    model = fully_sharded(dtype)
    optimizer = make(spec, model)
    train(optimizer, model, range(HALF), rank, 2)
    path = folder / spec.replace("|", "-")
    held = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(held, checkpoint_id=path)
    train(optimizer, model, range(HALF, STEPS), rank, 2)
    found = {"weights": whole(model)}
    again = fully_sharded(dtype)
    other = make(spec, again)
    load(again, other, path)
    # in between as whole tensors on every process, which is another way to keep it
    options = StateDictOptions(full_state_dict=True)
    gathered = copy.deepcopy(get_optimizer_state_dict(again, other, options=options))
    train(other, again, range(HALF, STEPS), rank, 2)
    found["resumed"] = whole(again)
    load(again, other, path)
    again.zero_grad()  # or torch makes no state
    other = make(spec, again)
    set_optimizer_state_dict(again, other, gathered, options=options)
    train(other, again, range(HALF, STEPS), rank, 2)
    return {**found, "from whole": whole(again)}


def load(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    held = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.load(held, checkpoint_id=path)
    set_model_state_dict(model, held["model"])
    set_optimizer_state_dict(model, optimizer, held["optimizer"])


def placed(spec: str, dtype: torch.dtype, rank: int, folder: Path) -> Result:
    """Parameters sharded on their last dimension, copied, or no DTensors at all, in turn."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    params = list[nn.Parameter]()
    for i, p in enumerate(tools.parameters(dtype=dtype)):
        placement = Shard(p.dim() - 1) if p.dim() and i % 3 else Replicate()
        plain = tools.parameters(dtype=dtype)[i]
        params.append(plain if i == 2 else nn.Parameter(distribute_tensor(p, mesh, [placement])))
    optimizer = make(spec, Named(params))
    for t in range(STEPS):
        grads = tools.parameters(dtype=dtype)
        tools.give_grads(grads, t)
        for i, (p, g) in enumerate(zip(params, grads)):
            on = [Replicate()] if i == 4 else getattr(p, "placements", None)
            p.grad = g.grad if on is None else distribute_tensor(g.grad, mesh, on)
        optimizer.step()
    return {"weights": whole(Named(params))}


def two_dimensions(spec: str, dtype: torch.dtype, rank: int, folder: Path) -> Result:
    """FSDP2 over tensor parallelism, and over copies."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh, parallel as by

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found = {}
    for way in ("tensor", "copies"):
        model, on, part, parts = network(dtype), mesh, rank, 4
        if way == "tensor":
            plan = {"5": by.ColwiseParallel(), "7": by.RowwiseParallel()}
            by.parallelize_module(model, mesh["tensor"], plan)
            on, part, parts = mesh["data"], rank // 2, 2
        for layer in model.children():
            if [*layer.parameters()]:
                fully_shard(layer, mesh=on)
        fully_shard(model, mesh=on)
        optimizer = make(spec, model)
        train(optimizer, model, range(STEPS), part, parts)
        found[way] = whole(model)
    return found


def guarded(spec: str, dtype: torch.dtype, rank: int, folder: Path) -> Result:
    """A loss that is infinite on one process, of which all of them take notice; and what FSAM
    says of what it cannot keep.
    """
    model = fully_sharded(dtype)
    config = GuardConfig(steps=3, every=2, rise=1e9, jump=1e9, factor=1e9)  # infinite alone
    optimizer = Learned(model, "general", num_steps=50, guard=config)
    for t in range(STEPS):
        optimizer.zero_grad()
        rows = torch.randint(13, (ROWS, 3), generator=tools.generator(t))
        loss = model(rows).square().mean()
        loss.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the guard's
            optimizer.step(loss=math.inf if t == HALF and rank == 0 else loss.detach())
    assert optimizer.guard_activations == 1, (rank, optimizer.guard_activations)
    other = make("fsam", model)
    train(other, model, range(2), rank, 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        set_optimizer_state_dict(model, other, get_optimizer_state_dict(model, other))
    train(other, model, range(2), rank, 2)
    return {"weights": whole(model), "said": [str(each.message) for each in said]}


def replicated(spec: str, dtype: torch.dtype, rank: int, folder: Path) -> Result:
    """Copies under DistributedDataParallel, where one process tells a loss that has exploded."""
    model = nn.parallel.DistributedDataParallel(network(dtype))
    optimizer = Learned(model, "general", num_steps=50, lr=0.1, guard=GuardConfig(warmup=3))
    for t in range(STEPS):
        optimizer.zero_grad()
        rows = torch.randint(13, (ROWS, 3), generator=tools.generator(t + rank))
        loss = model(rows).square().mean()
        loss.backward()
        optimizer.step(loss=1e6 if t >= HALF and rank == 0 else loss.detach())
    mine = nn.utils.parameters_to_vector(model.parameters()).detach()
    first = mine.clone()
    dist.broadcast(first, 0)
    assert torch.equal(mine, first), rank
    return {"activations": optimizer.guard_activations}


class Named(nn.Module):
    """Parameters by the names of `tools.SHAPES`."""

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        super().__init__()
        for name, p in zip(tools.SHAPES, params, strict=True):
            self.register_parameter(name.replace(".", "_"), p)


def refused(spec: str, dtype: torch.dtype, rank: int, folder: Path) -> Result:
    """The lines that refuse what cannot be."""
    lines = list[str]()

    def line(call: Callable[[], Any]) -> None:
        try:
            call()
        except UserError as error:
            lines.append(str(error))

    model = fully_sharded(dtype)
    pairs = [*model.named_parameters()]
    line(lambda: MetaOptimize(pairs, blocks="node"))
    line(lambda: MetaOptimize(pairs, trace="l"))
    optimizer = make("metaadamw", model)
    train(optimizer, model, range(1), rank, 2)
    line(lambda: optimizer.meta_step(lambda _: None, None, None))  # type: ignore[attr-defined]
    plain = network(dtype)
    line(lambda: make("metaadamw", plain).load_state_dict(optimizer.state_dict()))
    return {"lines": lines}
