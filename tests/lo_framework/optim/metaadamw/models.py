"""The five models that MetaAdamW was published with, rebuilt small: names and classes of parameters
are theirs.

ETTh1: a transformer encoder between linear layers. WikiText-2: the same over embeddings. Multi30k:
torch's transformer, 4 + 4 layers. CIFAR-10: torchvision's ResNet-18. IMDB: a bidirectional LSTM.
All are for their names only.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def etth1() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.2, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return _named(input_proj=nn.Linear(1, 4), encoder=encoder, fc=nn.Linear(4, 1))


def wikitext2() -> nn.Module:
    blocks = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, 0.2, batch_first=True, norm_first=True),
        2,
        enable_nested_tensor=False,
    )
    parts = {
        "token_embedding": nn.Embedding(7, 4),
        "position_embedding": nn.Embedding(5, 4),
        "blocks": blocks,
    }
    return _named(**parts, norm=nn.LayerNorm(4), lm_head=nn.Linear(4, 7))


def multi30k() -> nn.Module:
    transformer = nn.Transformer(4, 2, 4, 4, 8, 0.2, batch_first=True)
    return _named(embedding=nn.Embedding(7, 4), transformer=transformer, fc_out=nn.Linear(4, 7))


def resnet18() -> nn.Module:
    """Names of torchvision's, with its 18 weighted layers; 2 to 16 channels."""
    stages, before = OrderedDict[str, nn.Module](), 2
    stages["conv1"], stages["bn1"] = nn.Conv2d(3, 2, 3, bias=False), nn.BatchNorm2d(2)
    for number, width in enumerate((2, 4, 8, 16), start=1):
        stages[f"layer{number}"] = nn.Sequential(_basic(before, width), _basic(width, width))
        before = width
    stages["fc"] = nn.Linear(16, 10)
    return nn.Sequential(stages)


def _basic(before: int, width: int) -> nn.Module:
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(before, width, 3, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "conv2": nn.Conv2d(width, width, 3, bias=False),
        "bn2": nn.BatchNorm2d(width),
    }
    if before != width:
        parts["downsample"] = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        )
    return _named(**parts)


def imdb() -> nn.Module:
    lstm = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
    return _named(embedding=nn.Embedding(7, 3), lstm=lstm, fc=nn.Linear(8, 2))


def _named(**parts: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(parts))


PUBLISHED = {
    "ETTh1": (etth1, 5),
    "WikiText-2": (wikitext2, 6),
    "Multi30k": (multi30k, 16),
    "CIFAR-10": (resnet18, 4),
    "IMDB": (imdb, 5),
}
