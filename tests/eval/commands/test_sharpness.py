"""`python -m eval sharpness` and `eval report` end to end at tiny sizes: the numbers, the page, bad
input.
"""

from __future__ import annotations

import json

import pytest

from lo_framework.eval.cli import main
from lo_framework.eval.report.sharpness.page import SharpnessReport
from lo_framework.eval.sharpness.result import FILE
from lo_framework.eval.studies.request import SharpnessRequest
from lo_framework.eval.studies.sharpness import SharpnessEvaluation
from lo_framework.learned import make_learned
from lo_framework.spec import UserError
from tests.eval.report.browser import PROGRAM
from tests.eval.report.pages import look_at, read
from tests.eval.sharpness.evaluations import SMALL, numbers, optimizer_file, tiny_level


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return optimizer_file(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    """The folder of a small evaluation."""
    out = tmp_path_factory.mktemp("sharpness") / "out"
    with tiny_level():
        assert main(["sharpness", "--learned", str(file), *SMALL, "--out", str(out)]) == 0
    return out


def test_every_number_is_in_the_json(done):
    data = numbers((done / "sharpness.json").read_text())
    assert data["settings"]["radii"] == [0.01, 0.1] and data["seeds"] == [20_000, 20_001]
    assert [(arm["optimizer"], len(arm["runs"])) for arm in data["arms"]] == [
        ("hyper-adamw", 2),
        ("adamw", 2),
    ]
    for arm in data["arms"]:
        for i, run in enumerate(arm["runs"]):
            assert run["failure"] == "" and run["train"]["watch"]["steps"] == [0, 1, 2, 3, 4, 5]
            assert (
                0 <= run["step"] <= 5
                and run["train"]["watch"]["loss"][run["step"]] <= run["target"]
            )
            for place in ("equal", "matched"):
                point = run[place]
                assert point["failures"] == {} and bool(point["slices"]) == (i == 0)
                gaps, first = point["balls"]["l2"]["gap"], point["balls"]["l2"]["first_order"]
                assert 0 < gaps[0] < gaps[1] and all(
                    h <= r1 * (1 + 1e-6) for h, r1 in zip(gaps, first)
                )
                assert {
                    "train_loss",
                    "test_loss",
                    "test_accuracy",
                    "top_eigenvalue",
                    "trace",
                } <= set(point["values"])
            assert run["equal"]["values"]["train_loss"] == run["train"]["watch"]["loss"][-1]
            assert len(run["train"]["probe"]["cosine_correction"]) == 5
    worst = [
        max(arm["runs"][i]["train"]["watch"]["loss"][-1] for arm in data["arms"]) for i in (0, 1)
    ]
    assert [run["target"] for run in data["arms"][0]["runs"]] == worst
    assert {c["place"] for c in data["derived"]["comparisons"]} == {"equal", "matched"}


def test_report_rebuilds_the_same_page_and_tables(done, capsys):
    before = (done / "sharpness.html").read_bytes()
    (done / "sharpness.html").unlink()
    assert main(["report", str(done)]) == 0
    shown = capsys.readouterr().out
    assert (done / "sharpness.html").read_bytes() == before
    assert "at matched training loss" in shown and str(done / "sharpness.html") in shown
    assert max(len(line) for line in shown.splitlines()) <= 120


def test_json_round_trip(done):
    text = (done / "sharpness.json").read_text()
    result = FILE.read(text)
    assert FILE.read(FILE.write(result)) == result
    for broken, message in {
        "nonsense": "not valid JSON",
        "[1]": "not a result",
        json.dumps({**json.loads(text), "version": 9}): "version 9",
        json.dumps({**json.loads(text), "arms": [{}]}): "damaged",
    }.items():
        with pytest.raises(UserError, match=message):
            FILE.read(broken)


def test_the_page_explains_itself_and_needs_nothing_else(done):
    report = SharpnessReport.load(done)
    page = read((done / "sharpness.html").read_text(), report.words())
    assert page.pictures >= 6
    (caution,) = report.cautions()
    assert caution.startswith("2 seeds: ") and "p-value below 0.5" in caution
    assert caution in page.text and "It takes 6 seeds" in caution
    links, first, rest = page.text.split("What the words mean")
    assert "Summary" in links
    assert "nothing significant" in first and not any(x in first for x in ("h(", "λ", "R1"))
    assert "R1" in rest and "λ max" in rest


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium to look at the page with")
@pytest.mark.slow
def test_a_browser_shows_the_page(done):
    look_at(done / "sharpness.html")


def test_numbers_do_not_depend_on_workers():
    options = dict(optimizees="quadratic:dim=3", steps=2, radii="0.1", baselines="none", seeds=1)
    results = []
    for workers in (1, 2):
        request = SharpnessRequest(learned="", workers=workers, **options)
        result = SharpnessEvaluation(request, learned=make_learned("hyper-adamw")).run()
        results.append(numbers(FILE.write(result)))
    assert results[0] == results[1]


PLUGIN = """
import torch
from lo_framework.optimizees import register_task
from lo_framework.optimizees.analytic import Quadratic, QuadraticConfig

class Cliff(Quadratic):
    def metrics(self, params, buffers, batch):
        value = self.value(params["x"])
        return {"loss": torch.where(value > 1.2 * self.scale * 40, torch.inf, value)}

class Constant(Quadratic):
    def init(self, generator):
        params, buffers = super().init(generator)
        return {}, params

@register_task("cliff_by_test", config=QuadraticConfig, uses_dataset=False)
def build_cliff(config):
    return Cliff(config)

@register_task("constant_by_test", config=QuadraticConfig, uses_dataset=False)
def build_constant(config):
    return Constant(config)
"""


@pytest.fixture
def plugin(tmp_path):
    from lo_framework.optimizees.registry import TASKS

    path = tmp_path / "sharp_tasks.py"
    path.write_text(PLUGIN)
    yield str(path)
    for name in ("cliff_by_test", "constant_by_test"):
        TASKS.pop(name, None)


def test_what_fails_is_named_in_its_place_and_loses_nothing_else(
    plugin, file, tmp_path, capsys, monkeypatch
):
    from lo_framework.eval.sharpness import measuring

    plain = measuring.Surface

    def broken(task, *arguments, **options):
        if task.name == "quadratic:dim=3":
            raise FloatingPointError("the loss at the point to be measured is not finite")
        return plain(task, *arguments, **options)

    monkeypatch.setattr(measuring, "Surface", broken)
    common = [
        "sharpness",
        "--learned",
        str(file),
        "--plugin",
        plugin,
        "--steps",
        "2",
        "--seeds",
        "2",
        "--progress",
    ]
    common += ["none", "--baselines", "none", "--probe", "none", "--radii", "0.01,1000"]
    out = tmp_path / "out"
    with tiny_level():
        assert (
            main([*common, "--optimizees", "cliff_by_test,quadratic:dim=3", "--out", str(out)]) == 0
        )
    shown = capsys.readouterr()
    assert (
        "failed: quadratic:dim=3, hyper-adamw, seed 20000: FloatingPointError: "
        "the loss at the point" in shown.err
    )
    assert (
        "l2 balls, r = 1000: FloatingPointError: the loss is not finite within the radius 1000"
        in shown.err
    )
    (cliff, other) = json.loads((out / "sharpness.json").read_text())["arms"]
    gaps = cliff["runs"][0]["equal"]["balls"]["l2"]["gap"]
    assert gaps[0] > 0 and gaps[1] is None and other["runs"][0]["equal"] is None
    assert "is not finite" in (out / "sharpness.html").read_text()
    assert main([*common, "--optimizees", "quadratic:dim=3", "--out", str(tmp_path / "all")]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--radii", "0.1,x"], "'x' is not a number"),
        (["--radii", "0.1,,1"], "'' is not a number"),
        (["--radii", "-0.1"], "-0.1 is no radius"),
        (["--radii", "0"], "0 is no radius"),
        (["--radii", "inf"], "inf is no radius"),
        (["--radii", "nan"], "nan is no radius"),
        (["--radii", "0.1,0.10"], "given twice"),
        (["--seeds", "0"], "--seeds: expected at least 1"),
        (["--steps", "0"], "steps: expected at least 1"),
        (["--workers", "0"], "workers: expected at least 1"),
        (["--effort", "ful"], 'unknown "ful" (did you mean "full"?)'),
        (["--baselines", "adamv"], 'did you mean "adamw"'),
        (["--probe", "smam"], "did you mean"),
        (
            ["--optimizees", "cnn:norm=batch,batch=1"],
            "batch normalisation needs batches of at least 2 rows",
        ),
        (["--optimizees", "mlp,mlp"], "given twice"),
        (["--learned", "nowhere.safetensors"], "there is no file"),
        (["--effrot", "full"], 'did you mean "--effort"'),
        (["--out", "JUNK"], "expected a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "JUNK").write_text("junk")
    assert main(["sharpness", "--learned", str(file), "--progress", "none", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and message in shown.err, shown


def test_nothing_to_train_is_bad_input(plugin, file, tmp_path, capsys):
    words = ["--optimizees", "constant_by_test", "--plugin", plugin, "--out", str(tmp_path / "out")]
    assert main(["sharpness", "--learned", str(file), *words]) == 2
    assert "no parameters that need gradients" in capsys.readouterr().err


def test_torch_optimizers_are_measured_like_any_other(file, tmp_path):
    """MetaAdamW without meta steps is AdamW, and so are its minima."""
    words = [
        "sharpness",
        "--learned",
        str(file),
        *SMALL,
        "--baselines",
        "adamw,metaadamw:online=false",
    ]
    with tiny_level():
        assert main([*words, "--out", str(tmp_path)]) == 0
    data = numbers((tmp_path / "sharpness.json").read_text())
    found = {arm["optimizer"]: arm["runs"] for arm in data["arms"]}
    for mine, theirs in zip(found["metaadamw:online=false"], found["adamw"], strict=True):
        assert mine["failure"] == theirs["failure"] == ""
        assert mine["train"]["watch"]["loss"] == pytest.approx(
            theirs["train"]["watch"]["loss"], rel=1e-3
        )
        assert mine["equal"]["balls"]["l2"]["gap"] == pytest.approx(
            theirs["equal"]["balls"]["l2"]["gap"], rel=1e-2
        )
