"""The loss of one batch as a function of the parameters: what regularizers look at
(`regularizers.base.Landscape`).

    landscape = FunctionalLandscape(loss_fn, batch, noise)  # loss_fn(params, batch, noise): 0-d
    loss, grad = landscape.gradient(params)
    correction = SAM(SAMConfig(rho=0.05)).correction(landscape, Point(params, loss, grad), {})

Pure and vmappable: dropout keeps the mask of ``noise`` at every point, and a loss function that
closes over buffers throws their updates away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lo_framework.optimizees.dropout import mix
from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import Batch, Params

LossFn = Callable[[Params, Batch, Tensor], Tensor]
_WORD = 0xFFFFFFFF
_SALT = 0x5A17  # or stream 0 would repeat the words of the first dropout layer


class FunctionalLandscape:
    def __init__(self, loss_fn: LossFn, batch: Batch, noise: Tensor) -> None:
        self.loss_fn, self.batch, self.noise = loss_fn, batch, noise

    def loss(self, params: Params) -> Tensor:
        return self.loss_fn(params, self.batch, self.noise)

    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        grad, loss = torch.func.grad_and_value(self.loss)(params)
        return loss, grad

    def hvp(self, params: Params, direction: Params) -> Params:
        """Reverse over reverse: forward mode has no rule for some operations under vmap."""
        slope = torch.func.grad(self.loss)
        return torch.func.grad(lambda at: vectors.dot(slope(at), direction))(params)

    def on(self, batch: Batch) -> FunctionalLandscape:
        return FunctionalLandscape(self.loss_fn, batch, self.noise)

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """A hash of (element, stream, noise): no random operation, so it can be vmapped and
        replayed.
        """
        count = torch.Size(shape).numel()
        seed = mix(mix(self.noise & _WORD) ^ (self.noise >> 32 & _WORD))
        key = mix(seed ^ mix(self.noise.new_tensor(stream ^ _SALT)))
        words = mix(mix(torch.arange(count, device=self.noise.device)) ^ key)
        return (words.to(torch.float64) / 2**32).reshape(shape)
