"""What the tests of the face share: optimizers off their start, a small model, gradients that
depend on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lo_framework.layout import Layout
from lo_framework.learned import LearnedOptimizer, make_learned
from lo_framework.optim import Learned
from lo_framework.optimizees.task import Batch, Buffers, Params, Task

ALL_KINDS = [
    "hyper-adamw",
    "attention",
    "attention:head=bounded",
    "attention-mlp",
    "mlp",
    "mlp:features=39",
    "lstm",
    "celo2",
    "celo2:orthogonal=false,vectors=learned,schedule=cosine,weight_decay=0.1",
    "scaled",
    "scaled:controller=mean,relative=true",
]
SHAPES = {
    "embed.weight": (7, 6),
    "conv.weight": (5, 3, 2, 2),
    "conv.bias": (5,),
    "norm.weight": (5,),
    "norm.bias": (5,),
    "scale": (),
    "head.weight": (6, 5),
    "head.bias": (6,),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(
    spec: str, spread: float = 0.02, seed: int = 5, dtype: torch.dtype = torch.float32
) -> LearnedOptimizer:
    """A learned optimizer off its start by normal noise, so that no head is zero."""
    learned = make_learned(spec)
    g = generator(seed)
    with torch.no_grad():
        for p in learned.parameters():
            p.add_(spread * torch.randn(p.shape, generator=g))
    return learned.to(dtype)


def parameters(
    seed: int = 0,
    shapes: Sequence[tuple[int, ...]] = tuple(SHAPES.values()),
    dtype: torch.dtype = torch.float32,
) -> list[nn.Parameter]:
    g = generator(seed)
    return [nn.Parameter((0.3 * torch.randn(shape, generator=g)).to(dtype)) for shape in shapes]


def give_grads(params: Sequence[nn.Parameter], t: int, skip: Sequence[int] = ()) -> None:
    """The gradients of step ``t``: the same for every model, of very different sizes from tensor to
    tensor.
    """
    g = generator(1000 + t)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=g) * 10.0 ** (-(i % 4))
        p.grad = None if i in skip else grad.to(p.dtype)


def run(
    optimizer: Learned, params: Sequence[nn.Parameter], steps: Sequence[int], **how: object
) -> None:
    for t in steps:
        give_grads(params, t, **how)  # type: ignore[arg-type]
        optimizer.step()


def flat(params: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in params])


def after(spec: str, steps: int, **options: object) -> Tensor:
    """The parameters after so many steps of a learned optimizer of that kind."""
    params = parameters()
    run(Learned(params, moved(spec), num_steps=10, **options), params, range(steps))  # type: ignore[arg-type]
    return flat(params)


def flat_grads(params: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in params if p.grad is not None])


def layout_of(params: Sequence[Tensor]) -> Layout:
    return Layout.of({str(i): p.shape for i, p in enumerate(params)})


class GivenGradients(Task):
    """Parameters of ``SHAPES``; a batch ``[1, N]`` is the gradient itself, so rounding is never
    amplified.
    """

    def __init__(self) -> None:
        super().__init__(name="given", batch_size=1)
        self.layout = Layout.of(SHAPES)

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        return {n: 0.3 * torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}, {}

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        scale = self.layout.expand(10.0 ** -(torch.arange(self.layout.num) % 4))
        return (torch.randn(*lead, 1, self.layout.size, generator=generator) * scale,)

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        return (batch[0][0] * self.layout.flatten(params)).sum(), buffers
