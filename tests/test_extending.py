"""docs/extending.md: its blocks are one plugin, and its commands run with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
SMALL = {
    "meta_train": "--outer-steps 2 --unroll-length 2 --episode-length 4 --num-tasks 2 --shards 1 "
    "--validate-every 1 --probes none --no-evaluate --workers 1",
    "eval": "--steps 4 --seeds 1 --tuning-seeds 1 --grid-size 1 --workers 1",
}
RUN = """\
import sys
from lo_framework.{program}.cli import main
assert main(sys.argv[1:]) == 0
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def test_the_page_has_a_command_for_each_thing() -> None:
    assert len(COMMANDS) == 7


# The first one loads every block of the page as a plugin.
@pytest.mark.parametrize(
    "line", [COMMANDS[0], *(pytest.param(line, marks=pytest.mark.slow) for line in COMMANDS[1:])]
)
def test_the_page_runs_as_it_stands(line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("python")), "utf-8")
    program, *words = line.removeprefix("python -m ").replace("lo-eval", "eval").split()
    words += SMALL[program].split()
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(program=program), *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_files_that_the_page_names_are_there() -> None:
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        places = [ROOT / name, ROOT / "lo_framework" / name]
        assert any(place.exists() for place in places) or name == "mine.py", name
