"""The command line of meta-training: ``python -m meta_train`` or ``lo-meta-train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from signal import SIGINT
from typing import Any

from lo_framework.commandline import Parser, Stopped, run
from lo_framework.meta_train.config import ALWAYS_WRITTEN, BEFORE, Program, RunConfig
from lo_framework.meta_train.stopping import Signals

# Nothing here may import torch before the arguments are read: --help answers at once.

EXAMPLES = """\
examples:
  python -m meta_train --optimizees mlp,cnn
                                    a few minutes; everything in runs/latest. Shapes, data and
                                    lengths of a bare name are drawn anew for every episode
  python -m meta_train --optimizees mlp,cnn --preset small
                                    twenty minutes
  python -m meta_train --preset general --light-state --out runs/general
                                    the optimizer that is shipped as general: forty minutes of
                                    one core; --resume goes on after a kill
  python -m meta_train --start general --only schedule,controller.* --estimator es \
          --unroll-length 300 --episode-length 50-300
                                    a second stage: a part of a trained optimizer, over whole
                                    episodes
  python -m meta_train --optimizees mlp:hidden=64x64,act=tanh --datasets digits,mnist:size=8
  python -m meta_train --optimizees mlp,cnn --preset specialist
                                    attention-mlp on the problems exactly as they are named
  python -m meta_train --learned mlp --estimator pes --unroll-length 20 --episode-length 100-1000
  python -m meta_train --optimizees mlp,mlp-relu,cnn --regularizer sam:rho=0.05
                                    an optimizer that acts like SAM at no cost
  python -m meta_train --objective combined --weighting huw --priorities 2,5,1
                                    MetaAdamW's objectives
  python -m meta_train --out runs/a --resume
                                    go on after a kill: the same bits
  python -m meta_train --config runs/a/config.json --out runs/b
                                    the same run again: the same bits

--optimizees and --datasets make the full product. A plugin (--plugin my_tasks.py) adds tasks and
learned optimizers of your own. Nothing that is saved depends on --workers.
"""


def parser() -> Parser:
    about = "Meta-train a learned optimizer on a pool of small training problems."
    return Parser("meta_train", RunConfig, Program, description=about, examples=EXAMPLES)


def read(words: Sequence[str]) -> tuple[Program, dict[str, Any], dict[str, Any]]:
    """How to run, all settings that are given, and those of them that a config file gives.

    A run that goes on has its own file: what was given once need not be said again.
    """
    options = parser()
    given = options.read(words)
    config = Path(given.get("out", Program.out)) / "config.json"
    if given.get("resume") and not options.file and config.is_file():
        given = options.read(["--config", str(config), *words])
    if options.file.keys() >= ALWAYS_WRITTEN:
        options.file, given = BEFORE | options.file, BEFORE | given
    settings = {f.name for f in fields(RunConfig)}
    program = Program(**{name: x for name, x in given.items() if name not in settings})
    given, written = (
        {name: x for name, x in each.items() if name in settings} for each in (given, options.file)
    )
    return program, given, written


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for bad input or a system that refuses (one line on stderr); 130, 141 and 143
    for what signals end.
    """
    return run("meta_train", _main, argv)


def _main(words: list[str]) -> int:
    program, given, written = read(words)
    signals = Signals()
    try:
        with signals.heard():
            return _train(program, given, written, signals)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else SIGINT
        raise Stopped(number, *stop.args, _how_to_go_on(Path(program.out))) from None


def _how_to_go_on(out: Path) -> str:
    kept = any((out / "state").glob("*")) or (out / "light.safetensors").exists()
    line = f"go on with --out {out} --resume"
    return line if kept else f"no resume state is written yet: {line} begins anew"


def _train(
    program: Program, given: dict[str, Any], written: dict[str, Any], signals: Signals
) -> int:
    import torch

    from lo_framework.meta_train.presets import make_config
    from lo_framework.meta_train.run import MetaTraining, WorkerSetup
    from lo_framework.optional import require
    from lo_framework.plugin import load_plugins

    if program.evaluate:
        require("matplotlib")  # for the pictures at the end
        require("jinja2")
    torch.set_num_threads(1)
    load_plugins(program.plugins)
    config = make_config(program.preset, written, **given)
    training = MetaTraining(WorkerSetup(config, program))
    best = training.train(signals)
    print(
        f"best on validation seeds: {best.kind} at step {best.step}, score {best.score:.3f} "
        "(tuned AdamW: 1)"
    )
    if program.evaluate:
        from lo_framework.meta_train.closing import closing_report

        print(closing_report(training, best))
    out = training.out
    print(f"\noptimizer   {out / 'optimizer.safetensors'}\nmetrics     {out / 'metrics.jsonl'}")
    print(f"curves      tensorboard --logdir {out / 'tensorboard'}")
    return 0
