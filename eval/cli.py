"""The command line of program 2: ``python -m eval COMMAND`` or ``lo-eval COMMAND``.

A command is a module with ``HELP``, ``EXAMPLES``, ``add_arguments(parser)`` and ``run(arguments) ->
exit code``; it imports what is heavy inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from lo_framework.spec import UserError, nearest

COMMANDS = {
    "transfer": "lo_framework.eval.commands.transfer",
    "compare": "lo_framework.eval.commands.compare",
    "sharpness": "lo_framework.eval.commands.sharpness",
    "robustness": "lo_framework.eval.commands.robustness",
    "ablation": "lo_framework.eval.commands.ablation",
    "report": "lo_framework.eval.commands.report",
}

EPILOG = """\
examples:
  python -m eval transfer --learned runs/latest/optimizer.safetensors --optimizees mlp,cnn
  python -m eval ablation --optimizees mlp,cnn
  python -m eval report runs/transfer

`python -m eval COMMAND --help` explains a command and its options, with examples.
"""


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, list[str]]]:
    """The parser, and the options of every command."""
    keep = argparse.RawDescriptionHelpFormatter
    about = "Judge learned optimizers against tuned baselines."
    top = argparse.ArgumentParser(
        prog="python -m eval", description=about, epilog=EPILOG, formatter_class=keep
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    options = {}
    for name, place in COMMANDS.items():
        module = importlib.import_module(place)
        texts = dict(help=module.HELP, description=module.__doc__, epilog=module.EXAMPLES)
        sub = commands.add_parser(name, formatter_class=keep, allow_abbrev=False, **texts)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
        options[name] = [word for action in sub._actions for word in action.option_strings]
    return top, options


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit code 0; 1 if nothing worked; 2 for bad input, with one line on stderr;
    130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = "eval"
    try:
        parser, options = make_parser()
        if not words:
            parser.print_help(sys.stderr)
            return 2
        if not words[0].startswith("-") and words[0] not in COMMANDS:
            raise UserError(
                f'unknown command "{words[0]}"{nearest(words[0], COMMANDS)}; known: {", ".join(COMMANDS)}'
            )
        arguments, unknown = parser.parse_known_args(words)
        name = f"eval {arguments.command}"
        if unknown:
            close = nearest(unknown[0].partition("=")[0], options[arguments.command])
            raise UserError(f'unknown option "{unknown[0]}"{close}; see python -m {name} --help')
        arguments.words = ["python", "-m", "eval", *words]
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing was saved", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains when it flushes at exit
        return 0
