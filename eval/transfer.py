"""Train optimizees with learned optimizers and with tuned baselines, and compare them seed by seed.

All optimizers start from the same parameters and see the same batches of a seed. Every baseline is tuned for each task
over its grid (learning rates x {constant, cosine}) on other seeds and without test data; a grid whose best learning rate
is at its edge is extended. Each baseline number in the tables comes from the setting that was best for that metric.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eval.progress import MODES
from optimizees.spec import UserError, split_specs

if TYPE_CHECKING:
    from lo_framework.learned.base import LearnedOptimizer

HELP = "train unseen problems with a learned optimizer and with tuned AdamW, SGD, ..."
EXAMPLES = """\
examples:
  python -m eval transfer --learned runs/latest/optimizer.safetensors --out runs/transfer
      on mlp and cnn with digits: 200 steps, 5 seeds, against tuned AdamW and SGD with momentum
  python -m eval transfer --learned runs/a/optimizer.safetensors,runs/b/optimizer.safetensors --steps 1000 --workers 4
      two learned optimizers beside each other, five times as long as they were meta-trained for
  python -m eval transfer --learned FILE --optimizees mlp:hidden=64x64,act=relu,cnn:norm=batch --datasets digits,mnist:size=8
      the product of two optimizees and two data sets
  python -m eval transfer --learned FILE --baselines adamw:weight_decay=0.1,sgdm:lr=0.1
      options of a baseline hold for its whole grid; an option that is usually tuned (lr, cosine) is then not tuned

DIR gets transfer.json (every number of every seed), transfer.md (the tables), curves.png. Nothing but the measured times
depends on --workers. Exit code: 0 if anything worked (what failed is named), 1 if nothing did, 2 for bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--learned", required=True, metavar="FILE[,FILE...]", help="optimizer files, as meta-training saves them")
    add("--optimizees", default="mlp,cnn", help="problems, as mlp:hidden=64x64,cnn (default: %(default)s)")
    add("--datasets", default="digits", help="data sets, as digits,mnist:size=8 (default: %(default)s)")
    add("--steps", type=int, default=200, help="updates per run (default: %(default)s)")
    add("--seeds", type=int, default=5, help="reported seeds (default: %(default)s)")
    add("--baselines", default="adamw,sgdm", help="what to compare with (default: %(default)s)")
    add("--out", default="runs/transfer", metavar="DIR", help="folder of the results (default: %(default)s)")
    add("--tuning-seeds", type=int, default=3, help="other seeds, on which baselines are tuned (default: %(default)s)")
    add("--grid-size", type=int, metavar="N", help="learning rates per schedule (default: 7 or more, as the baseline has)")
    add("--seed-offset", type=int, default=0, help="shift all seeds, to repeat on fresh ones (default: %(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes of one thread each (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    add("--data-dir", metavar="DIR", help="folder with data files (default: LO_DATA_DIR)")
    add("--plugin", action="append", default=[], metavar="FILE", help="Python file or module with problems or optimizers")
    add("--progress", choices=MODES, default="auto", help="bar, plain lines or none (default: a bar on a terminal)")


def run(arguments: argparse.Namespace) -> int:
    from eval import evaluation
    from eval.progress import Progress
    from eval.report import files, transfer
    from optimizees import make_tasks
    from optimizees.plugin import load_plugins

    load_plugins(arguments.plugin)
    sources = label_files(learned_files(arguments.learned))
    learned = {label: load_learned(path) for label, path in sources.items()}
    tasks = make_tasks(arguments.optimizees, arguments.datasets, arguments.data_dir, arguments.device)
    folder = files.prepare(arguments.out)
    progress = Progress(0, mode=arguments.progress, title="transfer")
    try:
        result = evaluation.evaluate(
            tasks,
            learned,
            baselines=split_specs(arguments.baselines),
            steps=arguments.steps,
            seeds=arguments.seeds,
            tuning=arguments.tuning_seeds,
            grid_size=arguments.grid_size,
            seed_offset=arguments.seed_offset,
            workers=arguments.workers,
            data_dir=arguments.data_dir,
            plugins=arguments.plugin,
            files=sources,
            command=arguments.words,
            progress=progress,
        )
    finally:
        progress.close()
    written = files.save(result, folder)
    print(transfer.plain(result))
    print()
    for path in written:
        print(path)
    for arm in result.failures:
        print(f"eval transfer: failed: {arm.task}, {arm.optimizer}: {arm.failure}", file=sys.stderr)
    return 0 if len(result.failures) < len(result.arms) else 1


def learned_files(text: str) -> list[str]:
    """``"a,b"`` as paths; a path that holds a comma and exists is one path."""
    if os.path.exists(text):
        return [text]
    paths = [piece.strip() for piece in text.split(",")]
    if not all(paths):
        raise UserError(f'--learned "{text}" is not a list of files: it has an empty piece')
    return paths


def load_learned(path: str | os.PathLike[str]) -> LearnedOptimizer:
    """The learned optimizer in a file.

    Raises:
        UserError: the file cannot be used, its kind is unknown (a plugin is missing), its weights are not that kind's.
    """
    from lo_framework.checkpoint import load_optimizer
    from lo_framework.learned import make_learned

    file = load_optimizer(path)
    try:
        learned = make_learned(file.kind, **file.config)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from None
    own = {name: tuple(x.shape) for name, x in learned.theta().items()}
    if own != {name: tuple(x.shape) for name, x in file.tensors.items()}:
        raise UserError(f"{str(path)!r}: its weights do not fit an optimizer of kind {file.kind!r} with its config")
    learned.load_theta(file.tensors)
    return learned


def label_files(paths: list[str]) -> dict[str, str]:
    """Labels for tables: the kind, and where several are of one kind the part of the path that tells them apart.

    Raises:
        UserError: a file given twice or unreadable.
    """
    from lo_framework.checkpoint import load_optimizer

    kinds = [load_optimizer(path).kind for path in paths]
    parts = [Path(os.path.abspath(path)).with_suffix("").parts for path in paths]
    labels = {}
    for i, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        rivals = [parts[j] for j in range(len(paths)) if j != i and kinds[j] == kind]
        if parts[i] in rivals:
            raise UserError(f"--learned: {path!r} is given twice")
        telling = [word for depth, word in enumerate(reversed(parts[i]), 1) if any(_at(r, depth) != word for r in rivals)]
        labels[f"{kind} {telling[0]}" if telling else kind] = path
    if len(labels) < len(paths):  # one word did not tell three files apart
        labels = {f"{kind} {path}": path for kind, path in zip(kinds, paths, strict=True)}
    return labels


def _at(parts: tuple[str, ...], depth: int) -> str | None:
    return parts[-depth] if depth <= len(parts) else None
