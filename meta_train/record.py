"""Results of one outer step, put together from the shards: meta-gradient, line in the log,
the curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lo_framework.inner.step import Family
from lo_framework.learned.base import Theta
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.meta_train.growth import Stage
from lo_framework.objectives.weighting import Weighting
from lo_framework.optimizees.task import Task

Metrics = dict[str, float]


def mean(grads: Sequence[Theta]) -> Theta:
    """Over shards, summed in their order."""
    return {name: sum(grad[name] / len(grads) for grad in grads) for name in grads[0]}  # type: ignore[misc]


def by_family(metrics: Sequence[Metrics], names: Sequence[str], shards: int) -> dict[str, Metrics]:
    """Means over the ``shards`` of each family; shard s is of family s // shards."""
    families: dict[str, Metrics] = {}
    for shard, measured in enumerate(metrics):
        family = families.setdefault(names[shard // shards], {})
        for name, value in measured.items():
            family[name] = family.get(name, 0.0) + value / shards
    return families


def row(stage: Stage, families: dict[str, Metrics], outcome: Metrics) -> dict[str, Any]:
    """The step's line in ``metrics.jsonl``."""
    line: dict[str, Any] = {"stage": stage.index, "kind": stage.kind, "families": families}
    for key in ("meta_loss", "nonfinite", "diverged"):
        line[key] = sum(m.get(key, 0.0) for m in families.values()) / len(families)
    return line | outcome


def curves(line: dict[str, Any]) -> dict[str, float]:
    """The points of a step that its line in the log has as well."""
    points = {
        f"{key}/{name}": value
        for name, family in line["families"].items()
        for key, value in family.items()
    }
    points |= {f"outer/{key}": line[key] for key in ("grad_norm", "clip_ratio", "skipped")}
    points |= {f"weight/{name}": weight for name, weight in line.get("weights", {}).items()}
    points |= {f"probe/{name}": ratio for name, ratio in line.get("probes", {}).items()}
    points |= {"regularizer/rho": line["rho"]} if "rho" in line else {}
    return points | {"rate/inner_steps_per_second": line["rate"]}


def weigh(line: dict[str, Any], weighting: Weighting, names: Sequence[str]) -> None:
    """Add the terms ``names`` (means over families, in their order) and the weights they had to
    ``line``; then learn the weights.
    """
    families = list(line["families"].values())
    line["terms"] = {
        name: sum(m[f"term_{name}"] for m in families) / len(families) for name in names
    }
    line["weights"] = dict(zip(names, weighting.weights(), strict=True))
    weighting.learn(torch.tensor(list(line["terms"].values()), dtype=torch.float64))


def step_sizes(stage: Stage, theta: Theta, tasks: Sequence[Task]) -> dict[str, float]:
    """Learned log10 step sizes per family at the start, middle and end of an episode, where the
    kind has them.
    """
    learned = stage.build()
    if not isinstance(learned, HyperAdamW):
        return {}
    learned.load_theta(theta)
    out = {}
    with torch.no_grad():
        for task in tasks:
            layout = Family(task, learned).layout.to(torch.device("cpu"))
            for progress in (0.0, 0.5, 1.0):
                raw = learned.hyper(layout, torch.tensor(progress))
                size = float(raw[0].mean()) / math.log(10)
                out[f"log10_step_size/{task.name}/{progress:g}"] = size
    return out
