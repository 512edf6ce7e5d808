"""MetaAdamW's five feature versions: statistics of the tensors of a group (arXiv 2605.04055,
section 2).

    basic            means over the group's tensors of |g|, |m|, |p|, cos(g, m), |v| (``v_norms``)
    basic_plus       and their standard deviations over the tensors
    norm_*           the same, standardised across groups
    enhanced         means and variances of |g| and |m|, shares of exact zeros, size, share of
                     vectors, depth

and the time. ``scale="log"``, the default, has logarithms of root mean squares with unbiased
moments in the place of raw norms: bounded, and free of the number of parameters. ``scale="raw"`` is
what was published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.errors import UserError, choose
from lo_framework.layout import Layout
from lo_framework.learned.features import TOKEN_STATS, TOKEN_WIDTH, token_features
from lo_framework.learned.grouping import Grouping

VERSIONS = ("tokens", "basic", "norm_basic", "basic_plus", "norm_basic_plus", "enhanced")
TINY = 1e-14


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """``version``: one of VERSIONS, ``tokens`` being the features of `features.token_features`,
    averaged over groups.

    ``v_norms``: also the second moment. ``time``: also how far training is. ``truncated``: above 0,
    `basic_plus` as released, which was so many columns of `enhanced`.
    """

    version: str = "tokens"
    scale: str = "log"
    v_norms: bool = False
    time: bool = True
    truncated: int = 0

    def __post_init__(self) -> None:
        choose("features", self.version, VERSIONS)
        choose("scale of features", self.scale, ("log", "raw"))

    @property
    def plus(self) -> bool:
        return self.version.endswith("plus")

    @property
    def normed(self) -> bool:
        return self.version.startswith("norm_")

    @property
    def shortened(self) -> bool:
        return self.truncated > 0 and self.plus

    @property
    def enhanced(self) -> bool:
        return self.version == "enhanced" or self.shortened

    @property
    def statistics(self) -> int:
        """How many features there are beside the time: the first of all, which ``norm_``
        standardises.
        """
        return 9 if self.version == "enhanced" else (4 + self.v_norms) * (1 + self.plus)

    @property
    def columns(self) -> int:
        """How many features there are, without a group embedding."""
        return TOKEN_WIDTH if self.version == "tokens" else self.statistics + self.time

    @property
    def stats(self) -> tuple[str, ...]:
        """Means over each tensor that they are made of; the first are always
        `features.TOKEN_STATS`.
        """
        raw_v = (
            ("v^2",) if self.v_norms and self.scale == "raw" and self.version != "tokens" else ()
        )
        return TOKEN_STATS + raw_v + (("g=0", "m=0") if self.enhanced else ())

    def check(self, grouping: Grouping) -> None:
        """Raises UserError for what cannot be standardised."""
        if self.normed and grouping.num < 2:
            raise UserError(
                f'features "{self.version}" standardise across groups and there is one: use '
                f'"{self.version.removeprefix("norm_")}", or a grouping with more'
            )


def measured(spec: FeatureSpec, params: Tensor, grads: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """Measurements ``[len(spec.stats), n]`` of ``[n]`` each; their means over tensors are the
    statistics.
    """
    rows = [grads * grads, m * m, params * params, grads * m, v]
    rows += [v * v] * ("v^2" in spec.stats)
    rows += [(x == 0).to(x.dtype) for x in (grads, m)] if spec.enhanced else []
    return torch.stack(rows)


def group_features(
    spec: FeatureSpec,
    layout: Layout,
    grouping: Grouping,
    stats: Tensor,
    state: dict[str, Tensor],
    progress: Tensor,
    gates: Tensor | None = None,
) -> Tensor:
    """Features ``[columns, G]`` of groups from ``stats [len(spec.stats), S]``.

    Args:
        state: ``step``, and ``log_power [2, S]``, the logarithms of the betas' products, for
            unbiased moments.
        progress: 0-d, the time feature.
        gates: ``[columns]``, factors on columns. On the raw scale they come before the
            standardisation, as published.
    """
    if spec.version == "tokens":
        features = grouping.mean(token_features(layout, stats, state, progress))
        return features if gates is None else gates[:, None] * features
    features = _statistics(spec, layout, grouping, stats, state)
    if spec.time:
        time = progress[None, None].expand(1, grouping.num).to(features.dtype)
        features = torch.cat([features, time])
    if spec.shortened:
        features = features[: spec.truncated]
    raw = spec.scale == "raw"
    if gates is not None:
        if spec.shortened:  # they may be one more than the gates, or fewer
            row = torch.arange(features.shape[0], device=gates.device)
            gates = gates[row.clamp_max(len(gates) - 1)]
        gates = gates[:, None]
    if gates is not None and raw:
        features = gates * features
    if spec.normed:
        some, rest = features[: spec.statistics], features[spec.statistics :]
        features = torch.cat([standardised(some, 1e-8 if raw else 1e-3), rest])
    return features if gates is None or raw else gates * features


def standardised(x: Tensor, eps: float) -> Tensor:
    """Rows of ``[F, G]`` to mean 0 and standard deviation (of G - 1) about 1."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (_root((centred * centred).sum(-1, keepdim=True) / (x.shape[-1] - 1)) + eps)


def _statistics(
    spec: FeatureSpec, layout: Layout, grouping: Grouping, stats: Tensor, state: dict[str, Tensor]
) -> Tensor:
    tensors = _raw(spec, layout, stats) if spec.scale == "raw" else _log(spec, stats, state)
    if not spec.enhanced:
        means = grouping.mean(tensors)
        return torch.cat([means, _root(grouping.variance(tensors))]) if spec.plus else means
    means, variances = grouping.mean(tensors[:2]), grouping.variance(tensors[:2])
    zeros = grouping.mean(stats[-2:])
    sizes, vectors, depth = grouping.mean(_shapes(layout, spec.scale, stats))
    return torch.stack(
        [means[0], variances[0], means[1], variances[1], *zeros, sizes, vectors, depth]
    )


def _raw(spec: FeatureSpec, layout: Layout, stats: Tensor) -> Tensor:
    """Norms of g, m, p, the cosine, and the norm of v: ``[4 or 5, S]``."""
    numel = stats.new_tensor([slot.numel for slot in layout.slots])
    g, m, p = _root(stats[:3] * numel)
    cosine = stats[3] * numel / (g.clamp_min(1e-8) * m.clamp_min(1e-8))
    rows = [g, m, p, cosine]
    if spec.v_norms:
        rows.append(_root(stats[spec.stats.index("v^2")] * numel))
    return torch.stack(rows)


def _log(spec: FeatureSpec, stats: Tensor, state: dict[str, Tensor]) -> Tensor:
    """ln of root mean squares over 5, the cosine, and the same of sqrt(v): ``[4 or 5, S]``."""
    unbias = 1.0 / (-torch.expm1(state["log_power"])).clamp_min(1e-3)
    g2, m2, p2, gm, v = stats[:5]
    cosine = gm * torch.rsqrt(m2 + TINY) * torch.rsqrt(g2 + TINY)
    squares = [g2, m2 * unbias[0] ** 2, p2]
    logs = 0.1 * torch.log(torch.stack(squares + [v * unbias[1]] * spec.v_norms) + TINY)
    return torch.cat([logs[:3], cosine[None], logs[3:]])


def _shapes(layout: Layout, scale: str, like: Tensor) -> Tensor:
    """ln(size + 1), whether it is a vector, and depth in [0, 1]: ``[3, S]``; the first over 10 on
    the log scale.

    Depth as published is the first number in the name, over the greatest of them all.
    """
    raw = scale == "raw"
    sizes = [math.log(s.numel + 1) * (1.0 if raw else 0.1) for s in layout.slots]
    most = (1,) if raw else (0, 1)  # as published, a single number is no vector
    vectors = [float(len(s.shape) in most or s.name.endswith("bias")) for s in layout.slots]
    depths = [s.numbered if raw else s.depth for s in layout.slots]
    return torch.tensor([sizes, vectors, depths], device=like.device, dtype=like.dtype)


def _root(x: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0, not infinite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
