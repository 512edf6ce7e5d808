"""A small server for tests that kill runs: it imports the program once and forks a fresh process
for every order.

Orders come as JSON lines on stdin: ``argv``, ``log`` (a file for what the run prints) and
optionally ``crash``: n makes the process kill itself with SIGKILL at its n-th disk operation
(before each fsync, before and after each rename). ``file_limit`` is the largest file, in bytes,
that the process may write (a full disk). Two JSON lines answer: the pid, and when the process has
ended its exit code (negative: the signal).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def warm_up() -> None:
    """A whole run: its late imports and the tables that torch builds cost a second, once instead of
    in every fork.
    """
    import tqdm

    from lo_framework.meta_train.cli import main
    from tests.meta_train.tools import command

    tqdm.tqdm.monitor_interval = 0  # no thread may run when this process forks
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        main(command(Path(folder) / "run", learned="attention:width=4,heads=1"))


def crash_at(point: int) -> None:
    """Kill this process at its ``point``-th disk operation, counted from 1."""
    count = itertools.count(1)

    def here() -> None:
        if next(count) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            here()
            result = function(*args, **kwargs)
            if after:
                here()
            return result

        return wrapped

    os.fsync = around(os.fsync, after=False)
    os.replace = around(os.replace, after=True)


def run(order: dict[str, Any]) -> int:
    from lo_framework.meta_train.cli import main

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order.get("crash"):
        crash_at(order["crash"])
    if order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
    return main(order["argv"])


def serve() -> None:
    warm_up()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(order)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps(pid), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    serve()
