"""Meta-train learned optimizers, use them as a ``torch.optim.Optimizer``, judge them.

    import lo_framework as lo

    learned = lo.train("mlp", "attention", outer_steps=100)
    lo.save(learned, "mine.safetensors")
    optimizer = lo.Learned(model, "mine.safetensors", num_steps=1000)  # or "general": shipped
    print(lo.evaluate(["mlp", "cnn"], {"mine": learned}, baselines=["adamw"]).table())

Every name below is imported when it is first used, so that command lines answer at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lo_framework.absorb.absorption import make_regularizer as make_regularizer
    from lo_framework.errors import UserError as UserError
    from lo_framework.estimators import Truncation as Truncation, make_estimator as make_estimator
    from lo_framework.estimators.unroll import unroll as unroll
    from lo_framework.eval import evaluate as evaluate
    from lo_framework.inner.step import Family as Family
    from lo_framework.learned import (
        LearnedOptimizer as LearnedOptimizer,
        load as load,
        make_learned as make_learned,
        register_learned as register_learned,
        save as save,
    )
    from lo_framework.meta_train.run import train as train
    from lo_framework.objectives import make_objective as make_objective
    from lo_framework.optim import (
        ASAM as ASAM,
        FSAM as FSAM,
        GAM as GAM,
        GSAM as GSAM,
        S2SAM as S2SAM,
        SAM as SAM,
        GuardConfig as GuardConfig,
        Learned as Learned,
        LookSAM as LookSAM,
        MetaAdamW as MetaAdamW,
        MetaOptimize as MetaOptimize,
        Regularized as Regularized,
    )
    from lo_framework.optimizees import (
        Task as Task,
        make_tasks as make_tasks,
        register_task as register_task,
        task_from_module as task_from_module,
    )

_HOMES = {
    "errors": ("UserError",),
    "estimators": ("Truncation", "make_estimator"),
    "estimators.unroll": ("unroll",),
    "eval": ("evaluate",),
    "inner.step": ("Family",),
    "learned": ("LearnedOptimizer", "load", "make_learned", "register_learned", "save"),
    "meta_train.run": ("train",),
    "objectives": ("make_objective",),
    "optim": (
        "ASAM",
        "FSAM",
        "S2SAM",
        "GAM",
        "GSAM",
        "SAM",
        "GuardConfig",
        "Learned",
        "LookSAM",
        "MetaAdamW",
        "MetaOptimize",
        "Regularized",
    ),
    "optimizees": ("Task", "make_tasks", "register_task", "task_from_module"),
    "absorb.absorption": ("make_regularizer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
