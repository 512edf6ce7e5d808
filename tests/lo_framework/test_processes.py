"""Children: what travels, what a death is called, and that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lo_framework.processes import Child, Died, Wire

ROOT = Path(__file__).resolve().parents[2]


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True, kw_only=True)
class Box:
    content: Any


def test_tensors_travel_as_arrays_and_arrays_stay_arrays() -> None:
    x, a = torch.arange(3.0), np.arange(2)
    message = Pair([x, {"a": a}], (Box(content=x), "text", None))
    sent = Wire.dumps(message)
    assert not any(word in bytes(sent) for word in (b"storage", b"torch.multiprocessing"))
    back = Wire.loads(sent)
    assert torch.equal(back.left[0], x) and torch.equal(back.right[0].content, x)
    assert isinstance(back.left[1]["a"], np.ndarray) and back.left[1]["a"].tolist() == [0, 1]
    assert back.right[1:] == ("text", None)
    assert back.left[0].data_ptr() != x.data_ptr()


def echo(pipe: Any, extra: int) -> None:
    while True:
        pipe.send((pipe.recv(), extra, torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]))


def unprepared(pipe: Any, argument: Any) -> None:
    raise AssertionError


class Unpicklable:
    def __reduce__(self) -> Any:
        return (os._exit, (3,))


def test_a_child_answers_with_one_thread_and_ends_with_close() -> None:
    child = Child(echo, 5)
    assert child.receive() is None, "it is ready"
    child.send("hello")
    assert child.receive() == ("hello", 5, 1, "1")
    child.close()
    assert not child.process.is_alive()
    child.close()  # twice is fine


@pytest.mark.parametrize("ready", [True, False])
def test_a_killed_child_died_at_whatever_moment(ready: bool) -> None:
    child = Child(echo, 5)
    assert not ready or child.receive() is None
    assert child.process.pid is not None
    os.kill(child.process.pid, signal.SIGKILL)
    with pytest.raises(Died, match="exit code -9"):
        child.receive()
    child.close()


def test_a_child_that_fails_by_itself_could_not_start() -> None:
    child = Child(unprepared, Unpicklable())
    with pytest.raises(Died, match="could not start"):
        child.receive()
    child.close()


PARENT = """
import time
from lo_framework.processes import Child
from tests.lo_framework.test_processes import busy
if __name__ == "__main__":
    children = [Child(busy), Child(busy)]
    assert [child.receive() for child in children] == [None, None]
    print(*(child.process.pid for child in children), flush=True)
    time.sleep(60)
"""


def busy(pipe: Any) -> None:
    time.sleep(60)


def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    """In the middle of its work, which reads no pipe."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a child goes on without its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
