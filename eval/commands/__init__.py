"""The commands of ``python -m eval``; importing the package registers all."""

from lo_framework.eval.commands import evaluations, report
from lo_framework.eval.commands.frame import COMMANDS, register_evaluation

__all__ = ["COMMANDS", "evaluations", "register_evaluation", "report"]
