"""An evaluation of one's own: one file, one decorator, ``--plugin``."""

from __future__ import annotations

import json

import pytest

from lo_framework.eval.cli import main
from lo_framework.eval.commands import COMMANDS, register_evaluation
from lo_framework.eval.studies.request import RobustnessRequest
from lo_framework.spec import UserError

PLUGIN = '''
from dataclasses import dataclass

from lo_framework.eval.commands import register_evaluation
from lo_framework.eval.report.robustness import RobustnessReport
from lo_framework.eval.studies.request import RobustnessRequest
from lo_framework.eval.studies.robustness import RobustnessEvaluation


@dataclass(frozen=True, kw_only=True)
class CliffRequest(RobustnessRequest):
    factor: float = 10.0
    """how much larger the second step size is"""
    out: str = "runs/cliff"


class CliffEvaluation(RobustnessEvaluation):
    def prepare(self):
        super().prepare()
        self.lrs = (self.lrs[0], self.lrs[0] * self.request.factor)


@register_evaluation("cliff_by_test", CliffRequest)
def cliff():
    """Train from two step sizes."""
    return CliffEvaluation, RobustnessReport
'''


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "cliffs.py"
    path.write_text(PLUGIN)
    yield str(path)
    COMMANDS.pop("cliff_by_test", None)


def test_it_is_a_command_like_any_other(plugin, tmp_path, capsys):
    words = ["cliff_by_test", "--plugin", plugin, "--optimizees", "quadratic", "--steps", "3"]
    words += [
        "--seeds",
        "2",
        "--optimizers",
        "sgdm",
        "--lrs",
        "0.01",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--factor", "3"]) == 0
    data = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert data["lrs"] == [0.01, 0.03] and (tmp_path / "out" / "cells").is_dir()
    assert main([*words, "--factor", "3"]) == 0
    assert "1 finished cells of an earlier run were used again" in capsys.readouterr().err
    assert main([*words, "--fcator", "3"]) == 2
    assert 'did you mean "--factor"' in capsys.readouterr().err
    assert main(["report", str(tmp_path / "out")]) == 0


def test_without_its_plugin_it_is_unknown_and_names_are_taken_once(capsys):
    assert main(["cliff_by_test"]) == 2
    assert 'unknown command "cliff_by_test"' in capsys.readouterr().err
    with pytest.raises(UserError, match="exists already"):
        register_evaluation("transfer", RobustnessRequest)(lambda: None)
