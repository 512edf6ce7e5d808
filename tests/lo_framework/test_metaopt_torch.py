"""MetaOptimize keeps what torch promises of an optimizer: state, groups, absent gradients, scalers, schedulers."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode

from lo_framework.optim import SAM, MetaOptimize, meta_optimize
from lo_framework.optim.metaopt.hessian_free import StepSizes
from optimizees.spec import UserError
from tests.lo_framework import metaopt_tools as tools
from tests.lo_framework.metaopt_reference import BASES, METAS, D, Slow

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metaoptimize.md"
NAMED = {"head": "head", "rest": None}
BLOCKS: list[Any] = ["scalar", "group", "tensor", "node", "weight", NAMED]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    pairs = tools.named(params)
    return [{"params": pairs[:2]}, {"params": pairs[2:], "weight_decay": 0.0}]


def snapshot(optimizer: MetaOptimize) -> str:
    """The whole state, to the last bit."""

    def exact(x: Any) -> Any:
        if isinstance(x, Tensor):
            return str(x.dtype), x.tolist()
        if isinstance(x, dict):
            return {key: exact(value) for key, value in x.items()}
        return [exact(value) for value in x] if isinstance(x, (list, tuple)) else x

    return repr(exact(optimizer.state_dict()))


def same_state(one: MetaOptimize, two: MetaOptimize) -> bool:
    return snapshot(one) == snapshot(two)


def check_resume(dtype: torch.dtype, **options: Any) -> None:
    whole, parted = (tools.parameters(dtype=dtype) for _ in range(2))
    one, two = tools.make(groups(whole), **options), tools.make(groups(parted), **options)
    tools.run(one, whole, range(5))
    tools.run(two, parted, range(3))
    state = through_a_file(two.state_dict())
    three = tools.make(groups(parted), **{**options, "meta_lr": 9.0, "alpha0": 0.5})
    three.load_state_dict(state)
    tools.run(three, parted, range(3, 5))
    assert torch.equal(tools.flat(whole), tools.flat(parted)) and tools.flat(whole).isfinite().all()
    assert torch.equal(tools.beta_of(one), tools.beta_of(three)) and same_state(one, three)


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("base", BASES)
def test_every_pair_runs_and_resumes_to_the_same_bits(base: str, meta: str, blocks: Any) -> None:
    check_resume(torch.float32, base=base, meta=meta, blocks=blocks, gamma=0.9, meta_every=2)


@pytest.mark.parametrize("products", ["joint", "per-block"])
@pytest.mark.parametrize("trace", ["l", "2x2"])
@pytest.mark.parametrize("base", ["sgd", "sgdm", "adamw", "lion"])
def test_exact_traces_resume_to_the_same_bits(base: str, trace: str, products: str) -> None:
    for blocks in ("scalar", "node", NAMED):
        check_resume(D, base=base, meta="adam", blocks=blocks, trace=trace, products=products)


def test_full_trace_resumes_to_the_same_bits() -> None:
    check_resume(D, base="sgd", meta="sgd", trace="full", gamma=0.9)


def test_low_precision_parameters_have_float32_state() -> None:
    check_resume(torch.bfloat16, base="adamw", meta="adam", blocks="tensor")
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
    """Whatever they are between, the others move as if these were not there, and they stand still."""
    params, fewer = tools.parameters(), tools.parameters()
    there = [p for i, p in enumerate(fewer) if i not in (1, 2)]
    one, two = tools.make(params, "adamw", meta, blocks=blocks), tools.make(there, "adamw", meta, blocks=blocks)
    before = tools.flat(params[1:3])
    for t in range(6):
        tools.give_grads(params, t, skip=[1, 2])
        tools.give_grads(fewer, t)
        one.step()
        two.step()
    torch.testing.assert_close(tools.flat([params[0], params[3]]), tools.flat(there), rtol=0, atol=1e-13)
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


@pytest.mark.parametrize("blocks", ["scalar", "group", "tensor", "weight", NAMED], ids=str)
def test_added_groups(blocks: Any) -> None:
    """Old parameters keep state and step size; new ones start; the whole resumes."""
    params = tools.parameters()
    pairs = tools.named(params)
    blocks = {"head": "body.weight", "rest": None} if blocks is NAMED else blocks
    optimizer = tools.make(pairs[:2], "adamw", "lion", blocks=blocks)
    for t in range(3):
        tools.give_grads(params, t)
        optimizer.step()
    before, sizes = tools.held(optimizer, params[:2]), tools.beta_of(optimizer)
    optimizer.add_param_group({"params": pairs[2:], "weight_decay": 0.0, "lr": 0.5})
    after = tools.beta_of(optimizer)
    assert torch.equal(tools.held(optimizer, params[:2]), before) and torch.equal(after[: len(sizes)], sizes)
    torch.testing.assert_close(after[len(sizes) :].exp(), torch.full_like(after[len(sizes) :], 0.02))
    still = tools.flat(params[2:])
    tools.run(optimizer, params, range(3, 5))
    assert (tools.flat(params[2:]) != still).all() and len(optimizer.step_sizes()) >= 1
    other = tools.make([{"params": pairs[:2]}, {"params": pairs[2:]}], "adamw", "lion", blocks=blocks)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert same_state(optimizer, other)


@pytest.mark.parametrize("products", ["joint", "per-block"])
def test_added_groups_of_an_exact_trace(products: str) -> None:
    params = tools.parameters()
    optimizer = tools.make(params[:2], "sgdm", "adam", blocks="tensor", trace="2x2", products=products)
    tools.run(optimizer, params[:2], range(2))
    before = tools.held(optimizer, params[:2])
    optimizer.add_param_group({"params": params[2:]})
    found = tools.held(optimizer, params[:2])
    assert torch.equal(found[: len(before)], before) and not found[len(before) :].any()
    tools.run(optimizer, params, range(2, 5))
    assert tools.held(optimizer, params).shape[0] == (4 if products == "per-block" else 1)
    assert tools.held(optimizer, params).abs().sum(1).gt(0).all()


def test_grad_scaler() -> None:
    """It changes nothing but steps that overflow, which leave weights, state and step sizes as they were."""
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
    weights, state = tools.flat(params), snapshot(optimizer)
    scaled(7, factor=torch.inf)
    assert scaler.get_scale() == 512 and torch.equal(tools.flat(params), weights)
    assert snapshot(optimizer) == state and optimizer.diagnostics()["skipped"] == 0
    for t in range(3, 6):
        scaled(t)
    for t in range(6):
        reference.zero_grad()
        tools.loss_of(plain, t).backward()
        reference.step()
    torch.testing.assert_close(tools.flat(params), tools.flat(plain), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tools.beta_of(optimizer), tools.beta_of(reference), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda o: CosineAnnealingLR(o, 6), lambda o: OneCycleLR(o, 0.3, total_steps=6, cycle_momentum=True)]
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


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)])
@pytest.mark.parametrize("trace", ["hessian-free", "l"])
def test_the_multiplier_multiplies_the_step_size(trace: str, lr: float | Tensor) -> None:
    params, others = tools.parameters(), tools.parameters()
    options = {"base": "adamw", "meta": "adam", "trace": trace}
    one = tools.make([{"params": params, "lr": lr}], **options)
    two = tools.make(others, **options, alpha0=0.01)
    tools.run(one, params, range(4))
    tools.run(two, others, range(4))
    torch.testing.assert_close(tools.flat(params), tools.flat(others), rtol=0, atol=1e-12)
    optimizer = tools.make([{"params": params, "lr": 0.0}], **options)
    LambdaLR(optimizer, lambda t: 1.0)
    before = tools.flat(params)
    tools.run(optimizer, params, range(2))
    assert torch.equal(tools.flat(params), before)


@pytest.mark.parametrize("blocks", ["scalar", "tensor", "node", "weight"])
def test_large_tensors_in_pieces(blocks: str) -> None:
    """Longer than a chunk, rows longer than a chunk, packs that fill up: all as the slow reference."""
    shapes = [(3, 70_000), (20_000,), (9, 8_000), (5,)]
    rows = [3, 20_000, 9, 5]
    params = tools.parameters(shapes=shapes)
    counts = {"scalar": [0] * 4, "tensor": [1] * 4, "node": rows, "weight": [p.numel() for p in params]}[blocks]
    ids, first = [], 0
    for p, num in zip(params, counts):
        ids.append(first + torch.arange(max(num, 1)).repeat_interleave(p.numel() // max(num, 1)))
        first += num
    optimizer = tools.make(params, "adamw", "adam", blocks=blocks)
    slow = Slow("adamw", "adam", tools.flat(params), torch.cat(ids), 0.02, 0.05, 1.0, 0.1)
    for t in range(3):
        tools.give_grads(params, t)
        slow.step(tools.flat([p.grad for p in params]))
        optimizer.step()
    torch.testing.assert_close(tools.flat(params), slow.w, rtol=0, atol=1e-11)
    torch.testing.assert_close(tools.beta_of(optimizer), slow.beta, rtol=0, atol=1e-9)


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_step_sizes_as_tensors_give_the_same(base: str, blocks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerators run, on the CPU: no number is looked at, and AdamW is made of single operations."""
    results = []
    for as_numbers in (True, False):
        params = tools.parameters()
        optimizer = tools.make(groups(params), base, "lion", blocks=blocks, gamma=0.9)
        if not as_numbers:
            monkeypatch.setattr("lo_framework.optim.metaopt.kernels.HAS_FUSED", False)
            monkeypatch.setattr(meta_optimize, "StepSizes", lambda beta, as_numbers: StepSizes(beta, False))
        tools.run(optimizer, params, range(4))
        results.append(torch.cat([tools.flat(params), tools.held(optimizer, params), tools.beta_of(optimizer)]))
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)


def test_any_memory_layout() -> None:
    """channels_last weights, transposed parameters and gradients, empty tensors."""
    plain = tools.parameters(shapes=[(4, 3, 2, 2), (5, 3), (0,)])
    turned = [
        nn.Parameter(plain[0].detach().clone().to(memory_format=torch.channels_last)),
        nn.Parameter(plain[1].detach().clone().T.contiguous().T), nn.Parameter(plain[2].detach().clone()),
    ]  # fmt: skip
    one, two = tools.make(plain, "adamw", "lion", blocks="node"), tools.make(turned, "adamw", "lion", blocks="node")
    for t in range(3):
        tools.give_grads(plain, t)
        for p, q in zip(plain, turned):
            q.grad = torch.empty_like(q).copy_(p.grad)
        one.step()
        two.step()
    assert torch.equal(tools.flat(plain), tools.flat(turned))
    assert not turned[0].is_contiguous() and torch.equal(tools.beta_of(one), tools.beta_of(two))


class CountLooks(TorchDispatchMode):
    """How often a number is taken out of a tensor, which waits for an accelerator."""

    looks = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.looks += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_looks_at_numbers_do_not_grow_with_the_model() -> None:
    counts = []
    for num in (2, 40):
        params = tools.parameters(shapes=[(20_000,)] * num)  # each is a pack of its own
        optimizer = tools.make(params, "adamw", "lion")
        tools.run(optimizer, params, [0])
        tools.give_grads(params, 1)
        with CountLooks() as mode:
            optimizer.step()
        counts.append(mode.looks)
    assert counts[0] == counts[1] <= 3


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


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Gradients that are views of reduction buckets; one process, which has nothing to wait for."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        twin = copy.deepcopy(model)
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizers = [tools.make(m.parameters(), "adamw", "lion", blocks="tensor") for m in (parallel, twin)]
        for t in range(4):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(t))
            for net, optimizer in zip((parallel, twin), optimizers):
                optimizer.zero_grad()
                net(x).square().sum().backward()
                optimizer.step()
        assert torch.equal(tools.flat(list(model.parameters())), tools.flat(list(twin.parameters())))
    finally:
        torch.distributed.destroy_process_group()


def test_is_saved_by_its_state_only() -> None:
    optimizer = tools.make(tools.parameters())
    for copier in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copied and saved through state_dict"):
            copier(optimizer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("blocks", ["scalar", "tensor", "node", "weight"])
@pytest.mark.parametrize("base", BASES)
def test_on_an_accelerator_nothing_waits(base: str, blocks: str) -> None:
    params = tools.parameters(dtype=torch.float32)
    there = [nn.Parameter(p.detach().cuda()) for p in params]
    one = tools.make(params, base, "lion", blocks=blocks)
    two = tools.make(there, base, "lion", blocks=blocks)
    for t in range(4):
        tools.give_grads(params, t)
        for p, q in zip(params, there):
            q.grad = p.grad.cuda()
        one.step()
        if t:
            torch.cuda.set_sync_debug_mode("error")
        try:
            two.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(tools.flat(there).cpu(), tools.flat(params), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tools.beta_of(two).cpu(), tools.beta_of(one), rtol=1e-5, atol=1e-6)


def test_code_in_the_document_runs() -> None:
    blocks = [part.split("```")[0] for part in DOCUMENT.read_text().split("```python\n")[1:]]
    assert blocks
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    names: dict[str, Any] = {"x": x, "y": y, "loader": [(x, y)] * 4, "loss_fn": nn.functional.cross_entropy}
    names["model"] = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    for block in blocks:
        before = tools.flat(list(names["model"].parameters()))
        exec(compile(block, str(DOCUMENT), "exec"), names)
        assert not torch.equal(tools.flat(list(names["model"].parameters())), before)


def rejected(optimizer: MetaOptimize, call: Any, words: str) -> None:
    """``call`` is refused in one line and leaves the optimizer as it was."""
    before = snapshot(optimizer)
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and snapshot(optimizer) == before


OTHERS = [
    ({"base": "lion"}, r'of another base \("lion", not "adamw"\)'), ({"meta": "adam"}, r'of another meta \("adam"'),
    ({"blocks": "tensor"}, "of other blocks or parameters"), ({"trace": "2x2"}, r'of another trace \("2x2, joint"'),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), OTHERS)
def test_state_of_another_kind_is_refused(options: dict[str, Any], words: str) -> None:
    params = tools.parameters()
    other = tools.make(params, **options)
    tools.run(other, params, range(2))
    optimizer = tools.make(params)
    tools.run(optimizer, params, range(2))
    rejected(optimizer, lambda: optimizer.load_state_dict(other.state_dict()), words)


def test_state_of_other_classes_and_parameters_is_refused() -> None:
    params = tools.parameters()
    optimizer = tools.make(params)
    tools.run(optimizer, params, range(2))
    adamw = torch.optim.AdamW(params)
    rejected(optimizer, lambda: optimizer.load_state_dict(adamw.state_dict()), "another optimizer class")
    others = tools.parameters(shapes=[(3, 2), (3,), (1,), (2, 2, 3)])
    wrong = tools.make(others)
    tools.run(wrong, others, range(1))
    message = r"of other parameters: parameter 2 has shape \(\), its .* has \(1,\)|parameter 3 has shape \(2, 2, 2\)"
    rejected(optimizer, lambda: optimizer.load_state_dict(wrong.state_dict()), message)


def test_bad_steps_are_refused() -> None:
    params = tools.parameters()
    exact = tools.make(params, "sgd", "sgd", trace="2x2")
    tools.run(exact, params, range(2))
    grads = [p.grad for p in params]
    rejected(exact, lambda: exact.step(), 'trace "2x2" needs a closure that returns the loss without calling backward')

    def backward() -> Tensor:
        exact.zero_grad()
        loss = tools.loss_of(params, 0)
        loss.backward()
        return loss

    rejected(exact, lambda: exact.step(backward), "it called backward without create_graph")
    rejected(exact, lambda: exact.step(lambda: 1.0), "needs a closure that returns the loss")
    assert all(p.grad is g for p, g in zip(params, grads))
    plain = tools.make(params)
    params[0].grad = torch.zeros(3, 2, dtype=D).to_sparse()
    rejected(plain, lambda: plain.step(), "cannot use sparse gradients")
    more = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    rejected(plain, lambda: plain.add_param_group({"params": [more]}), "complex parameters")
    assert len(plain.param_groups) == 1
