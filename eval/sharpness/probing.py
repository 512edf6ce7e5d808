"""What is seen of a run while it trains: the full-split training loss, the path it takes, and the
probe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lo_framework.eval.running.pool import describe
from lo_framework.eval.sharpness.numbers import number, numbers
from lo_framework.eval.sharpness.probe import Correlation, Probe, Step
from lo_framework.eval.sharpness.settings import NO_PROBE, Settings
from lo_framework.eval.sharpness.surface import sample
from lo_framework.inner.step import Carry, Draw
from lo_framework.layout import Layout
from lo_framework.protocols import Task
from lo_framework.regularization import make_regularizer

CURVES = (
    "cosine_correction",
    "cosine_gradient",
    "cosine_orthogonal",
    "correction_ratio",
    "step_size",
)


class Watcher:
    """A callback for `lo_framework.inner.rollout.rollout` of one run."""

    def __init__(self, task: Task, layout: Layout, settings: Settings) -> None:
        self.task, self.layout, self.settings = task, layout, settings
        # On big data the whole split at a hundred steps takes many times as long as the training.
        self.data = sample(task.full("train"), settings.level.watched_rows, seed=0)
        self.watched = set(settings.watched)
        self.steps: list[int] = []
        self.losses: list[float | None] = []
        self.paths: list[float] = []
        self.path = 0.0
        self.before: Carry | None = None
        self.probed: list[int] = []
        self.probe: Probe | None = None
        self.failure = ""
        if settings.probe != NO_PROBE:
            self.probe = Probe(task, layout, make_regularizer(settings.probe), train_data=self.data)

    def __call__(self, t: int, carry: Carry, draw: Draw | None) -> None:
        if self.before is not None:
            assert draw is not None
            self.path += float((carry.params[0] - self.before.params[0]).double().norm())
            self._look(t - 1, self.before, carry, draw)
        if t in self.watched:
            self.steps.append(t)
            self.losses.append(self._loss(carry))
            self.paths.append(self.path)
        self.before = carry

    def found(self) -> dict[str, Any]:
        """JSON values: lists of one length, at the watched steps."""
        watch = {"steps": self.steps, "loss": self.losses, "path": self.paths}
        return {"watch": watch, "probe": self._curves(), "probe_failure": self.failure}

    def _look(self, t: int, before: Carry, after: Carry, draw: Draw) -> None:
        """Show the probe the update of step ``t``. What it cannot do (a model without a batching
        rule) ends it only.
        """
        if self.probe is None or self.failure:
            return
        try:
            if t in self.settings.probed:
                self.probe.look(
                    Step(before.params, after.params, before.buffers, draw.train, draw.noise)
                )
                self.probed.append(t)
            else:
                self.probe.travel((after.params - before.params).norm(dim=-1))
        except Exception as error:
            self.failure = describe(error)

    def _curves(self) -> dict[str, Any] | None:
        if not self.probed:
            return None
        assert self.probe is not None
        found: Correlation = self.probe.found()
        curves = {name: numbers(getattr(found, name)[0].tolist()) for name in CURVES}
        keys = {
            "loss": numbers(found.train_loss[0].tolist()),
            "path": numbers(found.path_length[0].tolist()),
        }
        return {"steps": self.probed, **keys, **curves}

    def _loss(self, carry: Carry) -> float | None:
        """None once diverged."""
        if not bool(carry.alive[0]):
            return None
        buffers: dict[str, Tensor] = {name: x[0] for name, x in carry.buffers.items()}
        with torch.no_grad():
            return number(
                self.task.metrics(self.layout.unflatten(carry.params[0]), buffers, self.data)[
                    "loss"
                ]
            )


def check_probe(spec: str) -> str:
    """Raises UserError: an unknown regularizer or option."""
    if spec != NO_PROBE:
        make_regularizer(spec)
    return spec
