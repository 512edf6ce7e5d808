"""Whether a saved state of a MetaAdamW is whole, and of one like this."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from lo_framework.errors import UserError
from lo_framework.optim.metaadamw.training import NetworkTrainer


def check_entry(
    own: dict[str, Any], entry: dict[str, Any], trainer: NetworkTrainer, num: int
) -> None:
    """Raise UserError unless ``entry`` is what an optimizer of ``num`` parameters, whose entry is
    ``own``, can go on from.
    """
    for word, value in own["kind"].items():
        if entry["kind"].get(word) != value:
            grouping = "another grouping or other parameters"
            what = grouping if word == "groups" else f"another {word}"
            raise UserError(f"this state is of {what}: build MetaAdamW as it was saved")
    refuse_missing("it", own, entry)
    shapes, saved_shapes = (
        {name: x.shape for name, x in each["network"].items()} for each in (own, entry)
    )
    if shapes != saved_shapes:
        raise damaged("its network has other weights")
    if not trainer.fits(entry["meta"]):
        raise damaged("what trains the network does not fit it")
    refuse_missing("its weighting", own["weighting"], entry["weighting"])
    factors = entry["factors"]
    if factors is not None and not set(factors["active"]) <= set(range(num)):
        raise damaged("its factors are of other parameters")


def refuse_missing(owner: str, wanted: Iterable[str], saved: Collection[str]) -> None:
    """Raise UserError if ``saved`` lacks a part of a state."""
    if missing := set(wanted).difference(saved):
        raise damaged(f"{owner} has no {min(missing)}")


def damaged(what: str) -> UserError:
    """The error of a saved state that nothing can have written."""
    return UserError(f"this state is damaged: {what}")
