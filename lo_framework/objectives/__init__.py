"""What an unroll is scored by: a term for each inner step, comparable across tasks.

``valid`` (default) scores the held-out loss after each update, so that a learned optimizer that
memorises gains nothing by it; ``train`` the minibatch loss before each update. ``train=W`` mixes W
parts of the training loss into ``valid``. ``log=W`` adds W times the logarithm of the loss: late in
an episode the loss is small, and only its logarithm still tells a good schedule from a bad one
(`levels`).

``gradient``, ``loss_decrease``, ``gen_gap`` and all three ``combined`` score what each update does
(`steps`), as MetaAdamW's meta-objectives; how the three are weighted is the business of
`weighting`.
"""

from __future__ import annotations

from lo_framework.objectives.levels import LOG_FLOOR, Objective, ObjectiveConfig
from lo_framework.objectives.steps import CONFIGS, StepObjective, make_step_objective
from lo_framework.spec import UserError, build_config, nearest, parse_spec

AnyObjective = Objective | StepObjective
OBJECTIVES = ("valid", "train", *CONFIGS)


def make_objective(spec: str) -> AnyObjective:
    """``valid``, ``train``, ``valid:train=0.5,log=0.1``, ``gradient:direction=1``, ``combined``,
    ...

    Raises:
        UserError: an unknown name or option, an impossible value; the line names the nearest known
            one.
    """
    name, options = parse_spec(spec)
    if name not in OBJECTIVES:
        raise UserError(
            f"unknown objective {name!r}{nearest(name, OBJECTIVES)}; there are {', '.join(OBJECTIVES)}"
        )
    owner = f"objective {name}"
    if name in CONFIGS:
        return make_step_objective(name, build_config(CONFIGS[name], options, owner=owner))
    if name == "train":
        options = {"train": "1", **options}
    return Objective(name=name, config=build_config(ObjectiveConfig, options, owner=owner))


__all__ = [
    "LOG_FLOOR",
    "OBJECTIVES",
    "AnyObjective",
    "Objective",
    "ObjectiveConfig",
    "StepObjective",
    "make_objective",
]
