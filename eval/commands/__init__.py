"""The commands of ``python -m eval``, one file each; importing the package registers all."""

from lo_framework.eval.commands import (
    ablation,
    compare,
    report,
    robustness,
    sharpness,
    transfer,
)
from lo_framework.eval.commands.frame import COMMANDS, register_evaluation

__all__ = [
    "COMMANDS",
    "ablation",
    "compare",
    "register_evaluation",
    "report",
    "robustness",
    "sharpness",
    "transfer",
]
