"""The pages of docs/: their blocks run, their commands are read, their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lo_framework.eval.commands import COMMANDS
from tests.documents.page import blocks, script
from tests.test_imports import ROOT
from tests.test_wheel import installed, tree, wheel

__all__ = ["installed", "tree", "wheel"]  # fixtures

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "use")
# Written for a file of one's own: other tests run them as a plugin.
PLUGINS = {"extending.md", "regularizers.md"}
# What needs sharded processes around it has a test of its own.
RUN = [page for page in PAGES if script(page) and page.name not in {*PLUGINS, "distributed.md"}]
COMMANDED = [page for page in PAGES if any(kind == "console" for kind, *_ in blocks(page))]
SHIM = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""
PROGRAMS = ("python", "lo", "lo-eval", "torchrun", "pip", "git", "tensorboard", "jupyter")


def name(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name)
def test_a_page_runs_from_top_to_bottom(page: Path, installed: Path, tmp_path: Path) -> None:
    """From the wheel, in an empty folder."""
    done = run(page, tmp_path, installed, f"{installed / 'bin'}:{Path(sys.executable).parent}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def run(page: Path, folder: Path, package: Path, paths: str) -> subprocess.CompletedProcess[str]:
    """Run a page in ``folder``, with our packages in ``package``."""
    (folder / page.with_suffix(".py").name).write_text(script(page))
    env = {"PATH": f"{paths}:/usr/bin:/bin", "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, page.with_suffix(".py").name]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.parametrize("page", COMMANDED, ids=name)
def test_commands_that_take_long_are_commands(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell runs the blocks with programs that only write down how they are called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for call in calls(page, tmp_path):
        try:
            read(call)
        except Exception as error:
            raise AssertionError(f"{' '.join(call)}: {error}") from error


def calls(page: Path, folder: Path) -> Iterator[list[str]]:
    log = folder / "log"
    log.touch()
    for program in PROGRAMS:
        shim = folder / program
        shim.write_text(SHIM.format(python=sys.executable, log=str(log)))
        shim.chmod(0o755)
    for kind, text, line in blocks(page):
        if kind == "console":
            command = ["bash", "-euo", "pipefail", "-c", "cd() { :; }\n" + text]
            env = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"line {line}: {done.stderr}"
    return map(json.loads, log.read_text().splitlines())


def read(call: list[str]) -> None:
    """Take in a command as its program does, as far as nothing is looked for on the disk."""
    program, *words = call
    if program == "torchrun":
        words = words[words.index("-m") :]
    if program in ("python", "torchrun") and words[:1] == ["-m"]:
        program, words = words[1], words[2:]
    if program == "meta_train":
        from lo_framework.meta_train.cli import read as settings
        from lo_framework.meta_train.presets import make_config

        program_, given, written = settings(words)
        given.pop("start", None)  # a file
        make_config(program_.preset, written, **given)
    elif program in ("eval", "lo-eval"):
        from lo_framework.commandline import Parser

        entry = COMMANDS.find(words[0])
        entry.config(**Parser("", entry.config).read(words[1:]))
    elif program.startswith("benchmarks."):
        assert (ROOT / f"{program.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    gone = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target))
        ):
            gone.append(link)
    assert gone == []


def anchors(page: Path) -> set[str]:
    """Of its headings, as repositories and the site make them."""
    heads = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_program_is_in_the_reference() -> None:
    text = (DOCS / "api/programs.md").read_text("utf-8")
    named = set(re.findall(r"^```{help-of} lo-eval (\w+)", text, re.M))
    assert named == {command for command, _ in COMMANDS.items()}
