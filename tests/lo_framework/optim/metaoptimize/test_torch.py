"""MetaOptimize keeps what torch promises of an optimizer: groups, absent gradients, scalers,
schedulers, wrappers.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from lo_framework.optim import SAM
from tests.lo_framework.optim.metaoptimize import tools
from tests.lo_framework.optim.metaoptimize.reference import D

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "metaoptimize.md"


def test_low_precision_parameters_have_float32_state() -> None:
    tools.check_resume(torch.bfloat16, base="adamw", meta="adam", blocks="tensor")
    low, high = tools.parameters(dtype=torch.bfloat16), tools.parameters(dtype=torch.bfloat16)
    high = [nn.Parameter(p.detach().float()) for p in high]
    one, two = tools.make(low, "adamw", "adam"), tools.make(high, "adamw", "adam")
    for optimizer, params in ((one, low), (two, high)):
        for p, like in zip(params, tools.parameters(9, dtype=torch.bfloat16)):
            p.grad = like.detach().to(p.dtype)
        optimizer.step()
    assert {x.dtype for state in one.state.values() for x in state.values()} == {torch.float32}
    assert torch.equal(tools.flat(low), tools.flat(high).bfloat16())
    assert torch.equal(tools.held(one, low), tools.held(two, high))
    loaded = tools.make(low, "adamw", "adam")
    loaded.load_state_dict(one.state_dict())
    assert torch.equal(tools.held(loaded, low), tools.held(one, low))


@pytest.mark.parametrize("blocks", ["scalar", "tensor", "node", "weight"])
@pytest.mark.parametrize("meta", ["lion", "adam"])
def test_parameters_without_gradient_take_no_part(meta: str, blocks: str) -> None:
    """Wherever they are, the others move as if these were not there, and they stand still."""
    params, fewer = tools.parameters(), tools.parameters()
    there = [p for i, p in enumerate(fewer) if i not in (1, 2)]
    one, two = (
        tools.make(params, "adamw", meta, blocks=blocks),
        tools.make(there, "adamw", meta, blocks=blocks),
    )
    before = tools.flat(params[1:3])
    for t in range(6):
        tools.give_grads(params, t, skip=[1, 2])
        tools.give_grads(fewer, t)
        one.step()
        two.step()
    torch.testing.assert_close(
        tools.flat([params[0], params[3]]), tools.flat(there), rtol=0, atol=1e-13
    )
    assert torch.equal(tools.flat(params[1:3]), before)
    mine, theirs = list(one.step_sizes().values()), list(two.step_sizes().values())
    if blocks != "scalar":
        assert all((x == x.new_tensor(0.02).log().exp()).all() for x in mine[1:3])
        mine = [mine[0], mine[3]]
    for x, y in zip(mine, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-13)


def test_a_parameter_that_comes_and_goes_keeps_its_state() -> None:
    params = tools.parameters()
    optimizer = tools.make(params, "adamw", "lion", blocks="tensor")
    tools.run(optimizer, params, range(3))
    state, size = copy.deepcopy(dict(optimizer.state[params[1]])), optimizer.step_sizes()["1"]
    for t in range(3, 6):
        tools.give_grads(params, t, skip=[1])
        optimizer.step()
    assert all(torch.equal(optimizer.state[params[1]][name], x) for name, x in state.items())
    assert optimizer.step_sizes()["1"] == size and optimizer.step_sizes()["0"] != size
    tools.run(optimizer, params, range(6, 8))
    steps = [state["step"] for state in optimizer.state_dict()["state"].values()]
    assert steps == [8, 5, 8, 8]


@pytest.mark.parametrize("blocks", ["scalar", "group", "tensor", "weight", tools.NAMED], ids=str)
def test_added_groups(blocks: Any) -> None:
    """Old parameters keep state and step size; new ones start; the whole resumes."""
    params = tools.parameters()
    pairs = tools.named(params)
    blocks = {"head": "body.weight", "rest": None} if blocks is tools.NAMED else blocks
    optimizer = tools.make(pairs[:2], "adamw", "lion", blocks=blocks)
    for t in range(3):
        tools.give_grads(params, t)
        optimizer.step()
    before, sizes = tools.held(optimizer, params[:2]), tools.beta_of(optimizer)
    optimizer.add_param_group({"params": pairs[2:], "weight_decay": 0.0, "lr": 0.5})
    after = tools.beta_of(optimizer)
    assert torch.equal(tools.held(optimizer, params[:2]), before) and torch.equal(
        after[: len(sizes)], sizes
    )
    torch.testing.assert_close(
        after[len(sizes) :].exp(), torch.full_like(after[len(sizes) :], 0.02)
    )
    still = tools.flat(params[2:])
    tools.run(optimizer, params, range(3, 5))
    assert (tools.flat(params[2:]) != still).all() and len(optimizer.step_sizes()) >= 1
    other = tools.make(
        [{"params": pairs[:2]}, {"params": pairs[2:]}], "adamw", "lion", blocks=blocks
    )
    other.load_state_dict(tools.through_a_file(optimizer.state_dict()))
    assert tools.same_state(optimizer, other)


@pytest.mark.parametrize("products", ["joint", "per-block"])
def test_added_groups_of_an_exact_trace(products: str) -> None:
    params = tools.parameters()
    optimizer = tools.make(
        params[:2], "sgdm", "adam", blocks="tensor", trace="2x2", products=products
    )
    tools.run(optimizer, params[:2], range(2))
    before = tools.held(optimizer, params[:2])
    optimizer.add_param_group({"params": params[2:]})
    found = tools.held(optimizer, params[:2])
    assert torch.equal(found[: len(before)], before) and not found[len(before) :].any()
    tools.run(optimizer, params, range(2, 5))
    assert tools.held(optimizer, params).shape[0] == (4 if products == "per-block" else 1)
    assert tools.held(optimizer, params).abs().sum(1).gt(0).all()


def test_grad_scaler() -> None:
    """It changes nothing but steps that overflow, which leave weights, state and step sizes as they
    were.
    """
    params, plain = (tools.parameters(dtype=torch.float32) for _ in range(2))
    optimizer, reference = tools.make(params, "adamw", "adam"), tools.make(plain, "adamw", "adam")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)

    def scaled(t: int, factor: float = 1.0) -> None:
        optimizer.zero_grad()
        scaler.scale(tools.loss_of(params, t) * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    for t in range(3):
        scaled(t)
    weights, state = tools.flat(params), tools.snapshot(optimizer)
    scaled(7, factor=torch.inf)
    assert scaler.get_scale() == 512 and torch.equal(tools.flat(params), weights)
    assert tools.snapshot(optimizer) == state and optimizer.diagnostics()["skipped"] == 0
    for t in range(3, 6):
        scaled(t)
    for t in range(6):
        reference.zero_grad()
        tools.loss_of(plain, t).backward()
        reference.step()
    torch.testing.assert_close(tools.flat(params), tools.flat(plain), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        tools.beta_of(optimizer), tools.beta_of(reference), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda o: CosineAnnealingLR(o, 6),
        lambda o: OneCycleLR(o, 0.3, total_steps=6, cycle_momentum=True),
    ],
)
def test_schedulers_act_on_the_multiplier(make: Any) -> None:
    params = tools.parameters()
    optimizer = tools.make(params, "adamw", "lion")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler, seen = make(optimizer), []
        for t in range(5):
            tools.run(optimizer, params, [t])
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
    assert len(set(seen)) == 5


def test_wrapped_by_explicit_sam_and_under_closures() -> None:
    params, others = tools.parameters(), tools.parameters()
    optimizer, plain = tools.make(params, "sgdm", "adam"), tools.make(others, "sgdm", "adam")

    def closure() -> Tensor:
        plain.zero_grad()
        loss = tools.loss_of(others, 0)
        loss.backward()
        return loss

    assert float(plain.step(closure).detach()) == float(tools.loss_of(params, 0).detach())
    wrapped = SAM(optimizer)

    def passes() -> Tensor:
        wrapped.zero_grad()
        loss = tools.loss_of(params, 0)
        loss.backward()
        return loss

    for _ in range(3):
        wrapped.step(passes)
    assert tools.beta_of(optimizer).item() != torch.tensor(0.02, dtype=D).log().item()


def test_under_autocast() -> None:
    params, others = (tools.parameters(dtype=torch.float32) for _ in range(2))
    one, two = (
        tools.make(params, "adamw", "adam", blocks="tensor"),
        tools.make(others, "adamw", "adam", blocks="tensor"),
    )
    tools.run(one, params, range(3))
    with torch.autocast("cpu"):
        tools.run(two, others, range(3))
    assert torch.equal(tools.flat(params), tools.flat(others))


def _beside_a_twin() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    twin = copy.deepcopy(model)
    parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizers = [
        tools.make(m.parameters(), "adamw", "lion", blocks="tensor") for m in (parallel, twin)
    ]
    for t in range(4):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(t))
        for net, optimizer in zip((parallel, twin), optimizers):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(tools.flat(list(model.parameters())), tools.flat(list(twin.parameters())))


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Gradients that are views of reduction buckets; one process, which has nothing to wait for."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        # In a function of its own: a wrapper that outlives its group can wait for ever at its end.
        _beside_a_twin()
    finally:
        torch.distributed.destroy_process_group()


def test_code_in_the_document_runs() -> None:
    blocks = [part.split("```")[0] for part in DOCUMENT.read_text().split("```python\n")[1:]]
    assert blocks
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    names: dict[str, Any] = {
        "x": x,
        "y": y,
        "loader": [(x, y)] * 4,
        "loss_fn": nn.functional.cross_entropy,
    }
    names["model"] = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    for block in blocks:
        before = tools.flat(list(names["model"].parameters()))
        exec(compile(block, str(DOCUMENT), "exec"), names)
        assert not torch.equal(tools.flat(list(names["model"].parameters())), before)
