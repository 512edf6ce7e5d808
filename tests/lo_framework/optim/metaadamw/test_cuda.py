"""MetaAdamW on an accelerator: the same as on the CPU, wherever the parameters are and whenever
they get there.
"""

from __future__ import annotations

import pytest
import torch

from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import theta, weights
from tests.lo_framework.optim.tools import SHAPES, flat, give_grads, parameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("order", ["exact", "difference", "first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_and_meta_steps_are_those_of_the_cpu(dtype: torch.dtype, order: str) -> None:
    """Built before or after the model was moved."""
    plain, early, late = (tools.network(dtype) for _ in range(3))
    early.cuda()
    optimizers = [tools.make(m.named_parameters(), order=order) for m in (plain, early, late)]
    late.cuda()
    for optimizer, model in zip(optimizers, (plain, early, late)):
        device = next(model.parameters()).device
        for t in range(6):
            optimizer.zero_grad()
            x, y = tools.batch(t, dtype)
            tools.loss_of(model)((x.to(device), y.to(device))).backward()
            optimizer.step()
            if t % 2:
                pairs = [tools.batch(50 + 3 * t + k, dtype) for k in range(3)]
                optimizer.meta_step(
                    tools.loss_of(model), *((x.to(device), y.to(device)) for x, y in pairs)
                )
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    for optimizer, model in zip(optimizers[1:], (early, late)):
        torch.testing.assert_close(weights(model).cpu(), weights(plain), rtol=0, atol=tolerance)
        torch.testing.assert_close(
            theta(optimizer).cpu(), theta(optimizers[0]), rtol=0, atol=10 * tolerance
        )
        assert {p.device.type for p in optimizer.network.parameters()} == {
            "cuda"
        } and optimizer.skipped == 0


@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02)], ids=["number", "tensor"])
def test_without_ranges_it_equals_adamw(lr: float | torch.Tensor) -> None:
    params, others = parameters(), parameters()
    for p in (*params, *others):
        p.data = p.data.cuda()
    one = build(list(zip(SHAPES, params)), lr, alpha_range=0.0, beta_range=0.0, network=tools.SMALL)
    two = torch.optim.AdamW(others, 0.02)
    for t in range(60):
        for optimizer, mine in ((one, params), (two, others)):
            for p, q in zip(mine, given(t)):
                p.grad = q.cuda()
            optimizer.step()
    torch.testing.assert_close(flat(params), flat(others), rtol=1e-6, atol=1e-6)


def given(t: int) -> list[torch.Tensor]:
    params = parameters()
    give_grads(params, t)
    return [p.grad for p in params if p.grad is not None]


def test_parameters_on_several_devices() -> None:
    """Every other one on the GPU, the first of them on the CPU, or on the GPU."""
    plain, mixed, other = (parameters() for _ in range(3))
    for p in (*mixed[1::2], *other[::2]):
        p.data = p.data.cuda()
    optimizers = [
        build(list(zip(SHAPES, m)), 0.02, network=tools.SMALL) for m in (plain, mixed, other)
    ]
    for optimizer, params in zip(optimizers, (plain, mixed, other)):
        for t in range(5):
            for p, g in zip(params, given(t)):
                p.grad = g.to(p.device)
            optimizer.step()
    for params in (mixed, other):
        torch.testing.assert_close(
            flat([p.cpu() for p in params]), flat(plain), rtol=1e-4, atol=1e-5
        )


def test_a_state_moves_between_devices() -> None:
    plain, moved = tools.network(torch.float32), tools.network(torch.float32).cuda()
    one, two = tools.make(plain.named_parameters()), tools.make(moved.named_parameters())
    tools.run(one, plain, range(4), meta_every=2)
    two.load_state_dict(tools.through_a_file(one.state_dict()))
    assert torch.equal(theta(one), theta(two).cpu()) and one.factors() == two.factors()
    for p, q in zip(plain.parameters(), moved.parameters()):
        assert torch.equal(one.state[p]["exp_avg"], two.state[q]["exp_avg"].cpu())
        assert two.state[q]["exp_avg"].device == q.device


def test_meta_steps_leave_the_generators_and_statistics_alone() -> None:
    model = tools.noisy_network(torch.float32).cuda()
    optimizer = tools.make(model.named_parameters())
    x, y = tools.batch(0, torch.float32)
    pair = x.cuda(), y.cuda()
    tools.loss_of(model)(pair).backward()
    optimizer.step()
    before = torch.cuda.get_rng_state(), tools.flat(model.buffers()), weights(model)
    optimizer.meta_step(tools.loss_of(model), pair, pair, pair)
    after = torch.cuda.get_rng_state(), tools.flat(model.buffers()), weights(model)
    assert all(torch.equal(a, b) for a, b in zip(before, after))
