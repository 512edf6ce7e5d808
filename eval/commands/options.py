"""The options that every evaluation of learned optimizers against baselines has, and what they say
to `evaluate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lo_framework.eval.running.progress import MODES
from lo_framework.spec import split_specs

if TYPE_CHECKING:
    from lo_framework.eval.running.learned_files import Loaded


def add_common(
    parser: argparse.ArgumentParser, *, optimizees: str, baselines: str, out: str
) -> None:
    """With these defaults."""
    add = parser.add_argument
    add(
        "--learned",
        required=True,
        metavar="FILE[,FILE...]",
        help="optimizer files, as meta-training saves them",
    )
    add_runs(parser, optimizees=optimizees, out=out, steps=200)
    add(
        "--baselines",
        default=baselines,
        help="what to compare with, or none (default: %(default)s)",
    )
    add(
        "--tuning-seeds",
        type=int,
        default=3,
        help="other seeds, to tune baselines on (default: %(default)s)",
    )
    add(
        "--grid-size",
        type=int,
        metavar="N",
        help="learning rates per schedule (default: the baseline's 7 or more)",
    )


def add_runs(parser: argparse.ArgumentParser, *, optimizees: str, out: str, steps: int) -> None:
    """What is trained, how long, from which seeds, where: the options of every evaluation."""
    add = parser.add_argument
    add(
        "--optimizees",
        default=optimizees,
        help="problems, as mlp:hidden=64x64,cnn (default: %(default)s)",
    )
    add(
        "--datasets",
        default="digits",
        help="data sets, as digits,mnist:size=8 (default: %(default)s)",
    )
    add("--steps", type=int, default=steps, help="updates per run (default: %(default)s)")
    add("--seeds", type=int, default=5, help="reported seeds (default: %(default)s)")
    add("--out", default=out, metavar="DIR", help="folder of the results (default: %(default)s)")
    add(
        "--seed-offset",
        type=int,
        default=0,
        help="shift all seeds, to repeat on fresh ones (default: %(default)s)",
    )
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes of one thread each (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    add("--data-dir", metavar="DIR", help="folder with data files (default: LO_DATA_DIR)")
    add(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="file or module with problems or optimizers",
    )
    add(
        "--progress",
        choices=MODES,
        default="auto",
        help="bar, plain lines or none (default: a bar on a terminal)",
    )


def baselines_of(arguments: argparse.Namespace) -> list[str]:
    return [] if arguments.baselines == "none" else split_specs(arguments.baselines)


def common(arguments: argparse.Namespace, learned: Mapping[str, Loaded]) -> dict[str, Any]:
    """Keyword arguments that all evaluations take."""
    names = ("seeds", "tuning_seeds", "grid_size", "seed_offset", "workers", "data_dir")
    given = {name: getattr(arguments, name) for name in names}
    given |= {
        "baselines": baselines_of(arguments),
        "plugins": arguments.plugin,
        "command": arguments.words,
    }
    return given | {"files": {label: loaded.path for label, loaded in learned.items()}}
