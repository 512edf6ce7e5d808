"""Command lines from dataclasses: one line per mistake, the nearest name, the codes of shells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

import lo_framework
from lo_framework.commandline import Finished, Parser, Stopped, field_docs, run
from lo_framework.spec import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Base:
    steps: int = 100
    """Updates of the rule,
    over two lines: 100 % of them."""
    rate: float = 0.5
    """How fast."""


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    learned: str
    """A file."""
    mode: Literal["auto", "none"] = "auto"
    """How to tell."""
    seconds: float | None = None
    """When to stop."""
    plugins: tuple[str, ...] = field(default=(), metadata={"option": "plugin"})
    """Files of your own."""
    resume: bool = False
    """Go on."""
    evaluate: bool = True
    """Leave the table out."""
    folders: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """Where to look."""


@dataclass(frozen=True, kw_only=True)
class Places:
    places: tuple[str, ...] = field(metadata={"positional": True})
    """Where to look."""
    seed: int = 0
    """A number that is false."""
    workers: int = 1
    """A number that is true."""


def read(*argv: str) -> dict[str, object]:
    return Parser("program", Settings).read(["--learned", "a", *argv])


def test_values_have_the_types_of_their_fields() -> None:
    assert read() == {"learned": "a"}, "what is not given is not there"
    assert read("--steps=7", "--rate", "-1", "x", "y") == {
        "learned": "a",
        "folders": ("x", "y"),
        "steps": 7,
        "rate": -1.0,
    }
    assert read("--plugin", "p", "--plugin", "q", "--resume", "--no-evaluate") == {
        "learned": "a",
        "plugins": ("p", "q"),
        "resume": True,
        "evaluate": False,
    }
    assert read("--seconds", "none", "--mode", "none")["seconds"] is None
    assert Settings(**read("--steps", "7")).steps == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--stpes", "3"], '"--steps"'),
        (["--stpes=3"], '"--steps"'),
        (["--resum"], '"--resume"'),  # abbreviations are no options
        (["--steps", "x"], "--steps: expected a whole number, not 'x'"),
        (["--steps", "2.5"], "--steps: expected a whole number, not '2.5'"),
        (["--rate", "nan"], "--rate"),
        (["--steps"], "--steps: expected one argument"),
        (["--mode", "fancy"], "auto"),
        (["--resume=1"], "--resume"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], expected: str) -> None:
    with pytest.raises(UserError) as found:
        read(*argv)
    assert expected in str(found.value) and "\n" not in str(found.value)


def test_a_field_without_default_is_required() -> None:
    with pytest.raises(UserError, match="--learned is required"):
        Parser("program", Settings).read([])
    with pytest.raises(UserError, match="places is required"):
        Parser("program", Places).read([])
    assert Parser("program", Places).read(["a", "b"]) == {"places": ("a", "b")}


def test_help_is_the_docstrings_and_the_defaults() -> None:
    text = " ".join(Parser("program", Settings, examples="examples:\n  one").format_help().split())
    assert "--steps N Updates of the rule, over two lines: 100 % of them. (default: 100)" in text
    assert "--no-evaluate Leave the table out." in text and "examples: one" in text
    assert "--version" in text and "--debug" in text and "(default: None)" not in text
    text = Parser("program", Places).format_help()
    assert "(default: 0)" in text and "(default: 1)" in text
    assert list(field_docs(Settings)) == ["steps", "rate"] + [
        f for f in Settings.__dataclass_fields__ if f not in ("steps", "rate")
    ]


def test_a_file_of_settings(tmp_path: Path) -> None:
    """The command line wins over the file; the file is checked like the command line."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"learned": "b", "steps": 3, "plugins": ["p"], "seconds": None}))
    given = Parser("program", Settings).read(["--config", str(path), "--learned", "a"])
    assert given == {"learned": "a", "steps": 3, "plugins": ("p",), "seconds": None}
    for text, expected in [
        ('{"stpes": 3}', '"steps"'),
        ('{"steps": "x"}', "--steps"),
        ("[1]", "object"),
        ("[" * 100_000, "JSON"),
        ("\xff", "JSON"),
    ]:
        path.write_text(text, "latin-1")
        with pytest.raises(UserError, match=expected):
            read("--config", str(path))
    path.write_text('{"learned": "b"}')
    assert Parser("program", Settings).read(["--config", str(path)]) == {"learned": "b"}
    with pytest.raises(UserError, match="No such file"):
        read("--config", str(tmp_path / "none"))


def test_version_and_help_end_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, expected in (("--version", lo_framework.__version__), ("--help", "--learned")):
        with pytest.raises(Finished) as end:
            run("program", lambda argv: bool(Parser("program", Settings).read(argv)), [flag])
        assert end.value.code == 0 and expected in capsys.readouterr().out


def failing(error: BaseException) -> object:
    def program(argv: list[str]) -> int:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("give\none"), 2, "program: give one\n"),
        (OSError(28, "No space left", "/x"), 2, "program: '/x': No space left\n"),
        (ValueError("a\nb"), 2, "program: ValueError: a (test_commandline.py, line "),
        (SystemExit(0), 2, "program: SystemExit: 0 "),  # of a person's code, not of the parser
        (MemoryError(), 2, "program: MemoryError"),
        (RecursionError("deep"), 2, "program: RecursionError: deep"),
        (
            KeyboardInterrupt("go on with --resume"),
            130,
            "program: interrupted; go on with --resume",
        ),
        (Stopped(15, "step 3 is saved"), 143, "program: terminated; step 3 is saved"),
        (Stopped(2), 130, "program: interrupted\n"),
    ],
)
def test_the_end_of_a_program(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("program", failing(error), []) == code  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1
    if code == 2:
        assert run("program", failing(error), ["--debug"]) == 2  # type: ignore[arg-type]
        assert "Traceback" in capsys.readouterr().err


PROGRAM = """
import sys
from lo_framework.commandline import run
def program(argv):
    for stream in (sys.stdout, sys.stderr):
        for _ in range(3000):
            print("a line that nobody reads", file=stream, flush=True)
    with open(argv[0], "w") as file:
        print("written", file=file)
    print("x", file=sys.stderr, flush=True)
    return 0
sys.exit(run("program", program))
"""


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        ("| head -1", 141),
        ("2>&1 >/dev/null | head -1", 141),
        ("2>&-", 0),
        (">&-", 0),
        ("<&- >&- 2>&-", 0),
    ],
)
def test_streams_that_are_closed(redirected: str, code: int, tmp_path: Path) -> None:
    """A reader that goes away ends the program quietly; closed streams are no reason to fail, and
    files that are opened later do not take their place.
    """
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(PROGRAM)
    words = f"{sys.executable} {script} {out} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    if code == 0:
        assert out.read_text() == "written\n"
