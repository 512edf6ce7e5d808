"""Worker processes of one thread each, for both programs: started, spoken to, ended.

They speak over private pipes. A child whose parent is gone ends at once, in the middle of its work
if need be: a killed run cannot tell it, and leaves none behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from lo_framework.malloc import keep_freed_memory

GRACE = 5.0  # seconds for a child that does not heed SIGTERM
UNSTARTED = (
    "a worker process could not start; its own message is above (a script that uses workers must "
    "begin its work under `if __name__ == '__main__':`)"
)


class Died(RuntimeError):
    """A child ended by itself: it was killed, or it ran out of memory."""


class RemoteTraceback(Exception):
    """The traceback of an error in a child, as the cause of the error that stands for it here."""


class Peer:
    """Another process at the end of a pipe; the first message from it is None: it is ready."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.started = False

    def send(self, message: Any) -> None:
        """Raises Died."""
        try:
            self.pipe.send_bytes(Wire.dumps(message))
        except OSError:
            raise self._died() from None

    def receive(self) -> Any:
        """The next message, or None once. Raises Died."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        self.started = True
        return message

    def _died(self) -> Died:
        raise NotImplementedError

    def close(self) -> None:
        """Ask for nothing more."""
        raise NotImplementedError


class Child(Peer):
    """A process of our own that runs ``serve(pipe, *arguments)``."""

    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        # Spawned: a fork of a process with OpenMP or CUDA may hang.
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        super().__init__(pipe)
        # No daemon: those may have no children, and a user's data loader has some.
        self.process = context.Process(target=_begin, args=(theirs, serve, arguments), daemon=False)
        with _environment("OMP_NUM_THREADS", "1"):  # read when the child loads its libraries
            self.process.start()
        theirs.close()

    def _died(self) -> Died:
        self.process.join(timeout=1)
        code = self.process.exitcode
        failed = not self.started and (code is None or code >= 0)  # below 0: by a signal
        return Died(UNSTARTED if failed else f"exit code {code}; out of memory?")

    def close(self) -> None:
        """End the process, in the middle of its work if need be."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(GRACE)
        self.process.kill()
        self.process.join()


def _begin(pipe: Connection, serve: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        pipe.send(None)
        serve(pipe, *arguments)
    except (EOFError, OSError):  # the parent has closed the pipe
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Wire(ForkingPickler):
    """Packs messages between our own processes: ``pipe.send_bytes(Wire.dumps(message))``.

    A tensor travels as an array: one sent as it is would need a shared-memory file, of which there
    are only so many.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # A copy with torch's own alignment, which kernels see: the bits must not depend on it.
            return torch.tensor, (value.detach().cpu().numpy(),)
        return NotImplemented


@contextmanager
def single_thread() -> Iterator[None]:
    """One intra-op thread, as the workers have: the bits depend on it, and more only spin on tasks
    this small.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    saved = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if saved is None:
            del os.environ[name]
        else:
            os.environ[name] = saved
