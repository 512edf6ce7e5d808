"""The small models that `benchmarks.ordinary` trains, their losses and their data, which come with
the packages that are installed anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.large import dense

WINDOW, VOCABULARY = 32, 128  # bytes

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


class Problem(NamedTuple):
    build: Callable[[], nn.Module]
    loss: Loss
    data: Callable[[], Batch]
    rows: int
    steps: int


class Residual(nn.Module):
    """Three residual blocks with BatchNorm on images of 8x8."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(self._block(width) for _ in range(3))
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 10)

    @staticmethod
    def _block(width: int) -> nn.Module:
        conv = partial(nn.Conv2d, width, width, 3, padding=1, bias=False)
        return nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), conv(), nn.BatchNorm2d(width), nn.ReLU(), conv()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(-1, 1, 8, 8))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x).relu().mean((2, 3)))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


@cache
def digits() -> Batch:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16.0 - 0.5, dtype=torch.float32), torch.tensor(y)


@cache
def table(name: str) -> Batch:
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    if name == "diabetes":
        y = ((y - y.mean()) / y.std()).float()
    return (x - x.mean(0)) / x.std(0), y


@cache
def unscaled() -> Batch:
    """Diabetes with its targets as they are, 25 to 346."""
    from sklearn.datasets import load_diabetes

    return table("diabetes")[0], torch.tensor(load_diabetes().target, dtype=torch.float32)


@cache
def windows() -> Batch:
    """Bytes of the help texts that come with Python, below 128, in windows."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
    whole = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    texts = whole[: len(whole) // WINDOW * WINDOW].view(-1, WINDOW)
    return texts, texts


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=2,
        n_positions=WINDOW,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=WINDOW,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config)


def causal(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch[0], labels=batch[0]).loss


def masked(model: nn.Module, batch: Batch) -> Tensor:
    """Every seventh byte is hidden, another residue in every row."""
    x = batch[0]
    place = torch.arange(WINDOW) + torch.arange(len(x))[:, None]
    hidden = place % 7 == 0
    labels = torch.where(hidden, x, -100)
    return model(input_ids=torch.where(hidden, 0, x), labels=labels).loss


def classes(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def rebuilt(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[0])


def regressed(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0])[:, 0], batch[1])


PROBLEMS: dict[str, Problem] = {
    "gpt2": Problem(gpt2, causal, windows, 16, 120),
    "bert": Problem(bert, masked, windows, 16, 60),
    "gpt2-50": Problem(gpt2, causal, windows, 16, 50),
    "mlp": Problem(partial(dense, 64, 64, 10), classes, digits, 32, 200),
    "cnn": Problem(convolutional, classes, digits, 32, 200),
    "mlp-50": Problem(partial(dense, 64, 128, 128, 10), classes, digits, 32, 50),
    "tanh-50": Problem(partial(dense, 64, 64, 64, 64, 10, act=nn.Tanh), classes, digits, 32, 50),
    "residual-50": Problem(Residual, classes, digits, 32, 50),
    "autoencoder": Problem(
        partial(dense, 64, 64, 8, 64, 64, act=nn.GELU), rebuilt, digits, 32, 300
    ),
    "iris": Problem(partial(dense, 4, 32, 32, 3), classes, partial(table, "iris"), 16, 150),
    "wine": Problem(partial(dense, 13, 32, 32, 3), classes, partial(table, "wine"), 16, 150),
    "breast-cancer": Problem(
        partial(dense, 30, 64, 2), classes, partial(table, "breast_cancer"), 16, 150
    ),
    "diabetes": Problem(
        partial(dense, 10, 64, 64, 1), regressed, partial(table, "diabetes"), 16, 150
    ),
    "unscaled": Problem(partial(dense, 10, 64, 64, 1), regressed, unscaled, 32, 100),
    "full-batch": Problem(
        partial(dense, 10, 64, 64, 1), regressed, partial(table, "diabetes"), 442, 100
    ),
    "residual": Problem(Residual, classes, digits, 32, 200),
}
