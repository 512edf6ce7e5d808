"""Two libraries for differentiable optimization on the same inner problem, with one meta-learned
number: Adam's step size.

This is far less than a learned optimizer does per step, so it is an upper bound for anything built
on them this way. Each returns the gradient of the mean training loss of an unroll with respect to
the logarithm of the step size.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
Peer = Callable[[nn.Module, Sequence[Batch]], Tensor]
START = 1e-3


def build_model(shapes: Sequence[tuple[int, ...]]) -> nn.Sequential:
    """Linear layers of the given weight and bias shapes with sigmoids between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(0, len(shapes), 2):
        out, fan_in = shapes[i]
        layers += [nn.Linear(fan_in, out), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def higher_peer() -> Peer:
    """Raises ImportError where the package is missing."""
    import higher

    def run(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        log_lr = torch.tensor(math.log(START), requires_grad=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=START)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it builds tensors from tensors
            with higher.innerloop_ctx(model, optimizer, override={"lr": [log_lr.exp()]}) as (
                inner,
                inner_optimizer,
            ):
                losses = []
                for x, y in batches:
                    loss = F.cross_entropy(inner(x), y)
                    losses.append(loss)
                    inner_optimizer.step(loss)
                (grad,) = torch.autograd.grad(torch.stack(losses).mean(), log_lr)
        return grad

    return run


def torchopt_peer() -> Peer:
    """Raises ImportError where the package is missing."""
    torchopt = importlib.import_module("torchopt")

    def run(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        log_lr = torch.tensor(math.log(START), requires_grad=True)
        params: dict[str, Any] = {
            name: p.detach().requires_grad_() for name, p in model.named_parameters()
        }
        # Without eps_root its meta-gradient is NaN: pixels that are always 0 bring exact zeros
        # under the root.
        optimizer = torchopt.adam(lr=lambda _: log_lr.exp(), eps_root=1e-16)
        state = optimizer.init(params)
        losses = []
        for x, y in batches:
            loss = F.cross_entropy(torch.func.functional_call(model, params, (x,)), y)
            losses.append(loss)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            updates, state = optimizer.update(dict(zip(params, grads)), state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        (grad,) = torch.autograd.grad(torch.stack(losses).mean(), log_lr)
        return grad

    return run


PEERS: dict[str, Callable[[], Peer]] = {"higher": higher_peer, "torchopt": torchopt_peer}
