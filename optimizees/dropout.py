"""Dropout without random operations: masks are a hash of (element, layer, seed), so they can be
vmapped and replayed.

A mask is a pure function of the element's index in its tensor, the number of the layer's call
within one forward pass, and the `noise` integer that a task's loss is given. The same noise gives
the same mask in a loop, under vmap, in a recomputed segment and after a resume.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_WORD = 0xFFFFFFFF
# The fixed points of SELU (Klambauer et al. 2017): alpha dropout sets dropped units to -scale *
# alpha.
_ALPHA = -1.6732632423543772 * 1.0507009873554805


def mix(x: Tensor) -> Tensor:
    """A bijective hash of 32-bit words held in int64. Source: C. Wellons, hash-prospector,
    two-round function.

    Both multipliers are below 2^31, so no product overflows int64.
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _WORD
    x = (x ^ (x >> 15)) * 0x735A2D97 & _WORD
    return x ^ (x >> 15)


def keep_mask(shape: tuple[int, ...] | torch.Size, p: float, noise: Tensor, layer: int) -> Tensor:
    """A boolean mask of `shape`, False with probability `p`; `noise` is an int64 0-d seed, possibly
    vmapped.
    """
    key = mix(noise & _WORD)
    key = mix(key ^ (noise >> 32 & _WORD))
    key = mix(
        (key + layer * 0x9E3779B9) & _WORD
    )  # 2^32 / golden ratio: neighbouring layers get distant keys
    words = mix(mix(torch.arange(math.prod(shape), device=noise.device)) ^ key)
    return (words >= int(p * 2**32)).reshape(shape)


class CounterDropout(nn.Module):
    """Stands in for one of torch's dropout modules. `noise` is a buffer, so functional_call can
    pass it in.

    One module may be called several times in a forward pass; `calls` numbers them (from `first`)
    and whoever calls the network sets it back to `first` before.

    Args:
        channels: drop whole channels of inputs with that many spatial dimensions; None drops single
            elements.
        alpha: alpha dropout: dropped units get SELU's negative saturation, then mean and variance
            are restored.
    """

    noise: Tensor

    def __init__(self, p: float, *, channels: int | None, alpha: bool, first: int) -> None:
        super().__init__()
        self.p, self.channels, self.alpha = p, channels, alpha
        self.first = self.calls = first
        self.register_buffer("noise", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with about a fraction p of its elements or channels dropped; `x` itself in evaluation
        mode.
        """
        if not self.training or self.p == 0:
            return x
        shape = tuple(x.shape)
        if self.channels is not None:
            lead = max(x.dim() - self.channels, 1)  # rows and channels, or only channels
            shape = (*shape[:lead], *(1,) * (x.dim() - lead))
        keep = keep_mask(shape, self.p, self.noise, self.calls)
        self.calls += 1
        if not self.alpha:
            return x * (keep.to(x.dtype) / max(1 - self.p, 1e-12))
        scale = ((1 - self.p) * (1 + self.p * _ALPHA**2)) ** -0.5 if self.p < 1 else 0.0
        return scale * torch.where(keep, x, _ALPHA) - scale * _ALPHA * self.p


# torch's module -> (spatial dimensions whose channels drop together, alpha)
KINDS: dict[type[nn.Module], tuple[int | None, bool]] = {
    nn.Dropout: (None, False),
    nn.Dropout1d: (1, False),
    nn.Dropout2d: (2, False),
    nn.Dropout3d: (3, False),
    nn.AlphaDropout: (None, True),
}


def replace_dropout(module: nn.Module) -> None:
    """Replace every dropout module inside `module` in place."""
    replaced: dict[nn.Module, CounterDropout] = {}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in KINDS:
                continue
            if child not in replaced:
                channels, alpha = KINDS[type(child)]
                p: Any = child.p
                # Blocks of 2^16 calls keep the layers' numbers apart however often each is called.
                replaced[child] = CounterDropout(
                    float(p), channels=channels, alpha=alpha, first=len(replaced) << 16
                )
                replaced[child].train(child.training)
            setattr(parent, name, replaced[child])
