"""MetaOptimize's arithmetic in pieces: chunks, memory layouts, step sizes as numbers or tensors,
nothing that waits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from lo_framework.optim.metaoptimize import optimizer as face
from lo_framework.optim.metaoptimize.hessian_free import StepSizes
from tests.lo_framework.optim.metaoptimize import tools
from tests.lo_framework.optim.metaoptimize.reference import BASES, Slow


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
    """Longer than a chunk, rows longer than a chunk, packs that fill up: as the slow reference."""
    shapes = [(3, 70_000), (20_000,), (9, 8_000), (5,)]
    rows = [3, 20_000, 9, 5]
    params = tools.parameters(shapes=shapes)
    counts = {
        "scalar": [0] * 4,
        "tensor": [1] * 4,
        "node": rows,
        "weight": [p.numel() for p in params],
    }[blocks]
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


@pytest.mark.parametrize("blocks", tools.BLOCKS, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_step_sizes_as_tensors_give_the_same(
    base: str, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What accelerators run, on the CPU: no number is looked at, and AdamW is made of single
    operations.
    """
    results = []
    for as_numbers in (True, False):
        params = tools.parameters()
        optimizer = tools.make(tools.groups(params), base, "lion", blocks=blocks, gamma=0.9)
        if not as_numbers:
            monkeypatch.setattr("lo_framework.optim.metaoptimize.hessian_free.HAS_FUSED", False)
            monkeypatch.setattr(face, "StepSizes", lambda beta, as_numbers: StepSizes(beta, False))
        tools.run(optimizer, params, range(4))
        results.append(
            torch.cat([tools.flat(params), tools.held(optimizer, params), tools.beta_of(optimizer)])
        )
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)


def test_any_memory_layout() -> None:
    """channels_last weights, transposed parameters and gradients, empty tensors."""
    plain = tools.parameters(shapes=[(4, 3, 2, 2), (5, 3), (0,)])
    turned = [
        nn.Parameter(plain[0].detach().clone().to(memory_format=torch.channels_last)),
        nn.Parameter(plain[1].detach().clone().T.contiguous().T),
        nn.Parameter(plain[2].detach().clone()),
    ]
    one, two = (
        tools.make(plain, "adamw", "lion", blocks="node"),
        tools.make(turned, "adamw", "lion", blocks="node"),
    )
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
