"""docs/extending.md: its blocks are one plugin, and its commands run with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
SMALL = {
    "meta_train": "--outer-steps 2 --unroll-length 2 --episode-length 4 --num-tasks 2 --shards 1 "
    "--validate-every 1 --no-evaluate --workers 1",
    "eval": "--steps 4 --seeds 1 --tuning-seeds 1 --grid-size 1 --workers 1",
}
RUN = """\
import sys
from lo_framework.{program}.cli import main
assert main(sys.argv[1:]) == 0
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("python")), "utf-8")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 7
    for i, line in enumerate(commands):
        python, _, program, *words = line.split()
        assert python == "python"
        words += [*SMALL[program].split(), "--out", str(tmp_path / f"out{i}")]
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
