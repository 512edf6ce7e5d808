"""The command line of program 2: ``python -m eval COMMAND`` or ``lo-eval COMMAND``.

A command is a module with ``HELP``, ``EXAMPLES``, ``add_arguments(parser)`` and ``run(arguments) -> exit code``; it
imports what is heavy inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from optimizees.spec import UserError

COMMANDS = {
    "transfer": "eval.transfer",
    "report": "eval.report.command",
}

EPILOG = """\
examples:
  python -m eval transfer --learned runs/latest/optimizer.safetensors --optimizees mlp,cnn --out runs/transfer
  python -m eval report runs/transfer

`python -m eval COMMAND --help` explains a command's options, with examples.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    keep = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="eval", description="Judge learned optimizers against tuned baselines.", epilog=EPILOG, formatter_class=keep
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, place in COMMANDS.items():
        module = importlib.import_module(place)
        sub = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, epilog=module.EXAMPLES, formatter_class=keep
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit code 0; 1 if nothing worked; 2 for bad input, with one line on stderr; 130 if interrupted."""
    arguments = parser().parse_args(argv)
    arguments.words = ["eval", *(sys.argv[1:] if argv is None else argv)]
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"eval {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"eval {arguments.command}: interrupted; nothing was saved", file=sys.stderr)
        return 130
