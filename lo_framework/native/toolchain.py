"""C sources as functions of this process: compiled once per machine, kept, and loaded by ctypes.

There is no build step and no header but the compiler's own. The compiled file is named by a digest
of its source, the compiler's version and its flags, so a changed source is another file; it appears
under its name only when it is whole, so processes that need it at the same time do not disturb each
other. The folder is the user's alone (``LO_KERNELS``, else a folder of the user's cache).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from lo_framework.errors import UserError

# No -ffast-math: losses that are not finite must stay so.
FLAGS = (
    *("-std=gnu11", "-O2", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fno-trapping-math", "-Wno-psabi"),
)
SECONDS = 300  # of one compilation
SCRATCH = "compiling-"


@cache
def compiler() -> tuple[str, str] | None:
    """The path and the version of a C compiler (``CC``, cc, gcc or clang), or None."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        told = subprocess.run([path, "--version"], capture_output=True, text=True)
        if not told.returncode:
            return path, told.stdout.splitlines()[0]
    return None


@cache
def reason() -> str:
    """Why nothing can be compiled here; '' where it can."""
    if sys.platform == "win32":
        return "compiled kernels are not supported on Windows"
    if compiler() is None:
        return "there is no C compiler (cc, gcc or clang, or the one that CC names)"
    try:
        probe = load("int lo_probe(void) { return 42; }")
    except UserError as error:
        return str(error)
    return "" if probe.lo_probe() == 42 else "the C compiler makes wrong code"


def _target() -> str:
    """The flag for this very processor."""
    return "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


@cache
def _processor() -> str:
    """What distinguishes processors that share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(x for x in lines if x.startswith(("flags", "Features")))[:4000]


def _folder() -> Path:
    """Where compiled files are kept: a folder that nobody else can write to."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("LO_KERNELS") or Path(cache_home) / "lo_framework" / "kernels")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if private and status.st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="lo_kernels_"))  # of this process


def _sweep(folder: Path) -> None:
    """Remove what compilations left behind that were killed."""
    for path in folder.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 2 * SECONDS:
                shutil.rmtree(path, ignore_errors=True)


@cache
def load(source: str) -> ctypes.CDLL:
    """The compiled ``source``.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    tool = compiler()
    if tool is None:
        raise UserError(reason())
    path, version = tool
    text = "\0".join((source, version, *FLAGS, _target(), _processor()))
    folder = _folder()
    target = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.so"
    if not target.exists():
        _sweep(folder)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
            code, made = Path(scratch) / "kernel.c", Path(scratch) / "kernel.so"
            code.write_text(source)
            command = [path, *FLAGS, _target(), str(code), "-o", str(made), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                raise UserError(f"{path} took more than {SECONDS} s for a kernel") from None
            if done.returncode:
                first = next((x for x in done.stderr.splitlines() if "error" in x), "no message")
                raise UserError(f"{path} cannot compile a kernel: {first}")
            os.replace(made, target)
    return ctypes.CDLL(str(target))
