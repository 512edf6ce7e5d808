"""Workers: the shard hosts of a run, in this process or in several with one thread each."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from lo_framework.meta_train.host import ShardHost, WorkerSetup
from lo_framework.processes import Child, Died, RemoteTraceback, from_wire, to_wire
from lo_framework.spec import UserError, describe

R = TypeVar("R")


def _serve(pipe: Connection, setup: WorkerSetup, shards: list[int]) -> None:
    host: ShardHost | None = None
    while True:
        method, arguments = pipe.recv()
        try:
            if host is None:
                host = ShardHost(setup, shards)
            answer: Any = ("ok", to_wire(getattr(host, method)(*from_wire(arguments))))
        except Exception as error:
            kind = type(error) if isinstance(error, UserError) else RuntimeError
            answer = (kind, (describe(error), traceback.format_exc()))
        pipe.send(answer)


@contextmanager
def _named(worker: int) -> Iterator[None]:
    try:
        yield
    except Died as error:
        raise Died(f"worker {worker} ended unexpectedly ({error})") from None


class Workers:
    """``num`` workers for ``shards`` virtual shards; with one, everything runs in this process."""

    def __init__(self, setup: WorkerSetup, shards: int, num: int) -> None:
        if num < 1:
            raise UserError(f"--workers must be at least 1, not {num}")
        self.num = min(num, shards)
        self.parts = [list(range(w, shards, self.num)) for w in range(self.num)]
        self.local: ShardHost | None = None
        self.children: list[Child] = []
        if self.num == 1:
            self.local = ShardHost(setup, self.parts[0])
            return
        try:
            for part in self.parts:
                self.children.append(Child(_serve, setup, part))
        except BaseException:
            self.close()
            raise

    def call(self, method: Callable[..., R], arguments: list[tuple[Any, ...]]) -> list[R]:
        """Call a method of `ShardHost` in every worker, each with its own arguments; answers in
        the order of workers.

        Raises:
            Died: a worker process is no more.
        """
        if self.local is not None:
            return [method(self.local, *arguments[0])]
        answers: list[R] = []
        for worker, child in enumerate(self.children):
            with _named(worker):
                child.send((method.__name__, arguments[worker]))
        for worker, child in enumerate(self.children):
            with _named(worker):
                status, answer = child.receive() or child.receive()
            if status != "ok":
                line, text = answer
                whose = "" if issubclass(status, UserError) else f"worker {worker} failed: "
                raise status(whose + line) from RemoteTraceback(text)
            answers.append(answer)
        return answers

    def everywhere(self, method: Callable[..., R], *arguments: Any) -> list[R]:
        return self.call(method, [arguments] * self.num)

    def close(self) -> None:
        """End the processes, in the middle of their work if need be: they hold nothing that is not
        here.
        """
        for child in self.children:
            child.close()
