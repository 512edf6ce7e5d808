"""The processes of a ``torchrun`` as workers: rank 0 is the program, the others serve it.

    torchrun --nproc-per-node 2 -m meta_train --optimizees mlp,cnn

Rank 0 listens, tells the others where through torchrun's own store, and speaks to each over a
connection as it speaks over a pipe to a worker of its own (`processes`). So one protocol, and one
order in which results are put together, serve one machine and several; what travels are meta-
parameters and the sums of shards, a few kilobytes that lie on the host, which no collective of a
GPU would make faster. No rank but 0 reads the command line further, or says anything.

A rank that dies ends the group, and torchrun begins it again (``--max-restarts``,
``--nnodes=1:3``): the run then goes on from its last checkpoint (`restarted`).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, NamedTuple

import torch

from lo_framework.processes import Died, Peer, Wire

# Keys of torchrun's store, which outlives the groups that it begins.
_GROUP = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
KEY, WHERE = f"lo-framework/{_GROUP}/key", f"lo-framework/{_GROUP}/where"
STOP = "lo-framework: stop serving"
RETRY = 0.2  # seconds


class Place(NamedTuple):
    """Of this process among those of a torchrun."""

    rank: int
    world: int
    local: int  # rank on its machine
    alone: bool  # whether all of them are on one machine


def place() -> Place | None:
    """None outside of a torchrun."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or any(name not in os.environ for name in names):
        return None
    rank, world, local, here = (int(os.environ[name]) for name in names)
    return Place(rank, world, local, here == world)


def follows() -> bool:
    """Whether this process serves another one."""
    here = place()
    return here is not None and here.rank > 0


def restarted() -> bool:
    """Whether torchrun began this group again, after a death or with other machines."""
    return place() is not None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class Rank(Peer):
    """Another rank, which runs ``serve(pipe, *arguments)`` until it is closed."""

    def __init__(self, connection: Connection, rank: int) -> None:
        super().__init__(connection)
        self.rank = rank

    def begin(self, serve: Callable[..., None], *arguments: Any) -> Rank:
        self.started = False
        self.send((serve, arguments))
        return self

    def close(self) -> None:
        """Let it wait for other work; what it computes is thrown away."""
        try:
            self.send(STOP)
            while self.receive() != STOP:
                pass
        except Died:
            pass

    def _died(self) -> Died:
        return Died(f"rank {self.rank} is gone")


@cache
def others() -> tuple[Rank, ...]:
    """The other ranks, connected; none outside of a torchrun and in any rank but 0."""
    here = place()
    if here is None or here.rank > 0 or here.world == 1:
        return ()
    key = secrets.token_bytes(32)
    address = "127.0.0.1" if here.alone else os.environ["MASTER_ADDR"]
    with Listener(("127.0.0.1" if here.alone else "", 0), backlog=here.world, authkey=key) as door:
        store = _store()
        store.set(KEY, key.hex())
        store.set(WHERE, f"{address}:{door.address[1]}")
        ranks: dict[int, Rank] = {}
        while len(ranks) < here.world - 1:
            try:
                connection = door.accept()
                rank = connection.recv()
            except (EOFError, OSError, AuthenticationError):  # it died, or is none of ours
                continue
            ranks[rank] = Rank(connection, rank)
    return tuple(ranks[rank] for rank in sorted(ranks))


def dismiss() -> None:
    """Let the other ranks end, where rank 0 ends without having needed them."""
    here = place()
    if here is not None and here.world > 1 and not others.cache_info().currsize:
        _store().set(WHERE, "")


def serve() -> int:
    """Serve rank 0 until it ends; the exit code."""
    here = place()
    assert here is not None
    torch.set_num_threads(1)
    try:
        connection = _connected()
        if connection is None:
            return 0
        with connection:
            connection.send(here.rank)
            while True:
                function, arguments = connection.recv()
                channel = _Channel(connection)
                channel.send(None)
                try:
                    function(channel, *arguments)
                except _Stopped:
                    connection.send_bytes(Wire.dumps(STOP))
    except (EOFError, OSError, KeyboardInterrupt):  # rank 0 has ended, and has said why
        return 0


def _connected() -> Connection | None:
    """A connection to rank 0; None where it has ended without needing one."""
    store = _store()
    store.set_timeout(timedelta(days=1))  # rank 0 may have data to download first
    while True:
        address, _, port = store.get(WHERE).decode().rpartition(":")
        if not port:
            return None
        try:
            return Client((address, int(port)), authkey=bytes.fromhex(store.get(KEY).decode()))
        except (EOFError, OSError, AuthenticationError):
            # It is the address of a group that torchrun has ended; the store outlives groups. If
            # rank 0 is gone for good, torchrun ends this process too.
            time.sleep(RETRY)


class _Stopped(EOFError):
    """Rank 0 wants no more of this work."""


class _Channel:
    """A connection as a worker's pipe."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.send, self.send_bytes = connection.send, connection.send_bytes

    def recv(self) -> Any:
        message = self.connection.recv()
        if isinstance(message, str) and message == STOP:
            raise _Stopped
        return message


@cache
def _store() -> Any:
    from torch.distributed import rendezvous

    return next(rendezvous("env://"))[0]
