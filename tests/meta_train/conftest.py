"""Fixtures of the meta-training tests: the fork server, a finished run, and a registry that forgets
a test's plugins.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lo_framework.learned import LEARNED
from lo_framework.meta_train.cli import main
from lo_framework.optimizees.registry import TASKS
from tests.meta_train.tools import Forker, command


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    server = Forker(tmp_path_factory.mktemp("forker"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as the command line makes it; tests copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(command(out)) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    """What a plugin registers ends with its test."""
    registries: list[dict[str, Any]] = [LEARNED, TASKS]
    before = [(registry, dict(registry)) for registry in registries]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
    for name in [name for name in sys.modules if name.startswith("lo_plugin_")]:
        del sys.modules[name]
