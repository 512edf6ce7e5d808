"""One namespace: what is installed is ``lo_framework`` and its subpackages, and never a second copy
of one.

In the checkout the folders ``eval``, ``meta_train``, ``optimizees`` and ``regularizers`` lie at the
top and are reached as ``lo_framework.eval`` and so on through symbolic links. Python would load
such a folder twice, once by each name; two registries would come of it. So a folder that is
imported by its short name calls `alias`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

HOME = "lo_framework"


class _Aliases(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``eval.x`` as ``lo_framework.eval.x`` for every package in ``packages``."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        # Not __main__: `python -m eval` runs it as a script under its short name.
        if name.partition(".")[0] not in self.packages or name.endswith(".__main__"):
            return None
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{HOME}.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the short name's spec in the place of its own.
        module.__spec__ = getattr(module.__spec__, "loader_state", None)


_ALIASES = _Aliases()


def alias(package: str) -> None:
    """Make the top-level name ``package`` mean ``lo_framework.<package>``, submodules included."""
    if _ALIASES not in sys.meta_path:
        sys.meta_path.insert(0, _ALIASES)
    sys.modules[package] = importlib.import_module(f"{HOME}.{package}")
    _ALIASES.packages.add(package)
