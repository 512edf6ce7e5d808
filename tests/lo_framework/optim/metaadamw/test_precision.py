"""MetaAdamW's arithmetic: half and double precision, autocast, and tensors whose memory is in
another order.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lo_framework.optim.metaadamw import adam_step
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import D, theta, weights
from tests.lo_framework.optim.tools import SHAPES, flat, give_grads, parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_have_float32_state(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is that of float32 parameters of the same values, rounded; both written out, as the
    fused loop's moments may differ in the last bit.
    """
    monkeypatch.setattr(adam_step, "HAS_FUSED", False)
    params = parameters(dtype=dtype)
    one = build(list(zip(SHAPES, params)), 0.02, network=tools.SMALL)
    high = [nn.Parameter(p.detach().float()) for p in params]
    two = build(list(zip(SHAPES, high)), 0.02, network=tools.SMALL)
    for t in range(4):
        give_grads(params, t)
        for p, q in zip(params, high):
            assert p.grad is not None
            q.grad = p.grad.float()
        one.step()
        two.step()
        assert torch.equal(flat(params), flat(high).to(dtype)) and one.factors() == two.factors()
        for p, q in zip(params, high):
            q.data.copy_(p)  # the rounded result is what there is
    assert {x.dtype for s in one.state.values() for x in s.values()} == {torch.float32}
    assert {p.dtype for p in params} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_meta_steps_of_half_precision_models(dtype: torch.dtype) -> None:
    model = tools.network(dtype)
    optimizer = tools.make(model.named_parameters())
    before = theta(optimizer)
    tools.run(optimizer, model, range(4), meta_every=2)
    assert (
        weights(model).isfinite().all()
        and theta(optimizer).isfinite().all()
        and optimizer.skipped == 0
    )
    assert not torch.equal(theta(optimizer), before)
    assert {p.dtype for p in optimizer.network.parameters()} == {torch.float32}


def test_float64_parameters_have_a_float64_network() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(2), meta_every=2)
    dtypes = {x.dtype for s in optimizer.state.values() for name, x in s.items() if name != "step"}
    assert dtypes == {D} == {p.dtype for p in optimizer.network.parameters()}


def convolutions(orders: str) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(2, 3)
    )
    model = tools.started(model, D, 0)
    return model.to(memory_format=torch.channels_last) if orders != "plain" else model  # type: ignore[call-overload]


def images(orders: str, t: int) -> tools.Batch:
    x = tools.batch(t, rows=10 * 12)[0].reshape(10, 3, 4, 4)
    return x.contiguous(memory_format=torch.channels_last) if orders != "plain" else x, tools.batch(
        t, rows=10
    )[1]


@pytest.mark.parametrize("orders", ["channels last", "strange gradients"])
def test_memory_orders_do_not_matter(orders: str) -> None:
    """D24: gradients whose memory is in another order crashed. Expanded and transposed too."""
    one, two = convolutions("plain"), convolutions(orders)
    optimizers = [tools.make(m.named_parameters()) for m in (one, two)]
    for t in range(6):
        for optimizer, model, form in zip(optimizers, (one, two), ("plain", orders)):
            optimizer.zero_grad()
            tools.loss_of(model)(images(form, t)).backward()
            if orders == "strange gradients":
                for p in model.parameters():
                    assert p.grad is not None
                    if p.dim() == 1:
                        p.grad = p.grad.mean().expand(p.shape)
                    elif model is two:
                        p.grad = p.grad.transpose(0, 1).contiguous().transpose(0, 1)
            optimizer.step()
            if t % 2:
                optimizer.meta_step(
                    tools.loss_of(model), *(images(form, 50 + t + k) for k in range(3))
                )
    if orders == "channels last":
        kernel = two.get_parameter("0.weight")
        assert (
            not kernel.is_contiguous()
            and not optimizers[1].state[kernel]["exp_avg"].is_contiguous()
        )
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=1e-8)
    torch.testing.assert_close(theta(optimizers[0]), theta(optimizers[1]), rtol=0, atol=1e-6)


def test_state_of_channels_last_parameters_resumes() -> None:
    one, two = convolutions("channels last"), convolutions("plain")
    optimizers = [tools.make(m.named_parameters()) for m in (one, two)]
    tools.loss_of(one)(images("channels last", 0)).backward()
    optimizers[0].step()
    optimizers[1].load_state_dict(tools.through_a_file(optimizers[0].state_dict()))
    for p, q in zip(one.parameters(), two.parameters()):
        assert torch.equal(optimizers[0].state[p]["exp_avg"], optimizers[1].state[q]["exp_avg"])


def test_autocast_does_not_reach_the_update() -> None:
    params, others = parameters(), parameters()
    one, two = (build(list(zip(SHAPES, p)), 0.02, network=tools.SMALL) for p in (params, others))
    for t in range(3):
        give_grads(params, t)
        give_grads(others, t)
        one.step()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            two.step()
    assert torch.equal(flat(params), flat(others))


@pytest.mark.parametrize("order", ["exact", "difference", "first"])
def test_autocast_in_a_meta_step_is_for_the_model_only(order: str) -> None:
    """Around `meta_step` or within its loss, it is the same: the network's own arithmetic stays
    float32, and no cast of weights that have moved since is used.
    """
    models = [tools.network(torch.float32) for _ in range(3)]
    around, within, anew = (tools.make(m.named_parameters(), order=order) for m in models)
    products: list[torch.dtype] = []

    def plain(pair: tools.Batch) -> Tensor:
        products.append(models[0][0](pair[0]).dtype)
        return tools.loss_of(models[0])(pair)

    def cast(pair: tools.Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tools.loss_of(models[1])(pair)

    def cast_anew(pair: tools.Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            return tools.loss_of(models[2])(pair)

    for t in range(4):
        batches = [tools.batch(100 + 3 * t + k, torch.float32) for k in range(3)]
        for optimizer, model in zip((around, within, anew), models):
            tools.step(optimizer, model, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            models[0](batches[0][0])  # leaves casts of the weights behind
            one = around.meta_step(plain, *batches)
        two = within.meta_step(cast, *batches)
        assert one == two == anew.meta_step(cast_anew, *batches)
    assert set(products) == {torch.bfloat16}
    assert torch.equal(theta(around), theta(within)) and torch.equal(theta(around), theta(anew))
    assert torch.equal(weights(models[0]), weights(models[1])) and torch.equal(
        weights(models[0]), weights(models[2])
    )
