"""Workers: the hosts of a run, in this process or in several with one thread each.

The processes speak over private pipes. A worker ends when its pipe closes, so a killed run leaves
none behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from lo_framework.meta_train.host import Host, Setup
from lo_framework.spec import UserError


def to_wire(value: Any) -> Any:
    """Tensors to arrays: a tensor would travel through shared-memory files, of which there are only
    so many.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: to_wire(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(to_wire(x) for x in value)
    return value


def from_wire(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.tensor(
            value
        )  # a copy with torch's own alignment, which kernels see: the bits must not depend on it
    if isinstance(value, dict):
        return {key: from_wire(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(from_wire(x) for x in value)
    return value


def _serve(pipe: Connection, setup: Setup, mine: list[int]) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    host: Host | None = None
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if host is None:
                host = Host(setup, mine)
            answer = ("ok", to_wire(getattr(host, method)(*from_wire(arguments))))
        except UserError as error:
            answer = ("user", str(error))
        except Exception:
            answer = ("error", traceback.format_exc())
        try:
            pipe.send(answer)
        except (BrokenPipeError, OSError):
            return


def _end_with_parent() -> None:
    """A killed run cannot tell its workers, and one in the middle of a truncation would go on with
    it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Workers:
    """``num`` workers for ``shards`` virtual shards; with one, everything runs in this process."""

    def __init__(self, setup: Setup, shards: int, num: int) -> None:
        if num < 1:
            raise UserError(f"--workers must be at least 1, not {num}")
        self.num = min(num, shards)
        self.parts = [list(range(w, shards, self.num)) for w in range(self.num)]
        self.local: Host | None = None
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        if self.num == 1:
            self.local = Host(setup, self.parts[0])
            return
        context = multiprocessing.get_context("spawn")
        saved = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # read when the child loads its libraries
        try:
            for part in self.parts:
                mine, theirs = context.Pipe()
                # No daemon: those may have no children, and a user's data loader has some.
                process = context.Process(target=_serve, args=(theirs, setup, part), daemon=False)
                process.start()
                theirs.close()
                self.pipes.append(mine)
                self.processes.append(process)
        except BaseException:
            self.close()
            raise
        finally:
            if saved is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = saved

    def call(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every host, each with its own arguments; answers in the order of
        workers.
        """
        if self.local is not None:
            return [getattr(self.local, method)(*arguments[0])]
        for worker, (pipe, each) in enumerate(zip(self.pipes, arguments, strict=True)):
            try:
                pipe.send((method, to_wire(each)))
            except OSError:
                raise self._ended(worker) from None
        answers = []
        for worker, pipe in enumerate(self.pipes):
            try:
                status, answer = pipe.recv()
            except (EOFError, OSError):
                raise self._ended(worker) from None
            if status == "user":
                raise UserError(answer)
            if status == "error":
                raise RuntimeError(f"worker {worker} failed:\n{answer}")
            answers.append(from_wire(answer))
        return answers

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        return self.call(method, [arguments] * self.num)

    def _ended(self, worker: int) -> RuntimeError:
        self.processes[worker].join(timeout=1)
        code = self.processes[worker].exitcode
        return RuntimeError(
            f"worker {worker} ended unexpectedly (exit code {code}; out of memory?)"
        )

    def close(self) -> None:
        """End the processes, in the middle of their work if need be: they hold nothing that is not
        here.
        """
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
