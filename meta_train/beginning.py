"""Where a run begins that does not begin at its optimizer's own start: `--start`."""

from __future__ import annotations

from typing import Any, NamedTuple

from lo_framework.learned import LearnedOptimizer, fingerprint, load, make_learned
from lo_framework.learned.base import Theta
from lo_framework.spec import UserError, canonical

# Of the record of the optimizer that a run began with; its own beginning is among them.
KEPT = ("run", "steps", "inner_steps", "commit", "began_with")


class Beginning(NamedTuple):
    """The weights that a run begins with, and what is known about them: the fingerprint of the
    optimizer (a file of the same name may change) and how it was trained.
    """

    theta: Theta
    record: dict[str, Any]


def beginning_with(learned: LearnedOptimizer) -> Beginning:
    """A copy of its weights, and its record where they are still those that were loaded."""
    theta = {name: x.clone() for name, x in learned.theta().items()}
    mark = fingerprint(learned)
    known, summary = learned.origin or ("", {})
    kept = {key: summary[key] for key in KEPT if known == mark and key in summary}
    return Beginning(theta, {"weights": mark, **kept})


def spec_of(source: str) -> str:
    """Kind and options of the optimizer that ``source`` names."""
    learned = load(source)
    return canonical(learned.kind, learned.config)


def beginning_at(source: str, spec: str) -> Beginning:
    """The beginning at the optimizer that ``source`` names, for one of that ``spec``.

    Raises:
        UserError: it is of another kind, or its weights have other shapes.
    """
    saved, wanted = load(source), make_learned(spec)
    begun = beginning_with(saved)
    shapes = {name: x.shape for name, x in wanted.theta().items()}
    if saved.kind != wanted.kind or {name: x.shape for name, x in begun.theta.items()} != shapes:
        raise UserError(
            f"--start: {source!r} is {canonical(saved.kind, saved.config)}, whose weights do not "
            f"fit --learned {spec}; without --learned the run has what the file has"
        )
    return begun
