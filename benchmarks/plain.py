"""The ``mlp`` learned optimizer as one would write it for a single experiment: the yardstick for
the vmapped engine.

One task at a time in a Python loop, features last (``[N, 19] @ W``), the time features tiled over
the parameters as in the published optimizer, inner gradients by ``torch.autograd.grad``, the two
members of a PES pair one after the other, meta-gradients of TBPTT by ``torch.autograd.grad``
through the unroll. Nothing is computed twice and nothing is masked: it is meant to be as fast as
such code gets. It is only for ``mlp`` optimizees with sigmoid and the objective ``train``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.estimators.perturbed import unflatten_theta
from lo_framework.learned.base import Theta
from lo_framework.learned.features import TIME_SCALES
from lo_framework.learned.mlp import MOMENTUM_19
from lo_framework.optimizees.task import ClassificationTask

Batch = tuple[Tensor, Tensor]
Shapes = Sequence[tuple[int, ...]]


def inner_loss(parts: Sequence[Tensor], batch: Batch) -> Tensor:
    """Cross-entropy of a sigmoid network whose weights and biases alternate in ``parts``."""
    x = batch[0].flatten(1)
    for i in range(0, len(parts), 2):
        x = F.linear(x if i == 0 else torch.sigmoid(x), parts[i], parts[i + 1])
    return F.cross_entropy(x, batch[1])


def unroll(
    task: ClassificationTask,
    theta: Theta,
    shapes: Shapes,
    params: Tensor,
    batches: Iterable[Batch],
) -> Tensor:
    """Mean score of the training losses from step 0; differentiable unless under ``no_grad``."""
    differentiable = torch.is_grad_enabled()
    w1, b1 = torch.cat([theta["first"], theta["first_time"]], 1).T, theta["first_bias"]
    w2, b2 = theta["second"].T, theta["second_bias"][:, 0]
    w3, b3 = theta["last"].T, theta["last_bias"][:, 0]
    keep = 1 - torch.tensor(MOMENTUM_19, device=w1.device)
    scales = torch.tensor(TIME_SCALES, device=w1.device)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    momenta, losses = params.new_zeros(len(params), len(keep)), []
    for step, batch in enumerate(batches):
        parts = [x.reshape(shape) for x, shape in zip(params.split(sizes), shapes)]
        with torch.enable_grad():
            if not parts[0].requires_grad:
                parts = [x.detach().requires_grad_() for x in parts]
            loss = inner_loss(parts, batch)
            inner = torch.autograd.grad(loss, parts, create_graph=differentiable)
        losses.append(loss if differentiable else loss.detach())
        grads = torch.cat([g.reshape(-1) for g in inner])[:, None]
        momenta = torch.lerp(momenta, grads, keep)
        raw = torch.cat([grads, params[:, None], momenta], 1)
        features = [x * torch.rsqrt(1e-5 + (x * x).mean(0)) for x in raw.split(sizes)]
        time = torch.tanh(step / scales - 1.0)
        x = torch.cat([torch.cat(features), time.expand(len(raw), -1)], 1)
        h = torch.relu(torch.addmm(b1, x, w1))
        h = torch.relu(torch.addmm(b2, h, w2))
        out = torch.addmm(b3, h, w3)
        params = params - out[:, 0] * torch.exp(out[:, 1] * 1e-3) * 1e-3
    return task.normalize(torch.stack(losses)).mean()


def pes(
    task: ClassificationTask,
    theta: Theta,
    shapes: Shapes,
    starts: Tensor,
    batches: Sequence[Iterable[Batch]],
    eps: Tensor,
    sigma: float,
) -> Theta:
    """The first truncation of a pair for each row of ``eps [K, P]``."""
    total = torch.zeros_like(eps[0])
    with torch.no_grad():
        for start, data, row in zip(starts, batches, eps):
            delta = unflatten_theta(theta, row)
            plus, minus = (
                unroll(
                    task,
                    {name: x + sign * delta[name] for name, x in theta.items()},
                    shapes,
                    start,
                    data,
                )
                for sign in (1.0, -1.0)
            )
            total += (plus - minus) / (2 * sigma**2) * row
    return unflatten_theta(theta, total / len(eps))


def tbptt(
    task: ClassificationTask,
    theta: Theta,
    shapes: Shapes,
    starts: Tensor,
    batches: Sequence[Iterable[Batch]],
) -> Theta:
    """Second-order truncated back-propagation, one task after the other, from step 0."""
    leaves = {name: x.detach().requires_grad_() for name, x in theta.items()}
    grads = [
        torch.autograd.grad(unroll(task, leaves, shapes, start, data), [*leaves.values()])
        for start, data in zip(starts, batches)
    ]
    return {name: sum(parts) / len(grads) for name, parts in zip(theta, zip(*grads))}
