"""`evaluate` and `load` for scripts: specs or objects, files or optimizers, tables as text."""

from __future__ import annotations

import numpy as np
import pytest

import lo_framework.eval as evaluation
from lo_framework.eval.cli import main
from lo_framework.learned import make_learned, save
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError

TINY = "mlp:hidden=4,batch=8"
SMALL = dict(baselines=["adamw"], steps=3, seeds=2, tuning_seeds=1, grid_size=1)


def test_specs_objects_and_files_are_the_same(tmp_path):
    learned = make_learned("hyper-adamw")
    path = tmp_path / "mine.safetensors"
    save(learned, path)
    (task,) = make_tasks(TINY)
    one = evaluation.evaluate([TINY, "quadratic"], {"mine": learned}, **SMALL)
    other = evaluation.evaluate([task, "quadratic"], {"mine": path}, **SMALL)
    assert isinstance(one, evaluation.Result) and one.learned == ("mine", "mine (step tuned)")
    assert other.files == {"mine": str(path)} and one.files == {}
    for a, b in zip(one.arms, other.arms, strict=True):
        np.testing.assert_array_equal(a.values("mean_loss"), b.values("mean_loss"))
    assert "mine against adamw" in one.table() and "quadratic (10 parameters)" in one.table()
    alone = evaluation.evaluate("quadratic", learned, **SMALL, step_scales="none")
    assert alone.learned == ("hyper-adamw",)


def test_what_a_command_left_is_loaded(tmp_path, capsys):
    words = ["--optimizees", "quadratic", "--steps", "3", "--seeds", "2", "--tuning-seeds", "1"]
    assert (
        main(["compare", *words, "--grid-size", "1", "--scaled", "2", "--out", str(tmp_path)]) == 0
    )
    result = evaluation.load(tmp_path)
    assert isinstance(result, evaluation.Result) and result.table() in capsys.readouterr().out
    with pytest.raises(UserError, match=r"there is no transfer\.json"):
        evaluation.load(tmp_path / "nowhere")


def test_unknown_names_and_settings_are_told():
    with pytest.raises(AttributeError, match="evaluat"):
        evaluation.evaluat  # noqa: B018
    with pytest.raises(UserError, match='unknown option "stpes" \\(did you mean "steps"'):
        evaluation.evaluate("quadratic", make_learned("hyper-adamw"), stpes=3)
