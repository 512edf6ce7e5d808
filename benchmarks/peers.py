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
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plain import Batch, Shapes

Peer = Callable[[nn.Module, Sequence[Batch]], Tensor]
START = 1e-3


def build_model(shapes: Shapes) -> nn.Sequential:
    """Linear layers of the given weight and bias shapes with sigmoids between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for out, fan_in in shapes[::2]:
        layers += [nn.Linear(fan_in, out), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def higher_losses(model: nn.Module, batches: Sequence[Batch], log_lr: Tensor) -> Iterable[Tensor]:
    higher = importlib.import_module("higher")
    optimizer = torch.optim.Adam(model.parameters(), lr=START)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds tensors from tensors
        override = {"lr": [log_lr.exp()]}
        with higher.innerloop_ctx(model, optimizer, override=override) as (inner, differentiable):
            for x, y in batches:
                loss = F.cross_entropy(inner(x), y)
                yield loss
                differentiable.step(loss)


def torchopt_losses(model: nn.Module, batches: Sequence[Batch], log_lr: Tensor) -> Iterable[Tensor]:
    torchopt = importlib.import_module("torchopt")
    params = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    # Without eps_root its meta-gradient is NaN: pixels that are always 0 bring exact zeros under
    # the root.
    optimizer = torchopt.adam(lr=lambda _: log_lr.exp(), eps_root=1e-16)
    state = optimizer.init(params)
    for x, y in batches:
        loss = F.cross_entropy(torch.func.functional_call(model, params, (x,)), y)
        yield loss
        grads = torch.autograd.grad(loss, [*params.values()], create_graph=True)
        updates, state = optimizer.update(dict(zip(params, grads)), state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)


LOSSES = {"higher": higher_losses, "torchopt": torchopt_losses}


def load_peer(name: str) -> Peer:
    """Raises ImportError where the package is missing."""
    importlib.import_module(name)

    def run(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        log_lr = torch.tensor(math.log(START), requires_grad=True)
        losses = [*LOSSES[name](model, batches, log_lr)]
        (grad,) = torch.autograd.grad(torch.stack(losses).mean(), log_lr)
        return grad

    return run
