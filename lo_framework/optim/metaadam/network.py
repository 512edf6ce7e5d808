"""The attention inside MetaAdamW: made, taken over from a meta-trained optimizer, and given back as
one.
"""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

from lo_framework.learned import LearnedOptimizer, learned_from
from lo_framework.learned.attention import EMBEDDING, Attention, AttentionConfig
from lo_framework.learned.group_features import FeatureSpec
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.optim.metaadam.differences import Differences
from lo_framework.spec import UserError, nearest

Source = LearnedOptimizer | str | os.PathLike[str] | Mapping[str, Any] | None
SIZES = ("width", "heads", "layers", "hidden_units", "head_scale", "seed")
HYPER_PART = tuple(name for name, _ in HyperAdamW(HyperAdamW.Config()).named_parameters())


def whole(name: str, number: Any, least: int | None = 1) -> int:
    """Of whatever kind the number is; raises UserError unless it is whole and at least ``least``."""
    found = None
    if isinstance(number, Real) and float(number).is_integer():
        found = int(float(number))
    elif hasattr(number, "__index__"):
        found = operator.index(number)
    if found is None or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise UserError(f"{name} must be a whole number{bound}, not {number!r}")
    return found


def make_network(
    source: Source,
    differences: Differences,
    *,
    features: str,
    grouping: str,
    v_norms: bool,
    time: bool,
    gating: bool,
    alpha_range: float,
    beta_range: float,
) -> Attention:
    """A new network of the sizes in ``source``, or a copy of the one in an ``Attention`` or in a
    file.

    Raises:
        UserError: sizes or ranges that cannot be, a file of another kind of optimizer.
    """
    published = differences.network == "published"
    if source is not None and not isinstance(source, Mapping):
        network = _taken(learned_from(source))
        if published and network.config.encoder != "published":
            raise UserError(
                "reproduce is for the published network, and this optimizer has another: give no reproduce"
            )
        return network
    sizes: dict[str, Any] = {"width": 16, "heads": 4, "layers": 2, **(source or {})}
    for name in sizes:
        if name not in SIZES:
            raise UserError(
                f'attention: no setting "{name}"{nearest(name, SIZES)}; known: {", ".join(SIZES)}'
            )
        if name != "head_scale":
            sizes[name] = whole(f"attention: {name}", sizes[name], least=None)
    spec = FeatureSpec(
        version=features, scale="raw" if published else "log", v_norms=v_norms, time=time
    )
    if published:
        needed, heads = spec.columns + EMBEDDING * (features == "enhanced"), max(sizes["heads"], 1)
        sizes.setdefault("hidden_units", 32)
        if "width" not in (source or {}):
            sizes["width"] = -(-needed // heads) * heads
    try:
        config = AttentionConfig(
            **sizes,
            features=features,
            grouping=grouping,
            scale=spec.scale,
            v_norms=v_norms,
            time=time,
            gating=gating,
            alpha_range=alpha_range,
            beta_range=beta_range,
            head="bounded",
            encoder=cast(Any, differences.network),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"attention: {error}") from None
    network = Attention(config)
    if differences.truncated_plus:
        network.spec = replace(network.spec, truncated=network.config.width - EMBEDDING)
    return network


def check_agrees(network: Attention, usual: Mapping[str, Any], **asked: Any) -> None:
    """Raises UserError for a setting of MetaAdamW that is neither the usual one nor that of a
    meta-trained network.
    """
    for name, value in asked.items():
        own = getattr(network.config, name)
        if value not in (own, usual[name]):
            raise UserError(
                f"{name}={value!r}, but the network that attention gives has {own!r}: leave it out"
            )


def _taken(learned: LearnedOptimizer) -> Attention:
    """A copy of it, fit for MetaAdamW."""
    if type(learned) is not Attention:
        raise UserError(
            f'MetaAdamW needs an optimizer of kind "attention", not "{learned.kind}"; use Learned for it'
        )
    if learned.config.head != "bounded" or learned.config.sam_rho:
        raise UserError(
            "MetaAdamW has a bounded head and plain gradients; use Learned for this optimizer"
        )
    theta = learned.theta()
    if bool(theta["by_role"].any()) or bool(theta["schedule"].any()):
        raise UserError(
            "this optimizer has learned schedules or values for roles, which MetaAdamW has not: use Learned, or "
            "meta-train with --learned attention:head=bounded,learn=factors"
        )
    return copy.deepcopy(learned).requires_grad_()


def hyper_of(network: Attention) -> dict[str, Any]:
    """AdamW's settings in a meta-trained optimizer."""
    c = network.config
    raw = (network.start.double() + c.gain * network.default.detach().double()).tolist()
    betas = tuple(float(torch.sigmoid(torch.tensor(x, dtype=torch.float64))) for x in raw[1:3])
    plain = not network.default.any()
    if plain:  # to the last digit
        return {
            "lr": c.lr,
            "betas": (c.beta1, c.beta2),
            "eps": c.eps,
            "weight_decay": c.weight_decay,
        }
    lr, weight_decay, eps = (
        float(torch.tensor(x, dtype=torch.float64).exp()) for x in (raw[0], raw[3], raw[4])
    )
    return {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}


def as_learned(network: Attention, group: Mapping[str, Any]) -> Attention:
    """A learned optimizer that does what MetaAdamW does with this network and the settings of
    ``group``.

    Raises:
        UserError: settings that have no logarithm, such as a learning rate of 0.
    """
    own = {f.name: getattr(network.config, f.name) for f in fields(AttentionConfig)}
    beta1, beta2 = group["betas"]
    own |= {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
    own["weight_decay"] = group["weight_decay"]
    try:
        learned = Attention(AttentionConfig(**own))
    except ValueError as error:
        raise UserError(f"a learned optimizer cannot have these settings: {error}") from None
    learned.load_theta({name: x for name, x in network.theta().items() if name not in HYPER_PART})
    return learned


def trained_names(network: Attention, differences: Differences) -> list[str]:
    """Meta-parameters that a meta step moves."""
    left_out = HYPER_PART if differences.gates_learn else (*HYPER_PART, "gates")
    return [name for name, _ in network.named_parameters() if name not in left_out]


def penalty(network: Attention, differences: Differences) -> Tensor:
    """What is added to the meta-loss: as released, norms (not squared) of encoder and head; and
    sizes of gates.
    """
    total = network.head.new_zeros(())
    if differences.norm_penalty:
        weights: list[Tensor] = [network.head]
        for name, w in network.blocks.named_parameters():
            # Two norms' gains, and two norms' shifts, are one tensor each here.
            weights += w.unbind() if name.endswith(("gains", "shifts")) else [w]
        total = total + differences.norm_penalty * sum(_norm(w) for w in weights)
    if network.config.gating and differences.gates_learn:
        published = network.config.encoder == "published"
        size = network.gates.abs() if published else torch.sigmoid(network.gates)
        total = total + differences.gate_penalty * size.sum()
    return total


def _norm(x: Tensor) -> Tensor:
    return (
        torch.linalg.vector_norm(x) if bool(x.any()) else x.sum()
    )  # the norm of zeros has no derivative
