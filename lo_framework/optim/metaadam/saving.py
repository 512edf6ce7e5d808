"""MetaAdamW's saved state: torch's own, and the network with all that trains it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from lo_framework.optim.metaadam.plan import Held
from lo_framework.optim.uncast import ByPlace, load_uncast
from optimizees.spec import UserError

if TYPE_CHECKING:
    from lo_framework.optim.meta_adamw import MetaAdamW

STARTS = ("seed", "head_scale", "lr", "beta1", "beta2", "eps", "weight_decay", "sam_rho")  # where it began says nothing


def dump(optimizer: MetaAdamW) -> dict[str, Any]:
    weighting, held = optimizer.weighting, optimizer._factors
    return {
        "kind": _kind(optimizer),
        "updates": optimizer.updates,
        "factors": None if held is None else {"active": list(held.active), "alpha": held.alpha, "beta": held.beta},
        "stale": optimizer._stale,
        "network": optimizer.network.theta(),
        "meta": optimizer._meta.state_dict(),
        "weighting": weighting.dump() if weighting is not None else {},
    }


def load(optimizer: MetaAdamW, state_dict: dict[str, Any]) -> None:
    """Everything is checked before anything changes.

    Raises:
        UserError: another optimizer class, network, objective or grouping, or other parameters.
    """
    mine = state_dict.get("metaadamw")
    if mine is None:
        raise UserError("this state is of another optimizer class, not of MetaAdamW")
    for word, value in _kind(optimizer).items():
        if mine["kind"][word] != value:
            what = f"another {word}" if word != "groups" else "another grouping or other parameters"
            raise UserError(f"this state is of {what}: build MetaAdamW as it was saved")

    def check(saved: ByPlace) -> None:
        for i, state in saved.items():
            if i < len(optimizer.members.params) and state["exp_avg"].shape != optimizer.members.params[i].shape:
                shapes = tuple(optimizer.members.params[i].shape), tuple(state["exp_avg"].shape)
                raise UserError(
                    f"this state is of other parameters: parameter {i} has shape {shapes[0]}, its moments {shapes[1]}"
                )

    def rebuild(saved: ByPlace) -> None:
        optimizer.state.clear()
        optimizer.members.ages = [0] * len(optimizer.members.params)
        for i, state in saved.items():
            optimizer.members.start(i)
            for name, x in state.items():
                optimizer.state[optimizer.members.params[i]][name].copy_(torch.as_tensor(x))
            optimizer.members.ages[i] = int(state["step"])

    load_uncast(optimizer, state_dict, check, rebuild)
    optimizer.updates, optimizer._stale = mine["updates"], mine["stale"]
    optimizer._settle()
    optimizer._factors = _held(optimizer, mine["factors"])
    optimizer.network.load_theta(mine["network"])
    optimizer._meta.load_state_dict(mine["meta"])
    if optimizer.weighting is not None:
        optimizer.weighting.load(mine["weighting"])


def _held(optimizer: MetaAdamW, saved: dict[str, Any] | None) -> Held | None:
    if saved is None:
        return None
    active, like = tuple(saved["active"]), optimizer.network.head
    labels = optimizer.members.plan(active).grouping.labels
    return Held(active, labels, saved["alpha"].to(like, copy=True), saved["beta"].to(like, copy=True))


def _kind(optimizer: MetaAdamW) -> dict[str, Any]:
    network = {key: value for key, value in asdict(optimizer.network.config).items() if key not in STARTS}
    return {
        "network": network,
        "objective": f"{optimizer.objective}, {type(optimizer.weighting).__name__}",
        "behaviour": asdict(optimizer.differences),
        "groups": [label for _, _, label in optimizer.members.groups],
    }
