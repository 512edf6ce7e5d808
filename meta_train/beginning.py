"""Where a run begins that does not begin at its optimizer's own start: `--start`."""

from __future__ import annotations

from lo_framework.learned import load, make_learned
from lo_framework.learned.base import Theta
from lo_framework.spec import UserError, canonical


def spec_of(source: str) -> str:
    """Kind and options of the optimizer that ``source`` names."""
    learned = load(source)
    return canonical(learned.kind, learned.config)


def weights_of(source: str, spec: str) -> Theta:
    """The weights of the optimizer that ``source`` names, for one of that ``spec``.

    Raises:
        UserError: it is of another kind, or its weights have other shapes.
    """
    saved, wanted = load(source), make_learned(spec)
    theta = {name: x.clone() for name, x in saved.theta().items()}
    shapes = {name: x.shape for name, x in wanted.theta().items()}
    if saved.kind != wanted.kind or {name: x.shape for name, x in theta.items()} != shapes:
        raise UserError(
            f"--start: {source!r} is {canonical(saved.kind, saved.config)}, whose weights do not "
            f"fit --learned {spec}; without --learned the run has what the file has"
        )
    return theta
