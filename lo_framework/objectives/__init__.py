"""The score of an unroll: one or more terms for each inner step, comparable across tasks.

``valid`` (default) scores the held-out loss after each update, so that a learned optimizer that
memorises gains nothing by it; ``train`` the minibatch loss before each update. ``train=W`` mixes W
parts of the training loss into ``valid``. ``log=W`` adds W times the logarithm of the loss: late in
an episode the loss is small, and only its logarithm still tells a good schedule from a bad one
(`steps`).

``gradient``, ``loss_decrease``, ``gen_gap`` and all three ``combined`` score what each update does
(`steps`), as MetaAdamW's meta-objectives. Any of these and of one's own (`base`) are joined by
``+``; how several terms are weighted is the business of `weighting`.
"""

from __future__ import annotations

from collections.abc import Mapping

from lo_framework.objectives.base import OBJECTIVES, Objective, Term
from lo_framework.objectives.steps import FLOOR
from lo_framework.objectives.weighting import WEIGHTINGS, Weighting
from lo_framework.spec import UserError, build_config, parse_spec, split_joined


def make_objective(spec: str) -> Objective:
    """``valid``, ``train``, ``valid:train=0.5,log=0.1``, ``gradient:direction=1``, ``combined``,
    ``valid+gen_gap``, ...

    Raises:
        UserError: an unknown name or option, an impossible value, a term twice; the line names the
            nearest known one.
    """
    terms: dict[str, Term] = {}
    for piece in split_joined(spec):
        name, options = parse_spec(piece)
        entry = OBJECTIVES.find(name)
        built = entry.build(build_config(entry.config, options, f"objective {name}"))
        for each, term in built.items() if isinstance(built, Mapping) else [(name, built)]:
            if each in terms:
                raise UserError(f'objective "{spec}": the term {each} is there twice')
            terms[each] = term
    return Objective(terms)


__all__ = [
    "FLOOR",
    "OBJECTIVES",
    "WEIGHTINGS",
    "Objective",
    "Term",
    "Weighting",
    "make_objective",
]
