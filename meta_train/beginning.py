"""Where a run begins that does not begin at its optimizer's own start: `--start`."""

from __future__ import annotations

from lo_framework.learned import make_learned, rebuild
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.learned.storage import load_optimizer
from lo_framework.spec import UserError, canonical


def optimizer_of(path: str) -> LearnedOptimizer:
    """The optimizer in a file, with its weights."""
    saved = load_optimizer(path)
    return rebuild(saved.kind, saved.config, saved.tensors)


def spec_of(path: str) -> str:
    """Kind and options of the optimizer in a file."""
    learned = optimizer_of(path)
    return canonical(learned.kind, learned.config)


def weights_of(path: str, spec: str) -> Theta:
    """The weights in a file, for an optimizer of that ``spec``.

    Raises:
        UserError: the file has another kind, or weights of other shapes.
    """
    saved, wanted = optimizer_of(path), make_learned(spec)
    theta = {name: x.clone() for name, x in saved.theta().items()}
    shapes = {name: x.shape for name, x in wanted.theta().items()}
    if saved.kind != wanted.kind or {name: x.shape for name, x in theta.items()} != shapes:
        raise UserError(
            f"--start: {path!r} holds {canonical(saved.kind, saved.config)}, whose weights do not "
            f"fit --learned {spec}; without --learned the run has what the file has"
        )
    return theta
