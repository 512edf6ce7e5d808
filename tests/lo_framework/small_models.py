"""Models whose names tell nothing, for what is read off modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.p, self.q = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.r, self.s = nn.Linear(width, width), nn.LayerNorm(width)
        self.t, self.u = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(self.p(x)).chunk(3, -1)
        x = x + self.r(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.u(F.gelu(self.t(self.s(x))))


class GPT(nn.Module):
    """A small GPT-2: ``a`` and ``b`` are its embeddings, of tokens (tied to the output) and of
    positions.
    """

    def __init__(self, width: int = 8, layers: int = 2, vocabulary: int = 50) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(vocabulary, width), nn.Embedding(12, width)
        self.c = nn.ModuleList(Block(width) for _ in range(layers))
        self.d = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.a.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.a(tokens) + self.b(torch.arange(tokens.shape[-1], device=tokens.device))
        for block in self.c:
            x = block(x)
        return self.head(self.d(x))


class LSTM(nn.Module):
    """A language model whose embedding has the given name."""

    def __init__(self, name: str, width: int = 6, vocabulary: int = 50) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Embedding(vocabulary, width))
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.fc = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.lstm(getattr(self, self.name)(tokens))[0])


def started(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with parameters drawn from a seed."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=g) + (p.dim() == 1))
    return model
