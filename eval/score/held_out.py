"""Problems are held out: none is among those that an optimizer was meta-trained or chosen on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lo_framework.errors import shown
from lo_framework.eval.score.suite import Problem
from lo_framework.learned.storage import lineage, load_optimizer
from lo_framework.optimizees.variation import Variation, make_variations
from lo_framework.spec import UserError, split_specs


def require_held_out(problems: Iterable[Problem], source: str, data_dir: str | None = None) -> None:
    """Raise UserError: the optimizer that ``source`` names was meta-trained on a problem or chosen
    by it, as it says itself, or so was one that its training began with.
    """
    named = [
        (f"{what} of {whose}", families)
        for whose, run in _lineage(load_optimizer(source).summary, repr(source))
        for what, families in zip(("pool", "probes"), told(run, data_dir))
    ]
    for problem in problems:
        for what, families in named:
            for family, steps in families:
                pair = (problem.optimizee, problem.dataset)
                if problem.steps <= steps and family.covers(*pair):
                    raise UserError(
                        f"problem {shown(problem.name)} is in the {what}, among "
                        f"{shown(family.name)}: it judges nothing; leave it out by --problems"
                    )


def _lineage(summary: Mapping[str, Any], whose: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The record of the run that made an optimizer, then that of what this run began with."""
    for record in lineage(summary):
        run = record.get("run")
        yield whose, run if isinstance(run, Mapping) else {}
        whose = f"what {whose} began with"


Families = list[tuple[Variation, int]]


def told(run: Mapping[str, Any], data_dir: str | None) -> tuple[Families, Families]:
    """The families of a run's record that still can be made, and its probes, each with its longest
    episode.
    """
    text = {key: str(run.get(key, "")) for key in ("optimizees", "datasets", "probes")}
    # files of runs that knew no variation trained on what they name
    vary = str(run.get("vary", "none"))
    longest = str(run.get("episode_length", "0")).rpartition("-")[2]
    pool: Families = []
    probes: Families = []
    with contextlib.suppress(UserError, ValueError):
        made = make_variations(text["optimizees"], text["datasets"], vary, data_dir=data_dir)
        pool = [(family, int(longest)) for family in made]
    words = split_specs(text["probes"]) if text["probes"] not in ("", "none") else []
    for word in words:
        spec, _, steps = word.partition("@")
        optimizee, _, dataset = spec.partition("/")
        with contextlib.suppress(UserError, ValueError):
            made = make_variations([optimizee], [dataset or "digits"], "none", data_dir=data_dir)
            probes += [(family, int(steps or "200")) for family in made]
    return pool, probes
