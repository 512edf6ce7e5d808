"""`eval report` on valid JSON with wrong contents: one line, and nothing written."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from lo_framework.eval.cli import main
from tests.eval.sharpness.evaluations import SMALL, optimizer_file, tiny_level

RUN = ["--optimizees", "mlp:hidden=4,batch=8", "--steps", "6", "--seeds", "2", "--progress", "none"]
TUNED = ["--tuning-seeds", "1", "--grid-size", "1"]
STUDIES = {
    "transfer": ["compare", *RUN, *TUNED, "--scaled", "0.5"],
    "robustness": ["robustness", *RUN, "--lrs", "0.001,0.01", "--optimizers", "adamw"],
    "ablation": [
        *("ablation", *RUN, "--baseline", "sgdm", "--references", "adamw:lr=0.01,cosine=0"),
        *("--panel", "lr=0.01/0.1,momentum=0/0.9", "--tuning-seeds", "1"),
    ],
}
WRONG: list[Any] = [
    *(None, True, 0, -1, 3.5, 10**400, "", "x", "\x1b[31m", "\ud800", "<script>", "=cmd|x"),
    *([], [0], [[]], [None], {}, {"task": 0}, 1e308, -1e308, 5e-324, [[1.0, "x"]], "[" * 50),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of one small evaluation of each kind."""
    home = tmp_path_factory.mktemp("made")
    for name, words in STUDIES.items():
        assert main([*words, "--out", str(home / name)]) == 0
    with tiny_level():
        words = ["sharpness", "--learned", str(optimizer_file(home)), *SMALL]
        assert main([*words, "--out", str(home / "sharpness")]) == 0
    kinds = (*STUDIES, "sharpness")
    return {kind: json.loads((home / kind / f"{kind}.json").read_text()) for kind in kinds}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something could be wrong: every key, and the first entries of every list."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:2])
    found = []
    for key, part in parts:
        found.append((*at, key))
        if isinstance(part, (dict, list)):
            found += places(part, (*at, key))
    return found


def spoiled(data: Any, rng: random.Random) -> Any:
    """A copy with one thing wrong: a value of another kind, a key gone or renamed, a list cut."""
    data = copy.deepcopy(data)
    *way, last = rng.choice([place for place in places(data) if place[0] not in ("derived",)])
    parent = data
    for key in way:
        parent = parent[key]
    how = rng.randrange(8)
    if how == 0:
        del parent[last]
    elif how == 1 and isinstance(parent, dict):
        parent[last + "x"] = parent.pop(last)
    elif how == 2 and isinstance(parent[last], str):
        parent[last] = chr(ord(parent[last][0]) ^ 4) + parent[last][1:] if parent[last] else "y"
    elif how == 3 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[last]))
    else:
        parent[last] = rng.choice(WRONG)
    return data


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", [*STUDIES, "sharpness"])
@pytest.mark.parametrize("count", [8, pytest.param(80, marks=pytest.mark.slow)])
def test_wrong_contents_are_one_line(
    kind: str, count: int, made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(kind)
    refused = 0
    for i in range(count):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / f"{kind}.json").write_text(json.dumps(spoiled(made[kind], rng)))
        code = main(["report", str(folder)])
        shown = capsys.readouterr()
        assert code in (0, 2), i
        assert all(c.isprintable() for line in shown.err.splitlines() for c in line)
        if code == 2:
            refused += 1
            assert shown.err.count("\n") == 1 and shown.out == "", (i, shown.err)
            assert len(shown.err) < 1000 and files(folder) == {f"{kind}.json"}
    assert refused >= count // 4
