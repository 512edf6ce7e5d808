"""User code that adds tasks (`register_task`), and in other rooms optimizers and regularizers, by
being imported.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from lo_framework.spec import UserError, describe

GROUP = "lo_framework.plugins"


def load_plugins(names: Iterable[str] = ()) -> None:
    """Import every plugin that installed packages announce (entry points of GROUP), then those in
    `names`.

    Raises:
        UserError: a plugin is missing or fails while it is imported.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        with _loading(f'"{entry.name}" ({entry.value})'):
            entry.load()
    for name in names:
        load_plugin(name)


def load_plugin(name: str) -> ModuleType:
    """Import ``"folder/file.py"`` or ``"package.module"``; the same plugin is imported once per
    process.

    Raises:
        UserError: no such file or module, or an error while it is imported; the line says where.
    """
    is_file = name.endswith(".py") or os.sep in name
    with _loading(f'"{name}"'):
        return _load_file(Path(name)) if is_file else importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    # A name of its own: two plugins called tasks.py in different folders must not replace each
    # other.
    name = f"lo_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _loading(plugin: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        line = describe(error, place=not isinstance(error, SyntaxError | ImportError))
        raise UserError(f"plugin {plugin}: {line}") from error
