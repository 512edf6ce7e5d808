"""Command lines made from config dataclasses: every field is an option.

The field's name, type and default are the option's, and the docstring below the field is its help:

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        outer_steps: int = 100
        \"\"\"Updates of the learned optimizer.\"\"\"
        plugins: tuple[str, ...] = field(default=(), metadata={"option": "plugin"})
        \"\"\"A Python file with tasks of your own.\"\"\"

    Parser("meta_train", Settings).read(["--outer-steps", "20"])        # {"outer_steps": 20}

A bool that is False is a flag ``--resume``, one that is True a flag ``--no-evaluate``; a tuple is
an option that may be given several times; ``metadata={"positional": True}`` makes an argument
without a name. Modules that hold such dataclasses import nothing heavy: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import itertools
import os
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lo_framework.errors import UserError, choose, describe, nearest
from lo_framework.malloc import keep_freed_memory
from lo_framework.namespace import HOME
from lo_framework.schema import Mismatch, convert, hints, read_json, required

SIGINT, SIGPIPE, SIGTERM = 130, 141, 143  # shells report a signal's end as 128 + its number
_SIGNALLED = 128
_WORDS = {SIGINT: "interrupted", SIGTERM: "terminated"}
ENDS = """\
exit codes:
  0    done
{failed}\
  2    bad input, or a system that refuses: one line on stderr says what is wrong
  130  interrupted (Ctrl-C); what was finished is kept
  141  the reader of the output went away
  143  terminated (SIGTERM); what was finished is kept
"""
_METAVARS = {int: "N", float: "X"}


class Stopped(KeyboardInterrupt):
    """The signal ``number`` ends the program; the rest, if there is any, says how to go on."""

    def __init__(self, number: int, *words: str) -> None:
        super().__init__(*words)
        self.number = number


class Finished(SystemExit):
    """The parser has answered (``--help``, ``--version``); unlike a SystemExit of user code."""


class Parser(argparse.ArgumentParser):
    """The options of the dataclasses ``configs``, of one or several, with one-line errors.

    Args:
        failed: what exit code 1 means, where the program has one.
    """

    def __init__(
        self,
        prog: str,
        *configs: type,
        description: str = "",
        examples: str = "",
        failed: str = "",
    ) -> None:
        ends = ENDS.format(failed=f"  1    {failed}\n" if failed else "")
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n".join(filter(None, [examples, ends])),
            formatter_class=_Help,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self.file: dict[str, Any] = {}  # what the last --config file said
        self.hints: dict[str, Any] = {}
        self.flags: dict[str, str] = {}
        self.required: dict[str, str] = {}
        for config in configs:
            texts = field_docs(config)
            self.hints |= hints(config)
            for field in dataclasses.fields(config):
                if field.init:
                    self._add(field, texts.get(field.name, ""))
        self.add_argument(
            "--config", metavar="FILE", help="JSON file with settings, as a run writes it"
        )
        self.add_argument("--debug", action="store_true", help="print the traceback of an error")
        version = f"lo_framework {sys.modules[HOME].__version__}"
        self.add_argument(
            "--version", action="version", version=version, help="print the version and exit"
        )

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Everything that ``argv`` and its ``--config`` file say, by field name.

        Raises:
            UserError: an unknown option (naming the nearest), or a value that does not fit.
        """
        namespace, unknown = self.parse_known_args(list(argv))
        if unknown:
            options = [word for action in self._actions for word in action.option_strings]
            near = nearest(unknown[0].partition("=")[0], options)
            self.error(f"unknown option {unknown[0]!r}{near}")
        given = vars(namespace)
        given.pop("debug", None)
        path = given.pop("config", None)
        given = {name: self._converted(name, value) for name, value in given.items()}
        self.file = {} if path is None else self._file(path)
        given = {**self.file, **given}
        if missing := [flag for name, flag in self.required.items() if name not in given]:
            self.error(f"{missing[0]} is required")
        return given

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (see --help)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Finished(status)

    def _add(self, field: dataclasses.Field[Any], text: str) -> None:
        hint = self.hints[field.name]
        hint = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        several, positional = typing.get_origin(hint) is tuple, field.metadata.get("positional")
        off = field.default is True
        flag = field.metadata.get("option", field.name).replace("_", "-")
        flag = flag if positional else f"--no-{flag}" if off else f"--{flag}"
        self.flags[field.name] = flag
        usual = field.default
        if required(field):
            self.required[field.name] = field.metadata.get("metavar", flag) if positional else flag
        elif not (several or isinstance(usual, bool) or usual in ("", None)):
            text += f" (default: {usual})"
        options: dict[str, Any] = {"help": text.strip().replace("%", "%%")}
        if hint is bool:
            options["action"] = "store_false" if off else "store_true"
        else:
            word = "DIR" if flag.endswith(("out", "dir")) else "TEXT"
            options["metavar"] = field.metadata.get("metavar", _METAVARS.get(hint, word))
        if positional:
            self.add_argument(field.name, nargs="*" if several else "?", **options)
            return
        if several:
            options["action"] = "append"
        self.add_argument(flag, dest=field.name, **options)

    def _converted(self, name: str, value: Any) -> Any:
        try:
            return convert(value, self.hints[name], text=True)
        except Mismatch as error:
            raise UserError(f"{self.flags[name]}: {error.expected}, not {value!r:.80}") from None

    def _file(self, path: str) -> dict[str, Any]:
        owner = f"--config {path!r}"
        try:
            values = read_json(Path(path).read_bytes(), dict[str, Any], owner)
        except OSError as error:
            raise UserError(f"{owner}: {error.strerror}") from None
        try:
            return {
                choose("setting", name, self.flags): self._converted(name, value)
                for name, value in values.items()
            }
        except UserError as error:
            raise UserError(f"{owner}: {error}") from None


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)

    def _format_usage(self, *_: Any) -> str:
        return f"usage: {self._prog} [options]\n\n"


def field_docs(config: type) -> dict[str, str]:
    """The docstrings of the fields of the dataclass ``config``, those of its bases included."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError, ValueError, SyntaxError):  # no source: options without help
            continue
        for pair in itertools.pairwise(getattr(tree, "body", [])):
            match pair:
                case ast.AnnAssign(target=field), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[ast.unparse(field)] = " ".join(text.split())
    return texts


def run(name: str, program: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """The exit code of ``program(argv)``; whatever it raises is one line on stderr.

    2 stands for bad input, for a system that refuses and for every other error (``--debug`` prints
    where it happened); signals have the codes that shells give them.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    keep_freed_memory()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return _run(name, program, words)
    from lo_framework import ranks  # not above: it imports torch, and --help answers at once

    if ranks.follows():
        return ranks.serve()
    try:
        return _run(name, program, words)
    finally:
        ranks.dismiss()


def _run(name: str, program: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        try:
            code = program(words)
            sys.stdout.flush()
            return code
        except (BrokenPipeError, Finished):
            raise
        except (Exception, SystemExit) as error:
            if "--debug" in words:
                traceback.print_exc()
            print(f"{name}: {_line(error)}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt as stop:  # its argument, if there is one, says how to go on
            code = _SIGNALLED + stop.number if isinstance(stop, Stopped) else SIGINT
            line = "; ".join([_WORDS.get(code, "stopped"), *stop.args])
            print(f"{name}: {line}", file=sys.stderr, flush=True)
            return code
    except BrokenPipeError:  # `| head`: the reader has seen enough
        _discard((1, 2))  # or Python complains when it flushes at exit
        return SIGPIPE


def _line(error: BaseException) -> str:
    if isinstance(error, UserError):
        return describe(error)
    if isinstance(error, OSError):  # a full disk, a folder that may not be written
        return f"{error.filename!r}: {error.strerror}" if error.filename else describe(error)
    return f"{describe(error)} (--debug prints the traceback)"


def _open_streams() -> None:
    """Make standard streams usable: they may be closed (cron, daemons), and names of files need not
    be text.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # a file that is opened later must not become stderr
            _discard((number,))
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _discard(numbers: Iterable[int]) -> None:
    for number in numbers:
        opened = os.open(os.devnull, os.O_RDWR)
        os.dup2(opened, number)
        if opened != number:
            os.close(opened)
        os.set_inheritable(number, True)
