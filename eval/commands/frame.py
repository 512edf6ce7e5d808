"""The commands, and the frame of every evaluation: arguments -> request -> evaluation -> report ->
exit code.

An evaluation joins by one decorator, from any file (of one's own: ``--plugin FILE``):

    @register_evaluation("noise", NoiseRequest, examples="...")
    def noise() -> Loaded:
        \"\"\"Say in one line what it answers; the rest explains.\"\"\"
        from ... import ...                          # what is heavy, so that --help answers at once
        return NoiseEvaluation, NoiseReport

Whatever is wrong with the input is said before any folder is made. Finished cells are kept in it,
so the same command goes on after a kill.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lo_framework.errors import visible
from lo_framework.eval.studies.request import Request
from lo_framework.registry import Registry
from lo_framework.spec import UserError

if TYPE_CHECKING:
    from lo_framework.eval.report.base import Report
    from lo_framework.eval.studies.evaluation import Evaluation

Loaded = tuple["type[Evaluation[Any, Any]]", "type[Report[Any]]"]
Load = Callable[[], Loaded]
CELLS = "cells"
INCOMPLETE = "incomplete"  # folder for a result with failures, where a complete one is already
COMMANDS: Registry[int] = Registry("command")


def register_evaluation(
    name: str, request: type[Request], *, examples: str = ""
) -> Callable[[Load], Load]:
    """Decorate a function that returns an evaluation's class and its report's: a command ``name``.

    Its docstring is the command's help. Raises UserError: the name is taken.
    """

    def decorate(load: Load) -> Load:
        @functools.wraps(load)
        def run(request: Request, words: Sequence[str]) -> int:
            return evaluate(name, load, request, words)

        facts = {"examples": examples, "load": load}
        COMMANDS.register(name, config=request, **facts)(run)
        return load

    return decorate


def evaluate(name: str, load: Load, request: Request, words: Sequence[str]) -> int:
    """Run an evaluation, save and print its report; returns the exit code.

    Raises:
        UserError: bad input, or another process works in the folder.
    """
    from lo_framework.eval.report.base import prepare
    from lo_framework.eval.running.plan import plan_of
    from lo_framework.eval.running.progress import Progress
    from lo_framework.eval.running.store import CellStore
    from lo_framework.files.lock import exclusive
    from lo_framework.plugin import load_plugins

    load_plugins(request.plugins)
    evaluation_type, report_type = load()
    evaluation = evaluation_type(request)
    folder = prepare(request.out)
    with exclusive(folder), _resumable(folder / CELLS):
        plan = {**evaluation.plan(), **plan_of(request.device, request.plugins)}
        identities = evaluation.identities()
        store = CellStore(folder / CELLS, plan, identities=identities, fresh=request.fresh)
        progress = Progress(mode=request.progress, title=name)
        with contextlib.closing(progress):
            result = evaluation.run(progress=progress, store=store, command=words)
        report = report_type(result)
        failed = report.failures()
        if failed and _complete(report_type, folder):
            folder /= INCOMPLETE
            print(f"eval {name}: the complete result there is kept", file=sys.stderr)
        written = report.save(folder)
    print(report.plain())
    print(f"\n{report.listing(written)}")
    if store.reused:
        print(f"{store.reused} finished cells of an earlier run were used again", file=sys.stderr)
    for line in failed:
        print(f"eval {name}: failed: {visible(line)}", file=sys.stderr)
    return 0 if report.worked() else 1


def _complete(report_type: type[Report[Any]], folder: Path) -> bool:
    """Say whether ``folder`` holds a result in which nothing failed."""
    try:
        return not report_type.load(folder).failures()
    except UserError:
        return False


@contextlib.contextmanager
def _resumable(cells: Path) -> Iterator[None]:
    """Say that the same command goes on, where an interrupted one has left finished cells."""
    try:
        yield
    except KeyboardInterrupt:
        if len(list(cells.glob("*.json"))) > 1:  # one is the plan
            raise KeyboardInterrupt("the same command continues from the finished cells") from None
        raise
