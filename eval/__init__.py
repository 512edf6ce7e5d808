"""Program 2: judge optimizers. Baselines, transfer, sharpness, statistics and the report."""

from typing import TYPE_CHECKING, Any

if "." not in __name__:  # the folder of the checkout: be lo_framework.eval, not a second copy
    from lo_framework.namespace import alias

    alias(__name__)

if TYPE_CHECKING:
    from lo_framework.eval.api import Result as Result, evaluate as evaluate, load as load


def __getattr__(name: str) -> Any:
    """Import what scripts use when it is first used, so that ``--help`` answers at once."""
    if name not in ("Result", "evaluate", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lo_framework.eval import api

    return getattr(api, name)
