"""``attention``: a transformer encoder over tokens modulates AdamW's hyper-parameters, step by
step.

MetaAdamW's rule (self-attention over parameter groups, arXiv 2605.04055) with decoupled decay. A
token is a tensor or a group of them (`grouping`), never a single parameter; its features are
bounded by construction; the head starts at zero, so that the optimizer starts as the
``hyper-adamw`` it grew from. `lo_framework.optim.MetaAdamW` trains the same network online.
``encoder="published"`` is the network of the paper: raw features without an embedding, norms and
biases in the blocks, a random head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from lo_framework.errors import choose
from lo_framework.layout import Layout
from lo_framework.learned.base import State, register_learned, zeros
from lo_framework.learned.encoder import Block, layer_norm, matrix, xavier
from lo_framework.learned.group_features import FeatureSpec, group_features, measured
from lo_framework.learned.grouping import GROUPINGS, KEYS, Grouping, make_grouping
from lo_framework.learned.hyper_adamw import FACTORS, HYPER, HyperAdamW, HyperAdamWConfig
from lo_framework.schema import Layers, NotNegative, Range, Seed, Width, check_heads

EMBEDDING = 4  # numbers of a group's embedding
PUBLISHED_HEAD = 4  # rows for alpha, beta, lambda1, lambda2

Size = Annotated[int, Range(low=0, high=1 << 16)]  # 0: the usual one
FactorRange = Annotated[float, Range(low=0, high=2, open_high=True)]  # factors are positive


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Settings of the network and of what it sees, for the learned optimizer and for MetaAdamW,
    whose defaults these are.

    Attributes:
        width, heads, layers: sizes of the encoder; ``width`` 0: 16, or as published the least that
            holds the features.
        head: "bounded" has MetaAdamW's factors of learning rate and decay; "exp" adds to every
            hyper-parameter in log space.
        seed: of the random start.
        features: "basic", "norm_basic", "basic_plus", "norm_basic_plus", "enhanced" or "tokens",
            see `group_features`.
        grouping: who shares a token: "fine_grained" (type, depth third, vector or not), "original"
            (parameter groups) or "tensor".
        scale: "log" or "raw", see `group_features`.
        v_norms, time: whether the second moment and the time are features too.
        gating: whether features have learned multipliers.
        alpha_range, beta_range: the factors of learning rate and decay lie in 1 +- range / 2.
        encoder: "own", or "published" as in the paper.
        hidden_units: of a block; 0: twice the width, or 32 as published.
        learn: "all", or "factors": meta-training moves nothing but the factors (of AdamW at the
            tuned learning rate).
        head_scale: size of a random start of the head; 0: factors start at 1.
    """

    # Saved states hold a digest of these in their order: add new ones at the end.
    width: Size = 0
    heads: Width = 4
    layers: Layers = 2
    head: Literal["exp", "bounded"] = "bounded"
    seed: Seed = 0
    features: str = "basic"
    grouping: str = "fine_grained"
    scale: str = "log"
    v_norms: bool = True
    time: bool = True
    gating: bool = False
    alpha_range: FactorRange = 1.0
    beta_range: FactorRange = 1.0
    encoder: Literal["own", "published"] = "own"
    hidden_units: Size = 0
    learn: Literal["all", "factors"] = "all"
    head_scale: NotNegative = 0.0

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec(
            version=self.features, scale=self.scale, v_norms=self.v_norms, time=self.time
        )

    @property
    def inputs(self) -> int:
        """Numbers that describe a token, a group's embedding included."""
        return self.spec.columns + EMBEDDING * (self.features == "enhanced")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(NetworkConfig, HyperAdamWConfig):
    """The learned optimizer's settings: AdamW's, and those of the network."""

    width: Width = 16
    layers: Layers = 1
    head: Literal["exp", "bounded"] = "exp"
    features: str = "tokens"
    grouping: str = "tensor"
    v_norms: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)
        choose("grouping", self.grouping, GROUPINGS)
        if self.encoder == "published" and (self.head != "bounded" or self.width < self.inputs):
            raise ValueError(
                "the published encoder needs head=bounded and a width of at least "
                f"{self.inputs} features"
            )


@register_learned
class Attention(HyperAdamW):
    """hyper-adamw + encoder over groups; ``head [H, D]`` starts at zero."""

    kind = "attention"
    Config = AttentionConfig
    config: AttentionConfig

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed)
        self.spec = config.spec
        published = self.published = config.encoder == "published"
        if not published:
            self.embed = matrix(config.width, config.inputs, generator)
            self.embed_bias = zeros(config.width, 1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, generator, config.hidden_units, published)
            for _ in range(config.layers)
        )
        self.head = zeros(len(HYPER), config.width)
        if config.head_scale:
            self.head = matrix(len(HYPER), config.width, generator, config.head_scale)
        if published:
            self.head = xavier(PUBLISHED_HEAD, config.width, generator)
            self.head_bias = zeros(PUBLISHED_HEAD, 1)
        if config.features == "enhanced":
            self.group_embedding = nn.Parameter(
                0.1 * torch.randn(EMBEDDING, KEYS, generator=generator)
            )
        if config.gating:
            gates = self.spec.columns
            self.gates = nn.Parameter(torch.ones(gates) if published else torch.zeros(gates))

    def outer_scale(self, name: str) -> float:
        fixed = self.config.learn == "factors" and name in FACTORS
        return 0.0 if fixed else super().outer_scale(name)

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return measured(self.spec, params, grads, state["m"], state["v"])

    def tokens(
        self, layout: Layout, grouping: Grouping, stats: Tensor, state: State, progress: Tensor
    ) -> Tensor:
        """Statistics ``[F, S]`` to the encoder's input ``[columns, G]``."""
        factor = None
        if self.config.gating:  # at the start 1, or .73 as published
            factor = torch.sigmoid(self.gates) * (1.0 if self.published else 2.0)
        features = group_features(self.spec, layout, grouping, stats, state, progress, factor)
        embedded = self.config.features == "enhanced"
        if self.published:
            missing = self.config.width - EMBEDDING * embedded - features.shape[0]
            features = torch.cat([features, features.new_zeros(missing, grouping.num)])
        if embedded:
            features = torch.cat([features, self.group_embedding.index_select(1, grouping.keys)])
        return features

    def encode(self, tokens: Tensor) -> Tensor:
        """``[columns, G]`` to ``[D, G]``."""
        x = tokens if self.published else self.embed @ tokens + self.embed_bias
        for block in self.blocks:
            x = block(x)
        return x if self.published else layer_norm(x)

    def raw(self, x: Tensor) -> Tensor:
        """The head's output ``[H, G]``, or ``[4, G]`` as published, from encoded tokens."""
        if self.published:
            return self.head @ x + self.head_bias
        return self.config.gain * (self.head @ x)

    def factors(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """MetaAdamW's alpha and beta ``[G]`` of a bounded head: 1 + range (sigmoid - 1/2)."""
        decay = 1 if self.published else 3
        ranges = self.config.alpha_range, self.config.beta_range
        alpha, beta = (
            1.0 + r * (torch.sigmoid(row) - 0.5) for r, row in zip(ranges, (raw[0], raw[decay]))
        )
        return alpha, beta

    def modulate(
        self, layout: Layout, raw: Tensor, stats: Tensor, state: State, progress: Tensor
    ) -> tuple[Tensor, Tensor]:
        grouping = make_grouping(layout, self.config.grouping)
        self.spec.check(grouping)
        x = self.encode(self.tokens(layout, grouping, stats, state, progress))
        change = self.raw(x)
        if self.config.head == "bounded":
            alpha, beta = self.factors(change)
            still = torch.zeros_like(alpha)
            change = torch.stack([alpha.log(), still, still, beta.log(), still])
        return raw + grouping.spread(change), self.extra(grouping.spread(x))

    def extra(self, x: Tensor) -> Tensor:
        """Extra channels ``[E, S]`` from the encoded tokens; none here."""
        return x[:0]
