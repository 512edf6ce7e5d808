"""``lo push``: what is prepared, what goes over the wire, and the line for everything that is
wrong. The hub is one of this machine, the client that of `huggingface_hub`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lo_framework as lo
from lo_framework.cli import main
from lo_framework.commandline import Finished
from lo_framework.learned import fingerprint, make_learned, save
from lo_framework.learned.card import HEAD
from lo_framework.learned.sources import HUB_FILE, shipped
from lo_framework.optional import missing
from lo_framework.spec import UserError
from tests.lo_framework.learned.hub import TOKEN, Hub, hub
from tests.test_imports import ROOT

SCORE = ROOT / "results/general/score.json"
TARGET = "hf://me/mine"
needs_hub = pytest.mark.skipif(bool(missing("huggingface_hub")), reason="needs huggingface_hub")


def pushed(here: Hub | None, folder: Path, *words: str, **more: str) -> tuple[int, str, str]:
    """The code, stdout and stderr of the program; its cache and its logins are in ``folder``."""
    address = here.address if here is not None else "http://127.0.0.1:9"  # where nothing listens
    own = {"HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN, "HF_ENDPOINT": address}
    kept = {name: x for name, x in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-m", "lo_framework", "push", *words],
        cwd=ROOT,
        env={**kept, "OMP_NUM_THREADS": "1", **own, **more},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_dry_run_shows_what_would_go_and_asks_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # nor does it need the package
    assert main(["push", "general", TARGET, "--card-score", str(SCORE), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    size = f"{shipped()['general'].stat().st_size:,} bytes"
    weights = fingerprint(lo.load("general"))
    for words in (size, weights, HEAD, f'lo.Learned(model, "{TARGET}"', "speed-up", "public"):
        assert words in shown
    assert main(["push", "general", TARGET, "--dry-run", "--private"]) == 0
    shown = capsys.readouterr().out
    assert "would be private" in shown and "Nobody has scored it" in shown


def test_the_card_beside_the_file_is_kept_while_it_is_of_these_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned, path = make_learned("hyper-adamw"), tmp_path / "mine.safetensors"
    save(learned, path, card=True)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nWhat I found out about it.\n")
    words = ["push", str(path), TARGET, "--dry-run"]
    assert main(words) == 0
    assert "What I found out" in capsys.readouterr().out
    with torch.no_grad():
        next(learned.parameters()).add_(1.0)
    save(learned, path)
    assert main(words) == 0
    assert "What I found out" not in capsys.readouterr().out, "it was about other weights"


@needs_hub
def test_what_is_pushed_is_what_is_loaded(tmp_path: Path) -> None:
    with hub() as here:
        code, out, err = pushed(here, tmp_path, "general", TARGET, "--private")
        assert (code, err) == (0, "") and f"{here.address}/me/mine/commit/" in out
        assert here.private == {"me/mine": True}
        files = here.files["me/mine"]
        assert files.keys() == {HUB_FILE, "README.md"}
        assert files[HUB_FILE] == shipped()["general"].read_bytes()
        assert files["README.md"].decode().startswith(HEAD)
        code, _, _ = pushed(here, tmp_path, "quick", TARGET)  # once more: another optimizer
        assert code == 0 and here.private == {"me/mine": True}
        assert files[HUB_FILE] == shipped()["quick"].read_bytes()


@needs_hub
def test_what_a_person_has_there_is_not_replaced(tmp_path: Path) -> None:
    with hub() as here:
        here.files["me/mine"] = {"README.md": b"# My project"}
        code, _, err = pushed(here, tmp_path, "general", TARGET)
        assert code == 2 and err.count("\n") == 1 and "that is no card of an optimizer" in err
        assert here.files["me/mine"] == {"README.md": b"# My project"}
        assert not any("/commit/" in line for line in here.asked)


@needs_hub
def test_why_it_cannot_be_pushed(tmp_path: Path) -> None:
    words = ("general", TARGET)
    with hub() as here:
        code, _, err = pushed(here, tmp_path, *words, HF_TOKEN="hf_another")
        assert (code, err.count("\n")) == (2, 1) and "does not know this token" in err
        here.readers_only = True
        code, _, err = pushed(here, tmp_path, *words)
        assert (code, err.count("\n")) == (2, 1) and "may not write there" in err
        asked = len(here.asked)
        code, _, err = pushed(here, tmp_path, *words, HF_TOKEN="")
        assert (code, err.count("\n")) == (2, 1) and "there is no token" in err
        code, _, err = pushed(here, tmp_path, *words, HF_HUB_OFFLINE="1")
        assert (code, err.count("\n")) == (2, 1) and "HF_HUB_OFFLINE" in err
        assert len(here.asked) == asked and not here.files
    code, _, err = pushed(None, tmp_path, *words)
    assert (code, err.count("\n")) == (2, 1) and "it cannot be reached" in err
    code, _, err = pushed(None, tmp_path, "general", "hf://me/a--b")
    assert (code, err.count("\n")) == (2, 1) and "the hub has no such names" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.safetensors", TARGET], "there is no file 'nowhere.safetensors'"),
        (["generl", TARGET], 'did you mean "general"'),
        (["README.md", TARGET], "is not a safetensors file of ours"),
        (["general", "me/mine"], "is not of the form hf://owner/name"),
        (["general", "hf://mine"], "is not of the form hf://owner/name"),
        (["general", f"{TARGET}@main"], "names a revision: a push makes one; give hf://me/mine"),
        (["general", TARGET, "--card-score", "results/score/score.json"], "score"),
        (["general", TARGET, "--card-score", "nowhere.json"], "cannot read 'nowhere.json'"),
        (["general", TARGET, "--privat"], 'did you mean "--private"'),
        ([], "FILE is required"),
        (["general"], "hf://owner/name is required"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["push", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and message in shown.err


def test_the_package_that_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", "general", TARGET]) == 2
    assert "pip install 'lo-framework[hub]'" in capsys.readouterr().err


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (([], "expected a command"), (["psh"], 'did you mean "push"')):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    for words in (["--help"], ["push", "--help"]):
        with pytest.raises(Finished) as end:
            main(words)
        assert end.value.code == 0
    assert "exit codes:" in capsys.readouterr().out


def test_a_file_that_is_gone_between_two_looks(tmp_path: Path) -> None:
    from lo_framework.learned.pushing import shipment

    path = tmp_path / "mine.safetensors"
    shutil.copy(shipped()["general"], path)
    sent = shipment(path, TARGET)
    assert sent.files[HUB_FILE] == path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="there is no file"):
        shipment(path, TARGET)
