"""Progress of a run as a bar or plain lines, TensorBoard curves,
``metrics.jsonl``.

``metrics.jsonl`` has one line an outer step: ``step stage kind meta_loss diverged nonfinite
grad_norm clip_ratio skipped score seconds rate`` and ``families``, which has the metrics of every
family; with ``--objective combined`` also ``terms`` and their ``weights``, and where probes were
looked at ``probes``: their ratios to tuned AdamW under the theta in question. A number that is not
finite stands as null. Only ``seconds`` and ``rate`` differ when a run is repeated.

TensorBoard has the same as ``meta_loss/FAMILY`` (and ``diverged``, ``nonfinite``),
``outer/grad_norm``, ``outer/clip_ratio``, ``outer/skipped``, ``log10_step_size/FAMILY/PROGRESS``
(the learned step size at the start, middle and end of an episode), ``validation/incumbent`` and
``rate/inner_steps_per_second``; for objectives about steps also ``term_NAME/FAMILY``, and
``weight/NAME`` where there are several terms, and ``probe/NAME`` where there are probes. Beside
them stand the run's settings (HPARAMS, with the incumbent's score) and, once the run ends or is
stopped, a picture of the score and the probes (IMAGES).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lo_framework.files.atomic import reason
from lo_framework.files.jsonl import truncate_jsonl
from lo_framework.meta_train.pictures import score_picture
from lo_framework.optional import missing, require
from lo_framework.spec import UserError

INCUMBENT = "validation/incumbent"  # the curve of what is saved


class Curves:
    """A new event file in ``folder``; TensorBoard forgets what older ones there say about steps
    from ``begin`` on.

    The writer that comes with torch has a thread of its own: it loses up to two minutes of curves
    when a run is killed, and on a full disk the thread prints a traceback that nothing can catch.
    This one writes an event and is done.

    Raises:
        OSError: the folder or the file cannot be written; also from :meth:`add`.
    """

    def __init__(self, folder: Path, begin: int) -> None:
        require("tensorboard")
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._hparams: Any = summary_v2
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("xb")
        self._records = RecordWriter(self._file)
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._event(file_version="brain.Event:2"))
        self._write(self._event(step=begin, session_log=restart))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of every curve, by tag."""
        points = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(self._event(step=step, summary=self._summary(value=points)))

    def settings(self, values: Mapping[str, Any]) -> None:
        """What the run was given, as hyper-parameters beside the score of its incumbent."""
        known = {name: x for name, x in values.items() if isinstance(x, (bool, int, float, str))}
        metrics = [self._hparams.Metric(INCUMBENT, display_name="score of the incumbent")]
        names = [self._hparams.HParam(name) for name in known]
        for summary in (
            self._hparams.hparams_config_pb(names, metrics),
            self._hparams.hparams_pb(known),
        ):
            self._write(self._event(summary=summary))

    def picture(self, step: int, tag: str, png: bytes) -> None:
        image = self._summary.Image(encoded_image_string=png)
        value = self._summary.Value(tag=tag, image=image)
        self._write(self._event(step=step, summary=self._summary(value=[value])))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()  # what is added is in the file, also when the process is killed


class Progress:
    """Writes every outer step to all three.

    Args:
        start: the outer steps already done (a resumed run).
        settings: of the run.
    """

    def __init__(
        self,
        out: Path,
        total: int,
        start: int,
        quiet: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        require("tqdm")
        from tqdm import tqdm

        self.out = out
        truncate_jsonl(out / "metrics.jsonl", start)
        with self._writing():
            self.curves = Curves(out / "tensorboard", start + 1)
            self.curves.settings(settings or {})
            self.log = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self.terminal = sys.stderr.isatty() and not quiet
        self.quiet = quiet
        self.bar = tqdm(
            total=total, initial=start, unit="step", disable=not self.terminal, dynamic_ncols=True
        )
        self.total, self.first = total, start
        self.begun = self.told = time.monotonic()

    def say(self, line: str) -> None:
        """A line for the person, above the bar."""
        if not self.quiet:
            self.bar.write(line, file=sys.stderr)

    def step(self, record: dict[str, Any], curves: dict[str, float]) -> None:
        """One outer step: a line of the log, the points of the curves, the bar."""
        with self._writing():
            self.log.write(json.dumps(_strict(record), allow_nan=False) + "\n")
            self.log.flush()
            self.curves.add(record["step"], curves)
        self.bar.update()
        short = f"{record['kind']} meta-loss {record['meta_loss']:.4f}"
        short += f", {record['rate']:.0f} inner steps/s, score {record['score']:.3f}"
        self.bar.set_postfix_str(short)
        now = time.monotonic()
        if not self.terminal and (now - self.told > 10 or record["step"] == self.total):
            done = record["step"] - self.first
            left = (now - self.begun) / max(done, 1) * (self.total - record["step"])
            self.say(f"step {record['step']}/{self.total}: {short}, {left:.0f} s left")
            self.told = now

    def draw(self, step: int) -> None:
        """The picture of the run so far, where pictures can be drawn."""
        if missing("matplotlib"):
            return
        with self._writing():
            picture = score_picture(self.out / "metrics.jsonl")
            if picture is not None:
                self.curves.picture(step, "score", picture)

    def close(self) -> None:
        self.bar.close()
        for end in (self.curves.close, self.log.close):
            with contextlib.suppress(OSError):  # a full disk has been reported
                end()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write metrics or curves in {str(self.out)!r}: {reason(error)}; "
                "free some space and go on with --resume"
            ) from error


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinities; other programs than Python's would not read them."""
    if isinstance(value, dict):
        return {key: _strict(x) for key, x in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
