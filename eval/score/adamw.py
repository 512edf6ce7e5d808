"""Tuned AdamW's results on a suite, stored beside its file: what every score is relative to.

A result counts only for what it was computed from: the problem's text, its data, its initial
parameters and the tuning protocol. Texts and shapes are compared by a digest. Numbers are compared
by two projections each, to four digits: the last bits of a random draw differ between processors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lo_framework.errors import shown
from lo_framework.eval.running.envelope import Envelope, require, require_shape
from lo_framework.eval.running.protocol import report_seeds
from lo_framework.eval.running.store import digest
from lo_framework.eval.running.tuning import MAX_EXTENSIONS, Grid
from lo_framework.eval.score.measures import CHOSEN, EARLY, WIDTH, Scored
from lo_framework.eval.score.suite import SHIPPED, Problem
from lo_framework.files.atomic import atomic_write_text, reason
from lo_framework.inner.rollout import _INIT, seeded
from lo_framework.optimizees.task import SPLITS, Task
from lo_framework.spec import UserError

ADAMW = "adamw"
TUNING_SEEDS = 2
CLOSE = 1e-4  # relative, of projections
MOST = 0.01  # relative, of last losses that AdamW reaches again
SAMPLE = 1 << 20  # numbers of a tensor in its projections


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the results on one problem were computed from."""

    digest: str
    data: tuple[float, float]
    parameters: tuple[float, float]

    def differs(self, other: Origin) -> str:
        """What is not the same; empty if everything is."""
        if self.digest != other.digest:
            return "its text, shapes or tuning"
        parts = (("data", self.data, other.data), ("start", self.parameters, other.parameters))
        return next((what for what, a, b in parts if not np.allclose(a, b, CLOSE, CLOSE)), "")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """AdamW on the problems of a suite; ``origins`` by the problem's name."""

    results: tuple[Scored, ...] = ()
    origins: dict[str, Origin] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError: parts do not fit each other."""
        require(((name,) for name in self.origins), ((one.task,) for one in self.results))
        for one in self.results:
            require(((metric.key,) for metric in CHOSEN), ((key,) for key in one.settings))
            require([("last_loss",), ("steps",)], ((key,) for key in one.metrics))
            for name, values in {**one.metrics, "diverged": one.diverged}.items():
                require_shape(f"{shown(one.task)}: {name}", values, len(self.seeds))


FILE = Envelope("score --tune", Stored)


def place(suite: Path) -> Path:
    """The file beside a suite's: ``mine.adamw.json`` of ``mine.json``."""
    return suite.with_name(f"{suite.stem}.adamw.json")


def read(suite: Path) -> Stored:
    """What is stored for the suite in the file ``suite``; nothing if there is no such file.

    Raises:
        UserError: a file that cannot be read or is damaged.
    """
    path = place(suite)
    try:
        return FILE.read(path.read_text("utf-8"), repr(str(path)))
    except FileNotFoundError:
        return Stored()
    except (OSError, UnicodeDecodeError) as error:
        words = reason(error) if isinstance(error, OSError) else "not text"
        raise UserError(f"cannot read {str(path)!r}: {words}") from None


def require_place(suite: Path, stored: Stored, seeds: Sequence[int], whole: bool) -> None:
    """Raise UserError: results on ``seeds`` of a suite, or of a part of it, cannot be stored."""
    path = place(suite)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--tune: {str(path)!r} cannot be written; copy the suite and name it")
    if not whole and stored.results and stored.seeds != tuple(seeds):
        raise UserError(
            f"--tune: the results of other problems in {str(path)!r} have {len(stored.seeds)} "
            f"seeds from {stored.seeds[0]}; tune all problems, or these on the same seeds"
        )


def write(suite: Path, stored: Stored) -> Path:
    """Store results beside the suite's file; returns where."""
    path = place(suite)
    atomic_write_text(path, FILE.write(stored))
    return path


def origin(problem: Problem, task: Task, grid: Grid) -> Origin:
    """What results on the problem follow from."""
    seed = report_seeds(1)[0]
    parameters, _ = task.init(seeded(seed, _INIT))
    data = [x for split in SPLITS for x in task.full(split)]
    text = [
        (task.name, problem.steps, task.batch_size),
        [(name, list(x.shape)) for name, x in parameters.items()],
        [list(x.shape) for x in data],
        (grid.settings, MAX_EXTENSIONS, TUNING_SEEDS, seed, WIDTH, EARLY),
    ]
    return Origin(
        digest=digest(json.dumps(text).encode()),
        data=_projections(data),
        parameters=_projections(parameters.values()),
    )


def _projections(tensors: Iterable[torch.Tensor]) -> tuple[float, float]:
    """The root mean square of some of the numbers, and their sum with weights between -1 and 1."""
    rows = []
    for tensor in tensors:
        flat = tensor.detach().cpu().reshape(-1)
        rows.append(flat[:: 1 + len(flat) // SAMPLE].double().numpy())
    x = np.concatenate(rows)
    weights = np.cos(np.arange(x.size, dtype=np.float64))
    return float(np.sqrt(np.mean(x * x))), float(x @ weights / np.sqrt(x.size))


def usable(
    stored: Stored, now: dict[str, Origin], seeds: Sequence[int], suite: Path
) -> dict[str, Scored]:
    """AdamW's results on the problems that ``now`` names, on ``seeds``.

    Raises:
        UserError: there are none of a problem or a seed, or they are of another one; the line says
            what makes them.
    """
    faults = []
    for name, origin_now in now.items():
        there = stored.origins.get(name)
        fault = "not there" if there is None else there.differs(origin_now)
        faults += [f"{name} ({fault})"] if fault else []
    own = "" if suite == SHIPPED else f" --suite {suite}"
    again = f"run `lo-eval score --tune{own} --seeds {len(seeds)}`"
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        listed = ", ".join(faults[:3]) + more
        raise UserError(f"the results of tuned AdamW do not fit these problems: {listed}; {again}")
    if tuple(seeds) != stored.seeds[: len(seeds)]:
        have = f"{stored.seeds[0]} to {stored.seeds[-1]}" if stored.seeds else "none"
        raise UserError(
            f"tuned AdamW has results of seeds {have}, and {seeds[0]} to {seeds[-1]} are asked "
            f"for; without --seed-offset, {again}"
        )
    results = {one.task: one for one in stored.results}
    return {name: results[name].first(len(seeds)) for name in now}
