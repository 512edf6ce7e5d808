"""The command line of meta-training: ``python -m meta_train`` or ``lo-meta-train``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

# Nothing here may import torch before the arguments are read: --help answers at once.

EXAMPLES = """\
examples:
  python -m meta_train --optimizees mlp,cnn                         a few minutes; everything in runs/latest
  python -m meta_train --optimizees mlp,cnn --preset small          about an hour
  python -m meta_train --optimizees mlp:hidden=64x64,act=tanh --datasets digits,mnist:size=8
  python -m meta_train --learned mlp --estimator pes --unroll-length 20 --episode-length 100-1000
  python -m meta_train --optimizees mlp,mlp-relu,cnn --regularizer sam:rho=0.05
                                                                    an optimizer that acts like SAM at no cost
  python -m meta_train --objective combined --weighting huw --priorities 2,5,1
                                                                    MetaAdamW's objectives
  python -m meta_train --out runs/a --resume                        go on after a kill: the same bits

--optimizees and --datasets make the full product. A plugin (--plugin my_tasks.py) adds tasks and learned optimizers of
your own. Nothing that is saved depends on --workers.
"""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def read_arguments(argv: list[str] | None) -> dict[str, Any]:
    """By name; exits with code 2 where argparse would, and names the nearest option where one is
    misspelt.
    """
    p = parser()
    found, unknown = p.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        options = [option for action in p._actions for option in action.option_strings]
        close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
        p.error(
            f"unknown argument {unknown[0]!r}" + (f' (did you mean "{close[0]}"?)' if close else "")
        )
    return vars(found)


def parser() -> Parser:
    p = Parser(
        prog="meta_train",
        description="Meta-train a learned optimizer on a pool of small training problems.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--optimizees", help="tasks, as mlp,cnn or mlp:hidden=64x64,act=tanh (default: mlp,cnn)"
    )
    p.add_argument(
        "--datasets",
        help="data sets, as digits,fashion_mnist:size=8 (default: digits, which is built in)",
    )
    p.add_argument(
        "--learned", help="attention-mlp (default), attention, hyper-adamw, mlp, lstm, with options"
    )
    p.add_argument("--estimator", help="tbptt, pes or es, with options, as pes:sigma=0.01")
    p.add_argument(
        "--objective",
        help="valid (held-out loss, default) or train; or what each step does: gradient, loss_decrease, gen_gap or all "
        "three combined",
    )
    p.add_argument(
        "--weighting",
        help="of the terms of combined: sum (default), fixed:weights=1x0.3x0.3, or huw, which learns them: "
        "huw:lr=0.05,bound=3",
    )
    p.add_argument(
        "--priorities",
        help="of gradient, loss_decrease and gen_gap under --weighting huw, as 2,5,1",
    )
    p.add_argument(
        "--regularizer",
        help="absorb one: sam, gsam, gam, ... with options, or a mixture, as sam:rho=0.05+gam",
    )
    p.add_argument(
        "--absorb",
        help="how: batch=own|independent, attached=true, when=every|last|end|late, last=20, strength=1, "
        "through=value|field",
    )
    p.add_argument(
        "--learn-rho",
        help="learn its radius on held-out loss at twice the cost: phase=10,sigma=0.3,lr=1",
    )
    p.add_argument(
        "--control", help="no regularizer, but as many more outer steps as this one would have cost"
    )
    p.add_argument("--unroll-length", type=int, help="inner steps of one truncation")
    p.add_argument(
        "--episode-length",
        help="inner steps of an episode: 200, or 100-1000 for log-uniform lengths",
    )
    p.add_argument(
        "--num-tasks", type=int, help="tasks per family (optimizee x data set) in flight"
    )
    p.add_argument(
        "--shards",
        type=int,
        help="virtual shards per family; unlike --workers this decides the bits",
    )
    p.add_argument(
        "--augment",
        type=float,
        help="half of the episodes see parameters in units up to this factor off (1: none)",
    )
    p.add_argument("--outer-steps", type=int, help="updates of the learned optimizer")
    p.add_argument("--outer-lr", type=float, help="learning rate of the outer Adam")
    p.add_argument(
        "--validate-every", type=int, help="outer steps between validations of the incumbent"
    )
    p.add_argument("--checkpoint-every", type=int, help="outer steps between resume states")
    p.add_argument("--seed", type=int, help="seed of the run (default 0)")
    p.add_argument("--device", help="cpu (default), cuda, cuda:1, ...")
    p.add_argument(
        "--inner-backend",
        help="torch (default), or higher: for modules that vmap cannot take (hyper-adamw only)",
    )
    p.add_argument(
        "--engine", help="eager (default), graph (recorded: the same bits) or inductor (compiled)"
    )
    p.add_argument(
        "--preset", default="quick", help="quick (default: a few minutes) or small (about an hour)"
    )
    p.add_argument(
        "--max-seconds",
        type=float,
        help="stop meta-training early after this time; the run is then not repeatable",
    )
    p.add_argument(
        "--workers",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="processes of one thread each (default %(default)s)",
    )
    p.add_argument("--data-dir", help="folder with data files (default: LO_DATA_DIR)")
    p.add_argument(
        "--plugin",
        action="append",
        default=[],
        help="a Python file or module that registers tasks or optimizers",
    )
    p.add_argument("--out", default="runs/latest", help="folder of the run (default %(default)s)")
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, or start if there is none",
    )
    p.add_argument(
        "--no-evaluate",
        action="store_true",
        help="skip the closing table against tuned AdamW on unseen seeds",
    )
    return p


NOT_CONFIG = (
    "preset",
    "max_seconds",
    "workers",
    "data_dir",
    "plugin",
    "out",
    "resume",
    "no_evaluate",
)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 for bad input or a system that refuses (one line on stderr), 130 when
    interrupted.
    """
    arguments = read_arguments(argv)
    try:
        from lo_framework.spec import UserError

        try:
            return _main(arguments)
        except UserError as error:
            print(f"meta_train: {error}", file=sys.stderr)
        except OSError as error:  # a full disk, a folder that may not be written
            place = f"{error.filename!r}: " if error.filename else ""
            print(f"meta_train: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"meta_train: interrupted; go on with --out {arguments['out']} --resume",
            file=sys.stderr,
        )
        return 130


def _main(arguments: dict[str, Any]) -> int:
    import torch

    from lo_framework.meta_train.config import make_config
    from lo_framework.meta_train.host import Setup
    from lo_framework.meta_train.run import MetaTraining
    from lo_framework.plugin import load_plugins
    from lo_framework.spec import UserError

    torch.set_num_threads(1)
    if arguments["max_seconds"] is not None and not arguments["max_seconds"] > 0:
        raise UserError(f"--max-seconds must be positive, not {arguments['max_seconds']}")
    load_plugins(arguments["plugin"])
    config = make_config(
        arguments["preset"], **{k: v for k, v in arguments.items() if k not in NOT_CONFIG}
    )
    out = Path(arguments["out"])
    setup = Setup(config, arguments["data_dir"], tuple(arguments["plugin"]))
    run = MetaTraining(setup, out, workers=arguments["workers"])
    best = run.train(resume=arguments["resume"], max_seconds=arguments["max_seconds"])
    print(
        f"best on validation seeds: {best.kind} at step {best.step}, score {best.score:.3f} (tuned AdamW: 1)"
    )
    if not arguments["no_evaluate"]:
        from lo_framework.meta_train.closing import closing_report

        print(closing_report(run, best, workers=arguments["workers"]))
    print(f"\noptimizer   {out / 'optimizer.safetensors'}\nmetrics     {out / 'metrics.jsonl'}")
    print(f"curves      tensorboard --logdir {out / 'tensorboard'}")
    return 0
