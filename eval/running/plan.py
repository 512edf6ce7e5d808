"""The plan of finished cells: all that decides their numbers beside the cells themselves."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lo_framework import namespace
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.running.store import digest
from lo_framework.optimizees.task import Task
from lo_framework.plugin import GROUP

# Code that no cell runs: it draws, prints or reads arguments, or belongs to the other program.
IRRELEVANT = (
    "commandline.py",
    "eval/cli.py",
    "eval/commands",
    "eval/report",
    "installed",
    "meta_train",
)


def plan_of(device: str, plugins: Sequence[str]) -> dict[str, Any]:
    """Code, versions and device as JSON values: cells of another plan are not used again."""
    origin = provenance()
    entries = [entry.module for entry in importlib.metadata.entry_points(group=GROUP)]
    return {
        "device": str(torch.device(device)),
        "plugin": {name: _code(plugin_files(name)) for name in [*plugins, *entries]},
        "versions": origin["versions"],
        "processor": origin["processor"],
        "code": _code(code_files()),
    }


def data_digest(task: Task) -> str:
    """A short name of everything that the task is trained and measured on."""
    tensors = [x for split in ("train", "valid", "test") for x in task.full(split)]
    return digest(*(x.detach().cpu().contiguous().numpy().tobytes() for x in tensors))


def code_files() -> dict[str, Path]:
    """All files that can change a cell, by their place in the package; a new one is among them."""
    home = Path(namespace.__file__).parent
    # The checkout's rooms are links, which a search from `home` would not follow.
    folders = [folder for folder in home.iterdir() if folder.is_dir()]
    paths = [*home.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    files = {path.relative_to(home).as_posix(): path for path in paths}
    return {
        name: path
        for name, path in files.items()
        if not any(name == word or name.startswith(f"{word}/") for word in IRRELEVANT)
    }


def plugin_files(name: str) -> dict[str, Path]:
    """The file of a plugin, or those of the package that it names."""
    if Path(name).is_file():
        return {name: Path(name)}
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return {}
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    paths = [path for folder in folders for path in folder.rglob("*.py")] or [Path(spec.origin)]
    return {str(path): path for path in paths}


def _code(files: dict[str, Path]) -> str:
    parts = ((name.encode(), path.read_bytes()) for name, path in sorted(files.items()))
    return digest(*(part for pair in parts for part in pair))
