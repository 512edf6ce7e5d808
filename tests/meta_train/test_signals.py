"""SIGINT and SIGTERM in the command: what is kept, what is said, and the exit code."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from lo_framework.meta_train import stopping
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.stopping import ENDING, Signals
from lo_framework.meta_train.trainer import Trainer
from tests.meta_train.tools import command, final_state, same_run

USUAL = (signal.default_int_handler, signal.SIG_DFL)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("patience", ["once", "twice at once", "twice"])
def test_a_signal_long_before_the_first_resume_state(
    sent: signal.Signals,
    code: int,
    patience: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One signal leaves a state of the step that was done, as it does where it is sent to process
    and group; after a second one it is said that there is none. All runs end with the bits of an
    undisturbed one.
    """
    rare = {"checkpoint_every": 100, "validate_every": 100}
    assert main(command(tmp_path / "undisturbed", **rare)) == 0
    out, advance = tmp_path / "run", Trainer._advance

    def disturbed(trainer: Trainer) -> None:
        for _ in range((2 - (patience == "once")) * (trainer.run.step == 1)):
            signal.raise_signal(sent)
        advance(trainer)

    before = {x: signal.signal(x, y) for x, y in zip(ENDING, USUAL)}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_advance", disturbed)
            if patience == "twice":
                patch.setattr(stopping, "AGAIN", 0.0)
            assert main(command(out, **rare)) == code
        assert [signal.getsignal(x) for x in ENDING] == [*USUAL]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    line = capsys.readouterr().err.splitlines()[-1]
    word = {130: "interrupted", 143: "terminated"}[code]
    go_on = f"--out {out} --resume"
    if patience != "twice":
        assert line == f"meta_train: {word}; step 2 is saved; go on with {go_on}"
        assert final_state(out)[0] == 2 and (out / "optimizer.safetensors").exists()
    else:
        none = "no resume state is written yet: go on with"
        assert line == f"meta_train: {word}; {none} {go_on} begins anew"
    assert main(command(out, "--resume", **rare)) == 0
    same_run(out, tmp_path / "undisturbed")


def test_what_a_program_was_started_without_is_left_alone() -> None:
    """``nohup`` and shells start jobs that ignore SIGINT; threads cannot have handlers."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals().heard():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    found: list[object] = []

    def inside() -> None:
        with Signals().heard():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
