"""MetaAdamW written down slowly from the paper and from descriptions of its released code:
features, groups, meta-loss.

g gradient, m, v moments, p parameter, alpha and beta factors of learning rate and decay, sg
logistic sigmoid, Phi the network's weights, theta the model's, lambda1 and lambda2 weights of
flatness and direction, s the log variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Rows = list[list[float]]


def number_in(name: str) -> int | None:
    """The first path component that is an integer."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def raw_features(
    version: str,
    names: Sequence[str],
    tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    groups: Sequence[Sequence[int]],
    tau: float | None,
    v_norms: bool,
    gates: Sequence[float] | None = None,
) -> Rows:
    """As published: a row for each group, of ``tensors`` (g, m, p, v), before any padding."""
    largest = max([number_in(name) or 0 for name in names])
    rows = []
    for group in groups:
        gn, mn, pn, cs, vn, gz, mz, size, bias, depth = ([] for _ in range(10))  # type: ignore[var-annotated]
        for i in group:
            g, m, p, v = tensors[i]
            gn.append(float(torch.linalg.norm(g)))
            mn.append(float(torch.linalg.norm(m)))
            pn.append(float(torch.linalg.norm(p)))
            vn.append(float(torch.linalg.norm(v)))
            cs.append(float((g * m).sum()) / (max(gn[-1], 1e-8) * max(mn[-1], 1e-8)))
            gz.append(float((g == 0).double().mean()))
            mz.append(float((m == 0).double().mean()))
            size.append(math.log(p.numel() + 1))
            bias.append(float(names[i].endswith("bias") or p.dim() == 1))
            depth.append((number_in(names[i]) or 0) / max(largest, 1))
        columns = [gn, mn, pn, cs] + [vn] * v_norms
        if version == "enhanced":
            row = [
                np.mean(gn),
                np.var(gn),
                np.mean(mn),
                np.var(mn),
                np.mean(gz),
                np.mean(mz),
                np.mean(size),
            ]
            row += [np.mean(bias), np.mean(depth)]
        else:
            row = [np.mean(c) for c in columns]
            row += [np.std(c, ddof=0) for c in columns] if version.endswith("plus") else []
        rows.append([float(x) for x in row])
    return _finished(rows, version, tau, gates, eps=1e-8)


def released_plus(
    version: str,
    names: Sequence[str],
    tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    groups: Sequence[Sequence[int]],
    tau: float | None,
    v_norms: bool,
    width: int,
    gates: Sequence[float] | None = None,
) -> Rows:
    """``basic_plus`` and ``norm_basic_plus`` as released: the vector of the enhanced version, cut
    or filled with zeros to all but 4 of the ``width`` columns, and 4 zeros for an embedding that
    does not exist; then gates; then ``norm_`` standardises the first 8 columns, 10 with the second
    moment.
    """
    rows = []
    for row in raw_features("enhanced", names, tensors, groups, tau, v_norms):
        own = row[: width - 4]
        rows.append(own + [0.0] * (width - len(own)))
    if gates is not None:
        rows = [[x / (1 + math.exp(-gate)) for x, gate in zip(row, gates)] for row in rows]
    if version == "norm_basic_plus":
        num = 8 + 2 * v_norms
        front = standardised([row[:num] for row in rows], 1e-8)
        rows = [a + row[num:] for a, row in zip(front, rows)]
    return rows


def _finished(
    rows: Rows, version: str, tau: float | None, gates: Sequence[float] | None, eps: float
) -> Rows:
    factors = None if gates is None else [1 / (1 + math.exp(-raw)) for raw in gates]
    if factors is not None:
        rows = [[f * x for f, x in zip(factors, row)] for row in rows]
    if version.startswith("norm_"):
        rows = standardised(rows, eps)
    if tau is not None:
        rows = [[*row, tau * (1.0 if factors is None else factors[-1])] for row in rows]
    return rows


def standardised(rows: Rows, eps: float) -> Rows:
    columns = np.array(rows).T
    return np.stack([(c - c.mean()) / (c.std(ddof=1) + eps) for c in columns]).T.tolist()


def log_features(
    version: str,
    names: Sequence[str],
    tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    groups: Sequence[Sequence[int]],
    progress: float | None,
    v_norms: bool,
    corrections: Sequence[tuple[float, float]],
    depths: Sequence[float],
    gates: Sequence[float] | None = None,
) -> Rows:
    """The bounded ones: ln(root mean square) / 5 of g, of m_hat, of p and of sqrt(v_hat), and
    cos(g, m).

    ``corrections``: 1 - beta^t of each tensor; ``depths``: 0 at the first layer, 1 at the last.
    """
    rows = []
    for group in groups:
        found = []
        for i in group:
            (g, m, p, v), (c1, c2) = tensors[i], corrections[i]

            def log_rms(x: Tensor) -> float:
                return math.log(float((x * x).mean()) + 1e-14) / 10

            roots = [math.sqrt(float((x * x).mean()) + 1e-14) for x in (g, m)]
            cosine = float((g * m).mean()) / (roots[0] * roots[1])
            found.append(
                [log_rms(g), log_rms(m / c1), log_rms(p), cosine]
                + [log_rms((v / c2).sqrt())] * v_norms
            )
        columns = np.array(found).T
        if version == "enhanced":
            row = [columns[0].mean(), columns[0].var(), columns[1].mean(), columns[1].var()]
            row += [
                np.mean([float((tensors[i][k] == 0).double().mean()) for i in group])
                for k in (0, 1)
            ]
            row += [np.mean([math.log(tensors[i][2].numel() + 1) / 10 for i in group])]
            row += [
                np.mean([tensors[i][2].dim() < 2 for i in group]),
                np.mean([depths[i] for i in group]),
            ]
        else:
            row = [*columns.mean(1)] + ([*columns.std(1)] if version.endswith("plus") else [])
        rows.append([float(x) for x in row])
    rows = standardised(rows, 1e-3) if version.startswith("norm_") else rows
    rows = rows if progress is None else [[*row, progress] for row in rows]
    factors = [1.0] * len(rows[0]) if gates is None else [2 / (1 + math.exp(-raw)) for raw in gates]
    return [[f * x for f, x in zip(factors, row)] for row in rows]


def fine_grained(model: nn.Module) -> list[tuple[str, int, bool]]:
    """The published key of each parameter: layer type, depth bucket, whether it is a bias."""
    owners = {
        name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()
    }
    largest = max([number_in(name) or 0 for name in owners])
    classes = {
        nn.Linear: "linear",
        nn.Embedding: "embedding",
        nn.MultiheadAttention: "attention",
        nn.LayerNorm: "layernorm",
    }
    keys = []
    for name, p in model.named_parameters():
        low = name.lower()
        if "embed" in low:
            kind = "embedding"
        elif "attn" in low or "attention" in low:
            kind = "attention"
        elif "ffn" in low or "mlp" in low or "feed_forward" in low:
            kind = "ffn"
        elif "norm" in low:
            kind = "layernorm"
        else:
            kind = classes.get(type(owners[name]), "other")
        layer, bucket = number_in(name), 1
        if layer is not None and largest > 1:
            bucket = 0 if layer < largest / 3 else 2 if layer > 2 * largest / 3 else 1
        keys.append((kind, bucket, p.dim() == 1 or name.endswith("bias")))
    return keys


def partition(keys: Sequence[Any]) -> list[list[int]]:
    """Places with equal keys, in order of first appearance."""
    return [[i for i, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]
