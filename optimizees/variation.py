"""Families of tasks whose shapes, data and batches are drawn anew: what meta-training runs on.

A spec with ranges (`ranges.py`), or a bare name, which stands for the usual variation that its
optimizee was registered with::

    (family,) = make_variations("mlp:hidden=8..128,layers=1..4")
    family.draw(generator).name                              # "mlp:hidden=17x90/digits"
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lo_framework.errors import choose
from lo_framework.optimizees.datasets import DATASETS, Dataset, folder_of, load
from lo_framework.optimizees.pool import build_task, families, specs_of, usable_device
from lo_framework.optimizees.ranges import TRIES, Ranged
from lo_framework.optimizees.registry import TASKS
from lo_framework.optimizees.task import Task
from lo_framework.registry import Registry, place_of
from lo_framework.spec import UserError, canonical, parse_spec

CPU = torch.device("cpu")
VARY = ("usual", "none")


@dataclass(frozen=True)
class Variation:
    """One family: an optimizee and the data set that it needs, if any, both perhaps with ranges."""

    optimizee: Ranged
    dataset: Ranged | None
    folder: str | None = None
    device: torch.device = CPU

    @property
    def name(self) -> str:
        """The canonical spec, with its ranges."""
        return str(self.optimizee) if self.dataset is None else f"{self.optimizee}/{self.dataset}"

    @property
    def is_fixed(self) -> bool:
        """Whether every draw is the same task."""
        return not self.optimizee.varied and not (self.dataset and self.dataset.varied)

    def named(self) -> Task:
        """The task with the default of every option that is a range."""
        return self._build(
            self.optimizee.named(), self._load(self.dataset and self.dataset.named())
        )

    def draw(self, generator: torch.Generator) -> Task:
        """A concrete task, under its own canonical name; all that is random is from `generator`.

        Raises:
            UserError: `TRIES` draws in a row gave no task (a network too deep for its images).
        """
        dataset = self._load(self.dataset and self.dataset.draw(generator))
        for _ in range(TRIES):
            config = self._fitted(self.optimizee.draw(generator), dataset)
            try:
                return self._build(config, dataset)
            except UserError as error:
                problem = error
                if not self.optimizee.varied:
                    break
        raise problem

    def covers(self, optimizee: str, dataset: str) -> bool:
        """Whether a draw can be the task of these two specs; raises UserError for what they are
        not.
        """
        pairs: list[tuple[str, Registry[Any], Ranged]] = [(optimizee, TASKS, self.optimizee)]
        if self.dataset is not None:
            pairs.append((dataset, DATASETS, self.dataset))
        for spec, registry, ranged in pairs:
            entry, config = registry.parse(spec)
            other = registry[ranged.name]  # mlp-relu is mlp with another default
            if place_of(entry.build) != place_of(other.build) or not ranged.covers(config):
                return False
        return True

    def _load(self, config: Any) -> Dataset | None:
        return load(canonical(self.dataset.name, config), self.folder) if self.dataset else None

    def _build(self, config: Any, dataset: Dataset | None) -> Task:
        return build_task(TASKS[self.optimizee.name], config, dataset, self.device, self.folder)

    def _fitted(self, config: Any, dataset: Dataset | None) -> Any:
        """A drawn network for this data: an autoencoder where the inputs are the targets."""
        if (
            self.optimizee.varied
            and dataset
            and dataset.reconstructs
            and hasattr(config, "narrowed")
        ):
            return config.narrowed(math.prod(dataset.shape))
        return config


def make_variations(
    optimizees: str | Sequence[str],
    datasets: str | Sequence[str] = "digits",
    vary: str = "usual",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> list[Variation]:
    """One family for every pair of an optimizee and a data set, as `make_tasks` gives one task.

    Args:
        vary: ``"usual"``: a bare name stands for its optimizee's usual variation, and so does the
            bare name of a data set beside it; ``"none"``: all is as it is named.

    Raises:
        UserError: as `make_tasks`; also a range that is empty or reversed, and ranges of which
            nothing can be built.
    """
    choose("variation", vary, VARY)
    place = folder_of(data_dir), usable_device(device)
    for spec in specs_of(datasets, "data sets"):
        _read_dataset(spec, "")
    made: dict[str, Variation] = {}
    for spec, data in families(optimizees, datasets):
        name, options = parse_spec(spec)
        entry = TASKS.find(name)
        varied = vary == "usual" and not options and entry.facts["varied"]
        if varied:
            options = parse_spec(f"{name}:{varied}")[1]
        kind = ("varied_images" if entry.facts["images"] else "varied") if varied else ""
        dataset = None if data is None else _read_dataset(data, kind)
        family = Variation(Ranged.of(name, entry.config, options), dataset, *place)
        if family.name in made:
            raise UserError(f'the optimizee "{family.name}" is given twice')
        family.draw(torch.Generator().manual_seed(0))  # what cannot be built is found here
        made[family.name] = family
    return list(made.values())


def _read_dataset(spec: str, kind: str) -> Ranged:
    """The data set `spec`; a bare name stands for its variation for this `kind` of optimizee."""
    name, options = parse_spec(spec)
    entry = DATASETS.find(name)
    if kind and not options and (varied := entry.facts.get(kind)):
        options = parse_spec(f"{name}:{varied}")[1]
    return Ranged.of(name, entry.config, options)
