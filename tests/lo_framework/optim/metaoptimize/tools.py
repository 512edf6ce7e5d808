"""What the tests of MetaOptimize share: parameters of several shapes, and runs on given losses or
gradients.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.optim import MetaOptimize
from tests.lo_framework.optim.metaoptimize.reference import D, Loss

SHAPES = [(3, 2), (3,), (), (2, 2, 2)]
NAMES = ["body.weight", "body.bias", "scale", "head.weight"]


def parameters(
    seed: int = 0, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = D
) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=D).to(dtype)) for shape in shapes]


def named(params: Sequence[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return list(zip(NAMES, params))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach().reshape(-1).clone() for x in tensors])


def held(optimizer: MetaOptimize, params: Sequence[nn.Parameter], name: str = "h") -> Tensor:
    """State of all parameters: ``[n]``, or ``[C, n]`` of an exact trace."""
    lead = [optimizer.state[p][name] for p in params]
    return torch.cat(
        [x.reshape(*x.shape[: x.dim() - p.dim()], -1) for x, p in zip(lead, params)], -1
    ).clone()


def beta_of(optimizer: MetaOptimize) -> Tensor:
    return torch.cat([x.reshape(-1) for x in optimizer.step_sizes().values()]).log()


def give_grads(params: Sequence[nn.Parameter], t: int, skip: Sequence[int] = ()) -> None:
    """The gradients of step ``t``, whatever the parameters are; alike from step to step, so that
    step sizes move.
    """
    g, fixed = torch.Generator().manual_seed(1000 + t), torch.Generator().manual_seed(7)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=g, dtype=D) + torch.randn(
            p.shape, generator=fixed, dtype=D
        )
        p.grad = None if i in skip else (grad * 10.0 ** -(i % 3)).to(p.dtype)


def loss_of(params: Sequence[nn.Parameter], t: int) -> Tensor:
    """A smooth loss in which all parameters meet."""
    g = torch.Generator().manual_seed(50 + t)
    w = torch.cat([p.reshape(-1) for p in params])
    a = torch.randn(5, w.numel(), generator=g, dtype=D).to(w.dtype)
    return torch.tanh(a @ w / 2).square().sum() + 0.1 * w.pow(3).sum()


def run(optimizer: MetaOptimize, params: Sequence[nn.Parameter], steps: Sequence[int]) -> None:
    """Steps on `give_grads`, or on `loss_of` for an exact trace."""
    for t in steps:
        if optimizer._exact is None:
            give_grads(params, t)
            optimizer.step()
        else:
            optimizer.step(lambda t=t: loss_of(params, t))


def on_losses(optimizer: MetaOptimize, params: Sequence[nn.Parameter], loss: Loss, t: int) -> None:
    """One step on a loss of the flat vector, by the closure that the trace wants."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(t, torch.cat([p.reshape(-1) for p in params]))
        if optimizer._exact is None:
            value.backward()
        return value

    optimizer.step(closure)


NO_BOUNDS = (-math.inf, math.inf)


def make(
    params: Any, base: str = "adamw", meta: str = "lion", alpha0: float = 0.02, **options: Any
) -> MetaOptimize:
    """With step sizes large enough to see, and no bounds unless asked for."""
    options = {"meta_lr": 0.05, "beta_bounds": NO_BOUNDS, **options}
    return MetaOptimize(params, alpha0, base=base, meta=meta, **options)


NAMED = {"head": "head", "rest": None}

BLOCKS: list[Any] = ["scalar", "group", "tensor", "node", "weight", NAMED]


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    pairs = named(params)
    return [{"params": pairs[:2]}, {"params": pairs[2:], "weight_decay": 0.0}]


def snapshot(optimizer: torch.optim.Optimizer) -> str:
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


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_resume(dtype: torch.dtype, **options: Any) -> None:
    whole, parted = (parameters(dtype=dtype) for _ in range(2))
    one, two = make(groups(whole), **options), make(groups(parted), **options)
    run(one, whole, range(5))
    run(two, parted, range(3))
    state = through_a_file(two.state_dict())
    three = make(groups(parted), **{**options, "meta_lr": 9.0, "alpha0": 0.5})
    three.load_state_dict(state)
    run(three, parted, range(3, 5))
    assert torch.equal(flat(whole), flat(parted)) and flat(whole).isfinite().all()
    assert torch.equal(beta_of(one), beta_of(three)) and same_state(one, three)
