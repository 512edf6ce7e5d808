"""What tests of `task_from_module` share: rows, networks, and what is wrong with some."""

from __future__ import annotations

import math

import torch
from torch import nn

CE = nn.functional.cross_entropy


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(count=100, seed=0):
    """Images [n, 1, 4, 4], all different, and labels of 3 classes."""
    x = torch.randn(count, 1, 4, 4, generator=seeded(seed))
    return x, torch.arange(count) % 3


def net(dropout=0.5):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64, 3),
    )


def stack(dicts):
    return {k: torch.stack([d[k] for d in dicts]) for k in dicts[0]}


def close(a, b):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], atol=5e-6, rtol=1e-5)


def broken(data):
    """The same rows with a NaN in row 17 and an infinity in row 20."""
    x, y = data[0].clone(), data[1]
    x[17].view(-1)[3], x[20].view(-1)[0] = math.nan, -math.inf
    return x, y


class Noisy(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(16, 3), how

    def forward(self, x):
        return self.layer(self.how(x.flatten(1), self))
