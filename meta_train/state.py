"""State of a run between two outer steps, and its form in a checkpoint: tensors and a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from lo_framework.learned import of_version
from lo_framework.meta_train.incumbent import Incumbent, Quality
from lo_framework.meta_train.outer import OuterOptimizer
from lo_framework.meta_train.radius import Radius
from lo_framework.objectives.weighting import Weighting
from lo_framework.schema import AnyNumber, Positive, Range

Tensors = dict[str, Tensor]


@dataclass
class RunState:
    """State of a run between two outer steps; everything here is in its checkpoints."""

    step: int
    stage: int
    outer: OuterOptimizer
    incumbent: Incumbent
    reference: Quality
    start_lr: float
    repeatable: bool
    radius: Radius | None = None
    weighting: Weighting | None = None


@dataclass(frozen=True, kw_only=True)
class BestRecord:
    """The incumbent in a state's record, without its tensors."""

    kind: str
    config: dict[str, Any]
    score: AnyNumber
    step: Annotated[int, Range(low=0)]
    quality: list[dict[str, AnyNumber]]


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """The record of a resume state, beside its tensors."""

    config: dict[str, Any]
    torch: str
    stages: list[tuple[str, int, int]]
    finished: bool
    stage: Annotated[int, Range(low=0)]
    outer_done: Annotated[int, Range(low=0)]
    repeatable: bool
    start_lr: Positive
    reference: list[dict[str, AnyNumber]]
    incumbent: BestRecord


def pack(run: RunState, shards: dict[int, Tensors]) -> tuple[Tensors, dict[str, Any]]:
    """Tensors ``outer.*``, ``incumbent.*``, ``shard.N.*``, ``radius.*`` and ``weighting.*``; the
    rest as a record.
    """
    groups: dict[str, Tensors] = {"outer": run.outer.dump(), "incumbent": run.incumbent.theta}
    groups |= {f"shard.{shard}": state for shard, state in shards.items()}
    groups |= {} if run.radius is None else {"radius": run.radius.dump()}
    groups |= {} if run.weighting is None else {"weighting": run.weighting.dump()}
    tensors = {f"{group}.{name}": x for group, named in groups.items() for name, x in named.items()}
    best = {name: value for name, value in vars(run.incumbent).items() if name != "theta"}
    meta = {
        "stage": run.stage,
        "outer_done": run.outer.done,
        "repeatable": run.repeatable,
        "start_lr": run.start_lr,
        "reference": run.reference,
        "incumbent": best,
    }
    return tensors, meta


def part(tensors: Tensors, group: str) -> Tensors:
    """One group of the tensors that :func:`pack` made."""
    return {
        name[len(group) + 1 :]: x for name, x in tensors.items() if name.startswith(group + ".")
    }


def incumbent_of(tensors: Tensors, best: BestRecord) -> Incumbent:
    """The incumbent of a checkpoint, with tensors of its own."""
    theta = {name: x.clone() for name, x in part(tensors, "incumbent").items()}
    values = {key: tuple(x) if isinstance(x, list) else x for key, x in best.config.items()}
    values = of_version(best.kind, values, 1)  # older states do not say it
    return Incumbent(theta, best.kind, values, best.score, best.step, best.quality)


def merged(parts: list[dict[int, Tensors]]) -> dict[int, Tensors]:
    """Shards of all workers in one dict."""
    return {int(shard): state for part in parts for shard, state in part.items()}
