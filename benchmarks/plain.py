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

from lo_framework.learned.base import Theta
from lo_framework.learned.features import TIME_SCALES
from lo_framework.learned.mlp import MOMENTUM_19
from lo_framework.optimizees.task import ClassificationTask

Shapes = Sequence[tuple[int, ...]]


class PlainRule:
    """19-32-32-2 over flat parameters ``[N]``; momenta are ``[N, 6]``."""

    def __init__(
        self, theta: Theta, shapes: Shapes, exp_mult: float = 1e-3, step_mult: float = 1e-3
    ) -> None:
        self.w1 = torch.cat([theta["first"], theta["first_time"]], 1).T
        self.b1 = theta["first_bias"]
        self.w2, self.b2 = theta["second"].T, theta["second_bias"][:, 0]
        self.w3, self.b3 = theta["last"].T, theta["last_bias"][:, 0]
        self.shapes, self.sizes = shapes, [torch.Size(s).numel() for s in shapes]
        self.exp_mult, self.step_mult = exp_mult, step_mult
        device = self.w1.device
        self.keep = 1 - torch.tensor(MOMENTUM_19, device=device)
        self.scales = torch.tensor(TIME_SCALES, device=device)

    def start(self, params: Tensor) -> Tensor:
        return params.new_zeros(len(params), len(self.keep))

    def __call__(
        self, params: Tensor, grads: Tensor, momenta: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        momenta = torch.lerp(momenta, grads[:, None], self.keep)
        raw = torch.cat([grads[:, None], params[:, None], momenta], 1)
        parts = [x * torch.rsqrt(1e-5 + (x * x).mean(0)) for x in raw.split(self.sizes)]
        time = torch.tanh(step / self.scales - 1.0)
        x = torch.cat([torch.cat(parts), time.expand(len(raw), -1)], 1)
        h = torch.relu(torch.addmm(self.b1, x, self.w1))
        h = torch.relu(torch.addmm(self.b2, h, self.w2))
        out = torch.addmm(self.b3, h, self.w3)
        return params - out[:, 0] * torch.exp(out[:, 1] * self.exp_mult) * self.step_mult, momenta


def inner_loss(parts: Sequence[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of a sigmoid network whose weights and biases alternate in ``parts``."""
    x = batch[0].flatten(1)
    for i in range(0, len(parts), 2):
        x = F.linear(x if i == 0 else torch.sigmoid(x), parts[i], parts[i + 1])
    return F.cross_entropy(x, batch[1])


def unroll(
    task: ClassificationTask,
    rule: PlainRule,
    params: Tensor,
    momenta: Tensor,
    step: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean score of the training losses, and the parameters and momenta after the last step."""
    losses = []
    for batch in batches:
        parts = [x.reshape(shape) for x, shape in zip(params.split(rule.sizes), rule.shapes)]
        with torch.enable_grad():
            if not parts[0].requires_grad:
                parts = [x.detach().requires_grad_() for x in parts]
            loss = inner_loss(parts, batch)
            grads = torch.autograd.grad(loss, parts, create_graph=differentiable)
        flat = torch.cat([g.reshape(-1) for g in grads])
        losses.append(loss if differentiable else loss.detach())
        params, momenta = rule(params, flat, momenta, step)
        step += 1
    return task.normalize(torch.stack(losses)).mean(), params, momenta


def pes(
    task: ClassificationTask,
    theta: Theta,
    eps: Tensor,
    xi: Tensor,
    sigma: float,
    starts: Tensor,
    batches: Sequence[list],
    shapes: Shapes,
) -> Theta:
    """One truncation from step 0 of a pair for each row of ``eps [K, P]``; ``xi [K, P]``: sums over
    truncations.
    """
    total = torch.zeros_like(eps[0])
    with torch.no_grad():
        for k in range(len(eps)):
            scores = []
            for sign in (1.0, -1.0):
                rule = PlainRule(shifted(theta, sign * eps[k]), shapes)
                scores.append(
                    unroll(task, rule, starts[k], rule.start(starts[k]), 0, batches[k], False)[0]
                )
            total += (scores[0] - scores[1]) / (2 * sigma**2) * xi[k]
    return split(theta, total / len(eps))


def tbptt(
    task: ClassificationTask, theta: Theta, starts: Tensor, batches: Sequence[list], shapes: Shapes
) -> Theta:
    """Second-order truncated back-propagation, one task after the other, from step 0."""
    leaves = {name: x.detach().requires_grad_() for name, x in theta.items()}
    total: list[Tensor] = []
    for k in range(len(starts)):
        rule = PlainRule(leaves, shapes)
        score, _, _ = unroll(task, rule, starts[k], rule.start(starts[k]), 0, batches[k], True)
        grads = torch.autograd.grad(score, list(leaves.values()))
        total = [a + g for a, g in zip(total, grads)] if total else list(grads)
    return {name: g / len(starts) for name, g in zip(theta, total)}


def shifted(theta: Theta, delta: Tensor) -> Theta:
    return {name: x + d for (name, x), d in zip(theta.items(), split(theta, delta).values())}


def split(theta: Theta, flat: Tensor) -> Theta:
    """``[P]`` to theta's names and shapes."""
    parts = flat.split([x.numel() for x in theta.values()])
    return {name: part.reshape(x.shape) for (name, x), part in zip(theta.items(), parts)}
