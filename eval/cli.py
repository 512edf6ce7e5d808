"""The command line of program 2: ``lo-eval COMMAND``, in a checkout ``python -m eval`` too."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from itertools import pairwise

from lo_framework import commandline
from lo_framework.eval.commands import COMMANDS
from lo_framework.plugin import load_plugins
from lo_framework.registry import Entry

EXAMPLES = """\
examples:
  lo-eval transfer --learned runs/latest/optimizer.safetensors --optimizees mlp,cnn
  lo-eval ablation --optimizees mlp,cnn
  lo-eval report runs/transfer

`lo-eval COMMAND --help` explains a command and its options, with examples.
"""
FAILED = "nothing worked; where something did, the code is 0, and what failed is named"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit code 0; 1 if nothing worked; 2 for bad input, with one line on stderr;
    130 and 141 for what signals end.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = f"eval {words[0]}" if words and words[0] in COMMANDS else "eval"
    return commandline.run(name, _run, words)


def _run(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        return _without_command(words)
    if words[0] not in COMMANDS:  # it may be a plugin's
        named = [after for word, after in pairwise(words) if word == "--plugin"]
        load_plugins([*named, *(w[9:] for w in words if w.startswith("--plugin="))])
    entry = COMMANDS.find(words[0])
    name, examples = f"lo-eval {entry.name}", entry.facts["examples"]
    about = dict(description=_help(entry), examples=examples, failed=FAILED)
    parser = commandline.Parser(name, entry.config, **about)
    request = entry.config(**parser.read(words[1:]))
    return entry.build(request, [*name.split(), *words[1:]])


def _without_command(words: list[str]) -> int:
    about = (f"  {name:12} {_help(entry).splitlines()[0]}" for name, entry in COMMANDS.items())
    parser = commandline.Parser(
        "lo-eval COMMAND",
        description="\n".join(["Judge optimizers against tuned baselines.\n\ncommands:", *about]),
        examples=EXAMPLES,
        failed=FAILED,
    )
    parser.read(words)
    parser.print_help(sys.stderr)
    return 2


def _help(entry: Entry[int]) -> str:
    return inspect.getdoc(entry.build) or ""
