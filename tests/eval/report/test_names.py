"""Names in every format: they show as text, and do nothing else; where the files go."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lo_framework.errors import visible
from lo_framework.eval.cli import main
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.robustness import RobustnessReport
from lo_framework.eval.report.text import code, file_names, markdown, picture, table_of_values
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.studies.result import Arm, Result, Runs
from lo_framework.eval.studies.robustness import Line, Sweep
from lo_framework.files import atomic
from lo_framework.spec import UserError

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![remote](http://example.org/x.png)",
    "a](javascript:x)",
    "\\](javascript:x)",
    "[x]: http://example.org",
    "`](http://example.org)`",
    "&lt;b&gt; a|b",
    "\x1b[31mred\x1b[0m \x07",
    "\u202egnp.exe",
    "$\\frac{$",
    "_first",
    "\ud800",
    "=cmd|' /C calc'!A0",
    "+1",
    "@SUM(A1)",
]


def transfer(task: str, label: str) -> TransferReport:
    runs = Runs(
        setting={"lr": 0.1},
        metrics={"mean_loss": np.array([1.0, 2.0]), "final_loss": np.array([0.5, 0.6])},
        curves=np.ones((2, 4), dtype=np.float32),
        diverged=np.zeros(2, dtype=bool),
        seconds_per_step=0.1,
    )
    chosen = {"mean_loss": 0, "final_loss": 0}
    arms = [
        Arm(task=task, optimizer=x, learned=x == label, runs=(runs,), chosen=chosen)
        for x in (label, "adamw")
    ]
    arms += [
        Arm(task="other", optimizer=x, learned=x == label, failure=f"{label} fell")
        for x in (label, "adamw")
    ]
    made = dict(tasks=(task, "other"), learned=(label,), baselines=("adamw",), arms=tuple(arms))
    seeds = dict(steps=4, tuning_seeds=(1,), report_seeds=(1, 2))
    return TransferReport(
        Result(**made, **seeds, files={label: label}, provenance={"command": [label], label: label})
    )


def sweep(task: str, label: str, lrs: tuple[float, ...] = (0.1, 0.2)) -> RobustnessReport:
    shape = (len(lrs), 2)
    line = Line(
        task=task,
        optimizer=label,
        metrics={"final_loss": np.ones(shape), label: np.ones(shape)},
        diverged=np.zeros(shape, dtype=bool),
    )
    return RobustnessReport(
        Sweep(tasks=(task,), optimizers=(label,), lrs=lrs, lines=(line,), steps=3, seeds=(1, 2))
    )


def live(text: str) -> list[str]:
    """What Markdown would not show as text: tags, links, images, references, entities, code."""
    spans = re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", spans)
    found = re.findall(r"<[A-Za-z/!?]|\]\(|\]\[|\]:|`|&#?\w+;", plain)
    return [x for x in found if x not in ("&lt;", "&amp;")]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_every_format(name: str) -> None:
    for report in (transfer(name, name), sweep(name, name)):
        for file, content in report.files():
            assert re.fullmatch(r"[\w.-]+", file)
            if isinstance(content, bytes):
                assert content.startswith(b"\x89PNG")
                continue
            assert content.encode() and all(c.isprintable() or c == "\n" for c in content)
            if file.endswith(".md"):
                assert live(content) == [], live(content)
            elif file.endswith(".csv"):
                cells = [cell for row in csv.reader(content.splitlines()) for cell in row]
                assert not any(re.match(r"[=+@-](?!\d*\.?\d)", cell) for cell in cells)
        assert all(c.isprintable() or c == "\n" for c in report.plain())
        assert visible(name) in report.plain() or " ".join(visible(name).split()) in report.plain()


def test_the_checker_of_this_file_sees_what_is_live() -> None:
    for name in HOSTILE[:5]:
        assert live(name), name
    assert live("`<b>` and ``a`b``") == [] and live(r"\\](x)") == ["]("]


def test_text_that_does_nothing_stays_as_it_is() -> None:
    for name in (
        "mlp:hidden=64x64/digits",
        "0.216 [0.210, 0.222]",
        "a <= b < 3",
        "weight_decay",
        "~<1%",
    ):
        assert markdown(name) == name
    assert code("a") == "`a`" and code("a`b") == "`` a`b ``"
    assert picture("a [b](c)", "d e/f.png") == "![a  b (c)](d%20e/f.png)"
    assert (
        table_of_values(["x"], [[0.123456789], [-2.0], ["-a"], [None], [7]])
        == 'x\n0.123457\n-2\n\'-a\n""\n7\n'
    )


def test_file_names_are_short_and_differ() -> None:
    names = file_names("curves", ["a/x", "a-x", "b", "c" * 5000])
    assert names["b"] == "curves-b.png" and len(set(names.values())) == 4
    assert max(map(len, names.values())) < 120
    written = sweep("c" * 5000, "adamw")
    assert all(len(line) < 3000 for line in written.plain().splitlines())


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("victim")
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("robustness.md", "robustness.json", "robustness.png", "robustness.csv"):
        (folder / name).symlink_to(victim)
    sweep("t", "adamw").save(folder)
    assert victim.read_text() == "victim"
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["transfer", "robustness"])
def test_a_full_disk_is_one_line_and_leaves_no_part(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report: Report[Any] = {"transfer": transfer, "robustness": sweep}[kind]("t", "adamw2")
    report.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    assert main(["report", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "No space left on device" in shown.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folders_of_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff \x1b(x)"))
    folder.mkdir()
    transfer("t", "lo").save(folder)
    page = tmp_path / "page.md"
    assert main(["report", str(folder), "--join", str(page)]) == 0
    shown = capsys.readouterr().out
    assert r"n\udcff \x1b(x)" in shown and "\x1b" not in shown
    assert "](n%FF%20%1B%28x%29/curves.png)" in page.read_text("utf-8")


def test_folders_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transfer("t", "lo").save(tmp_path / "out")
    (tmp_path / "file").write_text("")
    good = str(tmp_path / "out")
    for words, message in (
        (["n" * 5000], "File name too long"),
        (["nu\0l"], "null"),
        ([str(tmp_path / "file")], "Not a directory"),
        ([good, "--join", str(tmp_path / "file" / "x.md")], "cannot write"),
        ([good, "--join", good], "cannot write"),
    ):
        assert main(["report", *words]) == 2, words
        assert message in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_step_sizes_of_all_that_floats_hold(tmp_path: Path) -> None:
    report = sweep("t", "adamw", (1e-300, 1.0, 1e300))
    line = report.result.lines[0]
    for losses in ([1e-320, 1.0, 1e308], [np.inf] * 3, [0.0] * 3):
        metrics = {"final_loss": np.array([losses, losses]).T}
        odd = RobustnessReport(replace(report.result, lines=(replace(line, metrics=metrics),)))
        assert len(odd.redraw(tmp_path)) == 3


class Tags(HTMLParser):
    """Counts tags."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)


@pytest.mark.parametrize("name", HOSTILE[:10])
def test_names_are_text_on_the_page(name: str) -> None:
    from lo_framework.eval.report.sharpness.page import SharpnessReport
    from lo_framework.eval.sharpness import result as sharpness

    def page(label: str) -> str:
        arm = sharpness.Arm(task=label, optimizer=label, learned=True, failure=label)
        settings = dict(
            steps=1,
            radii=[0.1],
            effort=label,
            probe=label,
            level={label: label},
            choose_by="training",
        )
        made = dict(tasks=(label,), learned=(label,), baselines=(), arms=(arm,), seeds=(1,))
        found = sharpness.Result(**made, settings=settings, tuning_seeds=(), files={label: label})
        return SharpnessReport(found).html()

    pages = [page(name), page("plain")]
    pages += [transfer(name, name).html(), transfer("plain", "plainly").html()]
    tags = [Tags() for _ in pages]
    for one, text in zip(tags, pages):
        one.feed(text)
        assert all(c.isprintable() or c == "\n" for c in text)
    assert tags[0].seen == tags[1].seen and tags[2].seen == tags[3].seen
    assert "text" in tags[2].seen  # of a picture


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "transfer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text"):
        TransferReport.load(tmp_path)
    (tmp_path / "transfer.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        TransferReport.load(tmp_path)
