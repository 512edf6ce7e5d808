"""MetaAdamW's saved state: torch's own, and the network with all that trains it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from lo_framework.optim.metaadam.members import check_settings
from lo_framework.optim.metaadam.plan import Held
from lo_framework.optim.uncast import ByPlace, load_uncast
from lo_framework.spec import UserError

if TYPE_CHECKING:
    from lo_framework.optim.meta_adamw import MetaAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")
STARTS = (
    "seed",
    "head_scale",
    "lr",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
    "sam_rho",
)  # where it began says nothing


def dump(optimizer: MetaAdamW) -> dict[str, Any]:
    weighting, held = optimizer.weighting, optimizer._factors
    return {
        "kind": _kind(optimizer),
        "updates": optimizer.updates,
        "factors": None
        if held is None
        else {"active": list(held.active), "alpha": held.alpha, "beta": held.beta},
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
    if not isinstance(mine, dict) or "kind" not in mine:
        raise UserError("this state is of another optimizer class, not of MetaAdamW")
    for word, value in _kind(optimizer).items():
        if mine["kind"].get(word) != value:
            what = f"another {word}" if word != "groups" else "another grouping or other parameters"
            raise UserError(f"this state is of {what}: build MetaAdamW as it was saved")
    _check_whole(optimizer, mine)
    for group in state_dict["param_groups"]:
        check_settings(group)

    def check(saved: ByPlace) -> None:
        params = optimizer.members.params
        for i, state in saved.items():
            if missing := {"step", *MOMENTS} - state.keys():
                raise _damaged(f"parameter {i} has no {min(missing)}")
            for name in MOMENTS if i < len(params) else ():
                if state[name].shape != params[i].shape:
                    shapes = tuple(params[i].shape), tuple(state[name].shape)
                    what = f"parameter {i} has shape {shapes[0]}, its {name} {shapes[1]}"
                    raise UserError(f"this state is of other parameters: {what}")

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


def _check_whole(optimizer: MetaAdamW, mine: dict[str, Any]) -> None:
    """Raises UserError where a part is missing or does not fit the network."""
    if missing := dump(optimizer).keys() - mine.keys():
        raise _damaged(f"it has no {min(missing)}")
    own, meta = optimizer.network.theta(), mine["meta"]
    if own.keys() != mine["network"].keys() or any(
        own[k].shape != x.shape for k, x in mine["network"].items()
    ):
        raise _damaged("its network has other weights")
    shapes, inner = [p.shape for p in optimizer._meta.params], meta.get("optimizer", {})
    fits = "skipped" in meta and [
        len(group["params"]) for group in inner.get("param_groups", ())
    ] == [len(shapes)]
    for k, state in inner.get("state", {}).items():
        tensors = [x for x in state.values() if isinstance(x, torch.Tensor) and x.dim()]
        fits = fits and k in range(len(shapes)) and all(x.shape == shapes[k] for x in tensors)
    if not fits:
        raise _damaged("what trains the network does not fit it")
    if optimizer.weighting is not None and (
        wanted := optimizer.weighting.dump().keys() - mine["weighting"].keys()
    ):
        raise _damaged(f"its weighting has no {min(wanted)}")
    held = mine["factors"]
    if held is not None and not set(held["active"]) <= set(range(len(optimizer.members.params))):
        raise _damaged("its factors are of other parameters")


def _damaged(what: str) -> UserError:
    return UserError(f"this state is damaged: {what}")


def _held(optimizer: MetaAdamW, saved: dict[str, Any] | None) -> Held | None:
    if saved is None:
        return None
    active, like = tuple(saved["active"]), optimizer.network.head
    labels = optimizer.members.plan(active).grouping.labels
    return Held(
        active, labels, saved["alpha"].to(like, copy=True), saved["beta"].to(like, copy=True)
    )


def _kind(optimizer: MetaAdamW) -> dict[str, Any]:
    network = {
        key: value for key, value in asdict(optimizer.network.config).items() if key not in STARTS
    }
    return {
        "network": network,
        "objective": f"{optimizer.objective}, {type(optimizer.weighting).__name__}",
        "behaviour": asdict(optimizer.differences),
        "groups": [label for _, _, label in optimizer.members.groups],
    }
