"""Refused commands: whatever is wrong with the input, the folder stays as it was."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from lo_framework.eval.cli import main
from lo_framework.learned import make_learned, save_optimizer

TINY = ["--optimizees", "quadratic", "--steps", "2", "--seeds", "1", "--progress", "none"]
PANEL = ["--baseline", "sgdm", "--panel", "lr=0.01/0.1,momentum=0/0.9"]
COMMANDS = {
    "compare": ["--arms", "sgdm"],
    "transfer": ["--learned", "FILE"],
    "ablation": PANEL,
    "robustness": ["--lrs", "1e-3"],
    "sharpness": ["--learned", "FILE"],
}
TUNED = [name for name in COMMANDS if name != "robustness"]
GRIDS = [name for name in TUNED if name != "ablation"]
COMMON = [
    "--seeds=0",
    "--steps=0",
    "--workers=0",
    "--seed-offset=-1",
    "--seed-offset=10000",
    "--optimizees=mpl",
    "--optimizees=quadratic,quadratic",
    "--datasets=digitz",
    "--device=cuda:77",
]
OWN = [
    ("compare", "--arms=sgdm,sgdm", "given twice"),
    ("compare", "--arms=adamw", "given twice"),
    ("compare", "--at-reference=sgdm,sgdm", "given twice"),
    ("compare", "--scaled=0.5,0.5", "given twice"),
    ("transfer", "--baselines=adamw,adamw", "given twice"),
    ("transfer", "--baselines=adamv", "unknown baseline"),
    ("ablation", "--references=adamw,adamw", "given twice"),
    ("robustness", "--optimizers=adamw,adamw", "given twice"),
    ("sharpness", "--baselines=adamw,adamw", "given twice"),
]
REFUSED = [(name, word, "") for name in COMMANDS for word in COMMON]
REFUSED += [(name, "--tuning-seeds=0", "--tuning-seeds: expected at least 1") for name in TUNED]
REFUSED += [(name, "--grid-size=0", "--grid-size: expected at least 1") for name in GRIDS]
REFUSED += OWN


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path, learned = (
        tmp_path_factory.mktemp("learned") / "optimizer.safetensors",
        make_learned("hyper-adamw"),
    )
    save_optimizer(
        path, learned.theta(), kind="hyper-adamw", config=asdict(learned.config), summary={}
    )
    return str(path)


def files_in(folder):
    return {
        path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")
    }


@pytest.mark.parametrize(("name", "word", "message"), REFUSED)
def test_a_refused_command_leaves_the_folder_as_it_was(name, word, message, file, tmp_path, capsys):
    words = [name, *(file if own == "FILE" else own for own in COMMANDS[name]), *TINY, word]
    out = tmp_path / "deep" / "out"
    assert main([*words, "--out", str(out)]) == 2
    line = capsys.readouterr().err
    assert message in line and len(line.splitlines()) == 1
    assert not list(tmp_path.iterdir())

    (out / "cells").mkdir(parents=True)
    (out / "cells" / "plan.json").write_text(json.dumps({"steps": 1}))
    (out / "cells" / "finished.json").write_text("{}")
    before = files_in(tmp_path)
    for fresh in ([], ["--fresh"]):
        assert main([*words, *fresh, "--out", str(out)]) == 2
        assert capsys.readouterr().err == line  # its own error, not that of the cells
        assert files_in(tmp_path) == before
