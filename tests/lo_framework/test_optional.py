"""Optional packages: what a line says where one is missing, and that every import of one asks."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lo_framework.optional import OPTIONAL, missing
from lo_framework.spec import UserError
from tests.test_imports import BELOW, ROOT, source_files


def digits(tmp_path: Path) -> None:
    from lo_framework.optimizees.datasets import digits

    digits.load_digits(digits.DigitsConfig(), None)


def curves(tmp_path: Path) -> None:
    from lo_framework.meta_train.progress import Curves

    Curves(tmp_path / "tensorboard", 1)


def higher(tmp_path: Path) -> None:
    from lo_framework.estimators.higher import import_higher

    import_higher()


def picture(tmp_path: Path) -> None:
    from lo_framework.eval.report.drawing import canvas

    canvas(1, 1, (2.0, 2.0))


def bar(tmp_path: Path) -> None:
    from lo_framework.eval.running.progress import Progress

    Progress(mode="bar").begin(1)


def eigenvalues(tmp_path: Path) -> None:
    from lo_framework.eval.studies.request import SharpnessRequest
    from lo_framework.eval.studies.sharpness import SharpnessEvaluation

    SharpnessEvaluation(SharpnessRequest(out=str(tmp_path), learned=""), learned={})


def download(tmp_path: Path) -> None:
    """The line comes after what was looked for, and where."""
    from lo_framework.optimizees.datasets import load

    try:
        load("mnist", str(tmp_path))
    except UserError as error:
        raise UserError(str(error).rpartition("; ")[2]) from error


def words(tmp_path: Path) -> None:
    from lo_framework.optimizees.datasets.vocabulary import Rules, vocabulary

    vocabulary(["a b"], Rules(size=4))


def bleu(tmp_path: Path) -> None:
    from lo_framework.optimizees.translation import TranslationTask

    TranslationTask.bleu(None, {}, "test")  # type: ignore[arg-type]  # it asks before all else


def share(tmp_path: Path) -> None:
    from lo_framework.learned import load

    load("hf://owner/name")


def baseline(name: str) -> Callable[[Path], Any]:
    def build(tmp_path: Path) -> None:
        from lo_framework.eval.baselines import make_baseline

        make_baseline(name)

    return build


USES: dict[str, Callable[[Path], Any]] = {
    "sklearn": digits,
    "tensorboard": curves,
    "higher": higher,
    "matplotlib": picture,
    "tqdm": bar,
    "scipy": eigenvalues,
    "jinja2": eigenvalues,
    "tokenizers": words,
    "sacrebleu": bleu,
    "pooch": download,
    "huggingface_hub": share,
    "prodigyopt": baseline("prodigy"),
    "schedulefree": baseline("schedule-free"),
}


@pytest.mark.parametrize("module", OPTIONAL)
def test_the_line_where_a_package_is_missing(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if module not in (
        "huggingface_hub",
        "sacrebleu",
    ):  # an environment of before it was asked for tests the rest
        assert missing(module) == ""
    monkeypatch.setitem(sys.modules, module, None)
    package, extra, _ = OPTIONAL[module]
    with pytest.raises(UserError) as refusal:
        USES[module](tmp_path)
    line = str(refusal.value)
    assert line.startswith(f"needs {package} (") and "\n" not in line
    assert line.endswith(f"): pip install 'lo-framework[{extra}]'")


def test_extras_bring_what_the_lines_promise() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = dict(re.findall(r"^(\w+) = \[(.*)\]", text, re.M))
    for package, extra, _ in OPTIONAL.values():
        assert f'"{package}' in extras[extra], f"[{extra}] does not bring {package}"
        assert f'"{package}' not in extras["dependencies"]


def unasked(text: str) -> list[str]:
    """Functions that import an optional package without a call of `require` or `missing` for it.

    Pictures begin with a `canvas` of the room drawing, which asks for matplotlib.
    """
    tree, faults = ast.parse(text), []
    drawn = (
        {"matplotlib"}
        if re.search(r"^(def canvas|from .*report(\.| import )drawing)\b", text, re.M)
        else set()
    )
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        asked = drawn | {
            ast.unparse(node.args[0]).strip("'")
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("require", "missing", "optional.missing")
            and node.args
        }
        names = {
            name.partition(".")[0]
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
        }
        faults += [f"{function.name}: {n}" for n in sorted(names & set(OPTIONAL) - asked)]
    return faults


def test_every_import_of_an_optional_package_asks() -> None:
    faults = {}
    for room in BELOW:
        for path in source_files(room):
            if found := unasked(path.read_text("utf-8")):
                faults[path.relative_to(ROOT).as_posix()] = found
    assert faults == {}


def test_the_rule_itself() -> None:
    assert unasked("def f():\n    import scipy.linalg") == ["f: scipy"]
    assert unasked("def f():\n    require('tqdm')\n    from scipy import x") == ["f: scipy"]
    assert not unasked("def f():\n    require('scipy')\n    from scipy import x")
