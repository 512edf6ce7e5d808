"""A vmappable baseline on given gradients, step by step, and a start and gradients to give it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.baselines.registry import Setting
from lo_framework.layout import Layout
from lo_framework.learned.base import Clock

STEPS = 30


def problem(layout: Layout, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A start [N] and gradients [STEPS, N]."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(layout.size, generator=generator, dtype=torch.float64)
    grads = torch.randn(STEPS, layout.size, generator=generator, dtype=torch.float64)
    return start.to(dtype), grads.to(dtype)


def by_baseline(
    spec: str, layout: Layout, setting: Setting, start: Tensor, grads: Tensor
) -> Tensor:
    """The parameters after a step for each of ``grads``, at ``setting``."""
    optimizer = make_baseline(spec)
    (theta,) = make_thetas(optimizer, [setting]) if setting else [optimizer.theta()]
    theta = {name: x.to(start.dtype) for name, x in theta.items()}
    params, state = start, optimizer.init_state(layout, start)
    for t, grad in enumerate(grads):
        clock = Clock(torch.tensor(t / len(grads), dtype=start.dtype), torch.tensor(len(grads)))
        arguments = (layout, params, grad, state, None, clock)
        params, state = functional_call(optimizer, theta, arguments)
    return params


def by_torch(
    optimizers: list[torch.optim.Optimizer],
    params: dict[str, torch.nn.Parameter],
    layout: Layout,
    grads: Tensor,
    cosine: bool,
) -> Tensor:
    """The parameters after a step of all of ``optimizers``, who share them out, for each gradient;
    a parameter may have another shape than its tensor.
    """
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(each, T_max=len(grads))
        for each in optimizers
        if cosine
    ]
    for grad in grads:
        for name, value in layout.unflatten(grad).items():
            params[name].grad = value.reshape(params[name].shape).clone()
        for each in (*optimizers, *schedules):
            each.step()
    shaped = {slot.name: params[slot.name].detach().reshape(slot.shape) for slot in layout.slots}
    return layout.flatten(shaped)
