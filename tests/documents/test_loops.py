"""docs/use: every page about a training loop runs from its first block to its last."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.documents.page import blocks, script
from tests.test_imports import ROOT

USE = ROOT / "docs/use"
NEEDS = {
    "plain": "",
    "ddp": "",
    "fsdp2": "",
    "notebook": "tensorboard",
    "trainer": "transformers",
    "lightning": "lightning",
    "accelerate": "accelerate",
    "lora": "peft",
}
# What a page says of the run, beside not breaking.
TELLS = {
    "plain": r"epoch 10: loss 0\.\d+\nLearned general .* step 160 of 160, guard \(activations: 0\)",
    "ddp": r"epoch 10: loss 0\.\d+\nLearned general .* step 160 of 160",
    "fsdp2": r"loss 0\.\d+\nLearned general .* step 160 of 160",
    "notebook": r"60/60 .*stopped: Learned general",
    "trainer": r"'epoch': '5'}\nLearned general .* step 80 of 80, guard \(activations: 0\)",
    "lightning": r"Learned general .* step 80 of 80, guard .*\ntensor\(0\.\d+\) tensor\(0\.9\d+\)",
    "accelerate": r"epoch 10: loss 0\.\d+\nLearned general .* step 160 of 160",
    "lora": r"step 99: loss 0\.\d+\nLearned general .* 10,240 parameters in 16 tensors",
}
# Those whose programs print nothing of others may not warn either.
QUIET = ("plain", "ddp", "fsdp2", "notebook")


def run(page: str, folder: Path, *options: str) -> str:
    """What the page prints when it is run as a script in an empty folder."""
    (folder / f"{page}_page.py").write_text(script(USE / f"{page}.md"), "utf-8")
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options, f"{page}_page.py"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "broke the guard" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", NEEDS)
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    if NEEDS[page] and importlib.util.find_spec(NEEDS[page]) is None:
        pytest.skip(f"{NEEDS[page]} is not installed (make test-loops)")
    told = run(page, tmp_path, *(["-W", "error"] if page in QUIET else []))
    assert re.search(TELLS[page], told, re.S), told


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    """Cell by cell, the stop button and the magics too; but no server is started."""
    for package in ("nbclient", "ipykernel", "tensorboard"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (make test-loops)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these packages
        import nbclient
        import nbformat

        cells = [
            nbformat.v4.new_code_cell(re.sub(r"^%tensorboard .*\n", "", text, flags=re.M))
            for kind, text, _ in blocks(USE / "notebook.md")
            if kind in ("python", "setup", "text")  # of magics
        ]
        notebook = nbformat.v4.new_notebook(cells=cells)
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        resources = {"metadata": {"path": str(tmp_path)}}
        client = nbclient.NotebookClient(notebook, timeout=300, resources=resources)
        client.execute(env=env)
    told = [
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.outputs
    ]
    assert any(text.startswith("Learned general (scaled), 1,539 parameters") for text in told)
    assert any("\nstopped: Learned general" in text for text in told)
    assert list((tmp_path / "logs").glob("events.*"))


def test_every_page_is_listed_and_run() -> None:
    index = (USE / "index.md").read_text("utf-8")
    pages = {path.stem for path in USE.glob("*.md")} - {"index"}
    assert pages == set(NEEDS) == set(TELLS)
    tree = index.split("```{toctree}")[1].split("```")[0].split()
    assert {name for name in tree if name in pages} == pages
    assert all(f"({page}.md)" in index for page in pages)


def test_links_of_the_pages_lead_somewhere() -> None:
    """Headings too, by the anchors that GitHub and MyST give them."""
    for page in USE.glob("*.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), f"{page.name}: {link}"
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert not anchor or anchor in anchors, f"{page.name}: {link}"


def test_pages_are_short() -> None:
    lengths = {path.name: path.read_text("utf-8").count("\n") for path in USE.glob("*.md")}
    assert not {name: n for name, n in lengths.items() if n > 130}
