"""The face over parameters of several types, memory orders and devices."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from lo_framework.optim import Learned
from tests.lo_framework.optim.tools import (
    ALL_KINDS,
    SHAPES,
    after,
    flat,
    flat_grads,
    give_grads,
    layout_of,
    moved,
    parameters,
    run,
)
from tests.lo_framework.small_tasks import clock


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", ["attention-mlp", "mlp:features=39"])
def test_half_precision_parameters_have_float32_state(spec: str, dtype: torch.dtype) -> None:
    params, learned = parameters(dtype=dtype), moved(spec)
    layout, arena = layout_of(params), flat(params).float()
    state = learned.init_state(layout, arena)
    face = Learned(params, learned, num_steps=10, chunk=16)
    for t in range(4):
        give_grads(params, t)
        grads = flat_grads(params).float()
        face.step()
        with torch.no_grad():
            arena, state = learned(layout, arena, grads, state, None, clock(t / 10))
        arena = arena.to(dtype).float()  # the rounded result is what there is
        one_rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(flat(params).float(), arena, rtol=one_rounding, atol=1e-6)
    assert all(x.dtype == torch.float32 for p in params for x in face.state[p].values())
    assert all(p.dtype == dtype for p in params)


def test_mixed_dtypes_and_memory_orders() -> None:
    shapes = list(SHAPES.values())
    plain = parameters()
    odd = parameters()
    odd[1].data = odd[1].data.contiguous(memory_format=torch.channels_last)
    odd[6].data = odd[6].data.T.contiguous().T
    assert (
        not odd[1].is_contiguous()
        and not odd[6].is_contiguous()
        and [tuple(p.shape) for p in odd] == shapes
    )
    for spec in ALL_KINDS:
        models: Iterable[list[nn.Parameter]] = (plain, odd)
        for params in models:
            face = Learned(params, moved(spec), num_steps=10, chunk=8)
            run(face, params, range(4))
        torch.testing.assert_close(flat(odd), flat(plain), rtol=1e-6, atol=1e-6)
    mixed = parameters()
    mixed[0].data = mixed[0].data.bfloat16()
    face = Learned(mixed, moved("attention"), num_steps=10)
    run(face, mixed, range(2))
    assert mixed[0].dtype == torch.bfloat16 and mixed[1].dtype == torch.float32


def test_autocast_does_not_reach_the_update() -> None:
    params = parameters()
    face = Learned(params, moved("attention-mlp"), num_steps=10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(face, params, range(2))
    assert torch.equal(flat(params), after("attention-mlp", 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", ALL_KINDS)
def test_parameters_on_several_devices(spec: str) -> None:
    """All on the CPU, every other on the GPU, all on the GPU, all moved there after the optimizer
    was built.
    """
    plain, mixed, whole, late = (parameters() for _ in range(4))
    learned = moved(spec)
    late_face = Learned(late, learned, num_steps=10)
    for p in (*mixed[1::2], *whole, *late):
        p.data = p.data.cuda()
    faces = [
        *(Learned(params, learned, num_steps=10) for params in (plain, mixed, whole)),
        late_face,
    ]
    for face in faces:
        for t in range(5):
            give_grads(plain, t)
            for p, q in zip(face.param_groups[0]["params"], plain):
                assert q.grad is not None
                p.grad = q.grad.to(p.device)
            face.step()
    for params in (mixed, whole, late):
        torch.testing.assert_close(
            flat([p.cpu() for p in params]), flat(plain), rtol=1e-4, atol=1e-5
        )
    assert late_face._host.device.type == "cuda"
