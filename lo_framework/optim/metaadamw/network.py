"""The network of MetaAdamW: made, copied from a meta-trained optimizer, and given back as one."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from lo_framework.errors import UserError, whole
from lo_framework.learned import LearnedOptimizer, learned_from
from lo_framework.learned.attention import EMBEDDING, Attention, AttentionConfig, NetworkConfig
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.optim.metaadamw.published import Variant

Network = NetworkConfig | LearnedOptimizer | str | os.PathLike[str]
SIZES = ("width", "heads", "layers", "hidden_units", "seed")
HYPER_PART = tuple(name for name, _ in HyperAdamW(HyperAdamW.Config()).named_parameters())


def make_network(source: Network, variant: Variant, own_groups: bool) -> Attention:
    """A new network of these settings, or a copy of the one in an ``Attention`` or in its file.

    Args:
        own_groups: whether the user has named the groups, so that the settings do not.

    Raises:
        UserError: settings that cannot be, another kind of optimizer.
    """
    if not isinstance(source, NetworkConfig):
        network = _copied(learned_from(source))
        if variant.published and network.config.encoder != "published":
            raise UserError(
                "reproduce is for the published network, and this optimizer has another: "
                "give no reproduce"
            )
        return network
    settings = asdict(source)
    for name in SIZES:
        settings[name] = whole(f"network: {name}", settings[name], least=None)
    if own_groups:
        settings["grouping"] = "tensor"
    if variant.published:
        settings |= {"encoder": "published", "scale": "raw"}
        settings["hidden_units"] = settings["hidden_units"] or 32
    if not settings["width"]:
        heads = max(settings["heads"], 1)
        settings["width"] = -(-source.inputs // heads) * heads if variant.published else 16
    try:
        network = Attention(AttentionConfig(**settings))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"network: {error}") from None
    if variant.published and variant.truncated_plus:
        network.spec = replace(network.spec, truncated=network.config.width - EMBEDDING)
    return _checked(network)


def _checked(network: Attention) -> Attention:
    if network.config.head != "bounded" or network.config.sam_rho:
        raise UserError(
            "MetaAdamW has a bounded head and plain gradients; use Learned for this optimizer"
        )
    return network


def _copied(learned: LearnedOptimizer) -> Attention:
    if type(learned) is not Attention:
        raise UserError(
            f'MetaAdamW needs an optimizer of kind "attention", not "{learned.kind}"; '
            "use Learned for it"
        )
    theta = _checked(learned).theta()
    if bool(theta["by_role"].any()) or bool(theta["schedule"].any()):
        raise UserError(
            "this optimizer has learned schedules or values for roles, which MetaAdamW has not: "
            "use Learned, or meta-train with --learned attention:head=bounded,learn=factors"
        )
    return copy.deepcopy(learned).requires_grad_()


def hyper_of(network: Attention) -> dict[str, Any]:
    """AdamW's settings in a meta-trained optimizer."""
    c = network.config
    if not network.default.any():  # to the last digit
        betas: tuple[float, ...] = (c.beta1, c.beta2)
        return {"lr": c.lr, "betas": betas, "eps": c.eps, "weight_decay": c.weight_decay}
    raw = network.start.double() + c.gain * network.default.detach().double()
    betas = tuple(torch.sigmoid(raw[1:3]).tolist())
    lr, weight_decay, eps = raw[[0, 3, 4]].exp().tolist()
    return {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}


def as_learned(network: Attention, group: Mapping[str, Any]) -> Attention:
    """A learned optimizer that does what MetaAdamW does with this network and the settings of
    ``group``.

    Raises:
        UserError: settings that have no logarithm, such as a learning rate of 0.
    """
    beta1, beta2 = group["betas"]
    own = {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2}
    own |= {name: group[name] for name in ("eps", "weight_decay")}
    try:
        learned = Attention(replace(network.config, **own))
    except ValueError as error:
        raise UserError(f"a learned optimizer cannot have these settings: {error}") from None
    learned.load_theta({name: x for name, x in network.theta().items() if name not in HYPER_PART})
    return learned
