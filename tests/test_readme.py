"""The README: short, right in its number, and every block of it runs as pasted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import ROOT
from tests.test_wheel import OWN, installed, tree, wheel

__all__ = ["installed", "tree", "wheel"]  # fixtures

TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)


def test_it_is_short() -> None:
    prose = re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S)
    assert len(TEXT.splitlines()) <= 120 and len(prose.split()) <= 700


def test_its_number_is_the_results() -> None:
    content = json.loads((ROOT / "results/quick/transfer.json").read_text("utf-8"))
    ratio = next(
        c["ratio"]
        for c in content["derived"]["comparisons"]
        if (c["task"], c["metric"]) == ("mlp/digits", "mean_loss")
    )
    assert f"**{ratio:.2f} times**" in TEXT


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) >= 8
    assert not [link for link in links if not (ROOT / link).exists()]


def test_paths_in_documents_lead_somewhere() -> None:
    """Files of the code and of the tests, back-quoted in a guide."""
    gone = []
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text("utf-8")
        folders = (
            "benchmarks|docs|eval|lo_framework|meta_train|optimizees|regularizers|results|tests"
        )
        paths = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text)
        gone += [f"{document.name}: {path}" for path in paths if not (ROOT / path).exists()]
    assert gone == []


def test_only_installing_is_not_run() -> None:
    """The wheel is installed by other tests, without a network."""
    assert {kind for kind, _ in BLOCKS} == {"console", "bash", "python"}
    assert [text.count("pip install") for kind, text in BLOCKS if kind == "console"] == [1]


@pytest.mark.slow
def test_every_block_runs_as_pasted(installed: Path, tmp_path: Path) -> None:
    """From the wheel, one after the other, in a folder with files of a person's own."""
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = f"{installed / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
    env = {"PATH": paths, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    for kind, text in BLOCKS:
        if kind == "console":
            continue
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable]
        if kind == "python":
            (tmp_path / "script.py").write_text(text)
            command.append("script.py")
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
