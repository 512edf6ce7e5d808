"""Where a result comes from: versions, the command, the commit, the machine, the time."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lo-framework", "torch", "numpy", "scikit-learn", "prodigyopt", "schedulefree")


def provenance(command: Sequence[str] = ()) -> dict[str, Any]:
    """JSON values. ``command``: the words of the command line, if there was one."""
    return {
        "command": list(command),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "processor": processor(),
        "commit": commit(),
    }


def processor() -> str:
    """The processor's model and its capability as torch sees it, which decides the bits of a run:
    torch chooses its kernels by the latter.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor() or platform.machine())
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


@functools.cache  # that of the code which this process runs, whatever is committed meanwhile
def commit() -> str | None:
    """The commit of this code, ``"... (modified)"`` if files differ from it; None outside git."""
    folder = Path(__file__).resolve().parent
    # An installed copy may lie in somebody else's repository: only files that are tracked count.
    if not _git(folder, "ls-files", "--error-unmatch", "__init__.py"):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    return (
        f"{head} (modified)"
        if head and _git(folder, "status", "--porcelain", "--untracked-files=no")
        else head
    )


def version(name: str) -> str | None:
    """The installed version of a package, or None where it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Standard output, or None where git is missing or fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
