"""Resume states: exact, the last two kept, and a loadable state after a kill at any moment or a
full disk.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from lo_framework.files.checkpoint import ResumeState, load_latest_state, save_state
from lo_framework.spec import UserError

ROOT = Path(__file__).resolve().parents[2]
META = {
    "worst": float("-inf"),
    "history": [0.1, 0.2 + 1e-17],
    "shape": (2, 3),
    "nested": {"best": None, "ok": True},
}


def tensors(step: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return {
        "theta": torch.randn(3, 4, generator=g),
        "rng": g.get_state(),
        "steps": torch.tensor(7),
        "done": torch.tensor(False),
        "strided": torch.arange(6).reshape(2, 3).T,
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "half": torch.ones(2, dtype=torch.float16),
    }


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def loaded(folder: Path) -> ResumeState:
    state = load_latest_state(folder)
    assert state is not None
    return state


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    assert load_latest_state(folder) is None
    path = save_state(folder, 5, tensors(), META)
    assert path.parent == folder and path.is_file()
    step, back, meta, warning = loaded(folder)
    assert (step, warning) == (5, "")
    assert meta == {**META, "shape": [2, 3]}
    assert back.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert back[name].is_contiguous() and torch.equal(
            back[name].nan_to_num(), tensor.nan_to_num()
        )
    g = torch.Generator()
    g.set_state(back["rng"])
    assert torch.equal(torch.rand(3, generator=g), torch.rand(3, generator=_generator_after(0)))


def _generator_after(seed: int) -> torch.Generator:
    g = torch.Generator().manual_seed(seed)
    torch.randn(3, 4, generator=g)
    return g


def test_keeps_the_last_two_and_drops_a_replaced_future(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("kept")
    for step in (0, 9, 10, 11):
        save_state(tmp_path, step, tensors(step), {})
    assert names(tmp_path) == [
        "metrics.jsonl",
        "state-0000000010.safetensors",
        "state-0000000011.safetensors",
    ]
    save_state(tmp_path, 10, tensors(), {})
    save_state(tmp_path, 10, tensors(), {"again": True})
    assert names(tmp_path) == ["metrics.jsonl", "state-0000000010.safetensors"]
    assert loaded(tmp_path).meta == {"again": True}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "renamed", "folder"])
def test_damaged_newest_falls_back_with_a_warning(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture
) -> None:
    save_state(tmp_path, 1, tensors(1), {"n": 1})
    newest = save_state(tmp_path, 2, tensors(2), {"n": 2})
    raw = newest.read_bytes()
    if damage == "flip":
        newest.write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    elif damage == "cut":
        newest.write_bytes(raw[: len(raw) // 2])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "renamed":
        newest = newest.replace(newest.with_name("state-0000000003.safetensors"))
    else:
        newest.unlink()
        newest.mkdir()
    step, back, meta, warning = loaded(tmp_path)
    if damage == "renamed":
        assert meta == {"n": 1}
    assert step == 1 and torch.equal(back["theta"], tensors(1)["theta"])
    assert newest.name in warning and "continuing from step 1" in warning and "\n" not in warning
    assert newest.exists()
    assert capfd.readouterr() == ("", "")


def test_nothing_loadable_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    for step in (1, 2):
        save_state(tmp_path, step, tensors(), {}).write_bytes(b"")
    with pytest.raises(UserError, match=r"no state in .* can be resumed: .*0002.*0001.*empty"):
        load_latest_state(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot read"):
        load_latest_state(tmp_path / "file")


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step"):
        save_state(tmp_path, -1, {}, {})
    with pytest.raises(TypeError, match=r"record\.meta\.when"):
        save_state(tmp_path, 1, {}, {"when": object()})
    assert names(tmp_path) == []


KILL_LOOP = """
    import os, random, signal, sys, time
    import torch
    from lo_framework.files.checkpoint import load_latest_state, save_state
    torch.set_num_threads(1)
    folder, stage = sys.argv[1], sys.argv[2]
    rng = random.Random(0)

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def child(first):
        if stage == "replace":
            save_state(folder, first, {"w": torch.full((9000,), float(first))}, {"step": first})
            os.replace = die
        elif stage == "fsync":
            save_state(folder, first, {"w": torch.full((9000,), float(first))}, {"step": first})
            os.fsync = die
        for step in range(first + 1, first + 100000):
            save_state(folder, step, {"w": torch.full((9000,), float(step))}, {"step": step})

    last, patience = -1, 1.0
    for round in range(int(sys.argv[3])):
        pid = os.fork()
        if pid == 0:
            child(last + 1)
            os._exit(1)
        if stage == "any":
            time.sleep((0.01 + 0.04 * rng.random()) * patience)
            os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        names = os.listdir(folder) if os.path.isdir(folder) else []
        left = [name for name in names if name.endswith(".tmp")]
        assert stage == "any" or left, "the kill came too late to test anything"
        state = load_latest_state(folder)
        if state is None:
            patience *= 2  # a busy machine: not even the first save was done
        else:
            assert state.warning == "" and state.step >= last and state.meta == {"step": state.step}
            assert bool((state.tensors["w"] == state.step).all())
            last = state.step
            assert not any(name.endswith(".tmp") for name in os.listdir(folder))
    assert last >= 0
    # Each kill may have left one state too many; the next save clears them all.
    save_state(folder, last + 1, {}, {})
    assert len(os.listdir(folder)) == 2, os.listdir(folder)
    print("last", last)
"""


def run(
    script: str, *args: str | Path, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `script` in a fresh Python with the repository importable."""
    command = [*prefix, sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("stage, rounds", [("any", 25), ("replace", 3), ("fsync", 3)])
def test_killed_while_saving(tmp_path: Path, stage: str, rounds: int) -> None:
    done = run(KILL_LOOP, tmp_path / "states", stage, str(rounds))
    assert done.returncode == 0 and "last" in done.stdout, done.stderr


FULL = """
    import os, sys
    import torch
    from lo_framework.files.checkpoint import load_latest_state, save_state
    from lo_framework.spec import UserError
    folder = sys.argv[1]
    save_state(folder, 1, {"w": torch.ones(1000)}, {})
    save_state(folder, 2, {"w": torch.ones(1000)}, {})
    before = {name: open(os.path.join(folder, name), "rb").read() for name in os.listdir(folder)}
    try:
        save_state(folder, 3, {"w": torch.ones(200_000)}, {})
    except UserError as error:
        print(error)
    after = {name: open(os.path.join(folder, name), "rb").read() for name in os.listdir(folder)}
    assert after == before, (sorted(after), sorted(before))
    assert load_latest_state(folder).step == 2
"""


def test_file_size_limit_while_saving(tmp_path: Path) -> None:
    """A real refusal by the system in the middle of a write; Python ignores SIGXFSZ, so the write
    raises EFBIG.
    """
    limits = f"(100_000, {resource.RLIM_INFINITY})"
    limit = f"    import resource; resource.setrlimit(resource.RLIMIT_FSIZE, {limits})\n"
    done = run(limit + FULL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("\n") == 1
        and "File too large; what was there before is unchanged" in done.stdout
    )


def test_full_disk_while_saving(tmp_path: Path) -> None:
    """A real full disk: a tmpfs of 256 kB in a mount namespace of its own, where the system allows
    one.
    """
    shell = 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", shell, str(tmp_path))
    try:
        probe = subprocess.run([*prefix, "true"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if probe.returncode != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    done = run(FULL, tmp_path, prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "No space left on device" in done.stdout


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_fills_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Systems that reserve blocks late report the full disk only at fsync or rename."""
    save_state(tmp_path, 1, tensors(), {})
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(UserError, match="No space left on device"):
            save_state(tmp_path, 2, tensors(), {})
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_interrupted_by_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupt)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job is born ignoring it
    try:
        with pytest.raises(KeyboardInterrupt):
            save_state(tmp_path, 2, tensors(), {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(tmp_path) == []
