"""The tables of docs/results.md, from the files in results/.

    python -m benchmarks.results                            # make results

The document is prose with blocks between ``<!-- kind: paths -->`` and ``<!-- end -->``. A block's
text comes from the function of its kind here and from its files alone, so no number is typed; a
test compares. It stands beside the benchmarks because both write what is read in the documents,
and nothing that is installed needs it.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lo_framework.eval.report.table import Table
from lo_framework.eval.statistics import Estimate, mean, paired_difference

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "results.md"
BLOCK = re.compile(r"(<!-- (\w+): (.*?) -->\n).*?(<!-- end -->)", re.S)
METRICS = ("mean_loss", "final_loss", "test_loss")


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text("utf-8"))


def origin(*paths: str) -> str:
    """The commands that made the files, as a block of code, with their versions and machines."""
    commands: list[str] = []
    notes: dict[str, None] = {}
    for path in paths:
        if path.endswith(".json"):
            content = read(path)
            source = content.get("provenance", content)
            command = source["command"]
            if not isinstance(command, str):
                first, *rest = command
                command = f"{first} {shlex.join(rest)}"
            place = source.get("machine", source)
            machine = place.get("processor") or place["platform"]
            day = (source.get("date") or source["time"])[:10]
            notes[f"{day}, torch {source['versions']['torch']}, {machine}"] = None
        else:
            command = (ROOT / path).read_text("utf-8").strip()
        commands.append(command)
    return "\n".join(["```bash", *dict.fromkeys(commands), "```", *([""] if notes else []), *notes])


def show(table: Table, *paths: str) -> str:
    return f"{table.markdown()}\n\n{origin(*paths)}"


def name(path: str) -> str:
    return Path(path).parent.name


def transfer(*paths: str) -> str:
    """Every comparison with a tuned baseline, a row per metric."""
    heads = "problem|steps|optimizer|metric|best-of-grid AdamW|difference [95%]|ratio|better on"
    table = Table(*heads.split("|"), "verdict")
    for path in paths:
        content = read(path)
        arms = {(arm["task"], arm["optimizer"]): arm for arm in content["arms"]}
        optimizer = name(next(iter(content["files"].values())))
        for c in content["derived"]["comparisons"]:
            task, metric = c["task"], c["metric"]
            if metric in METRICS:
                arm, difference = arms[task, c["baseline"]], Estimate(**c["difference"])
                tuned = float(mean(arm["runs"][arm["chosen"][metric]]["metrics"][metric]))
                wins = f"{c['improvement']['value'] * difference.n:g} of {difference.n}"
                cells = task, content["steps"], optimizer, metric.replace("_", " "), tuned
                ratio = f"{c['ratio']:.3g}"
                table.add(*cells, str(difference), ratio, wins, c["verdict"])
        table.rule()
    return show(table, *paths)


def throughput(path: str) -> str:
    table = Table("estimator", "contender", "inner steps/s, median", "best", "times plain code")
    for kind in ("pes", "tbptt"):
        for label, row in read(path)["headline"][kind].items():
            if isinstance(row, dict):
                figures = (f"{row[k]:,.0f}" for k in ("median", "best"))
                table.add(kind, label, *figures, f"{row['ratio_median']:.1f}x")
    return show(table, path)


def memory(path: str) -> str:
    content = read(path)
    table = Table("estimator", "shortest unroll", "MiB", "longest", "MiB", "grows as")
    for label, points in content["bytes"].items():
        ends = [x for t, b in (points[0], points[-1]) for x in (t, f"{b / 2**20:.1f}")]
        table.add(label, *ends, f"T^{content['exponents'][label]:.2f}")
    return show(table, path)


def steps(path: str) -> str:
    content = read(path)
    sizes = content["sizes"]
    table = Table("times AdamW(foreach=True)", *sizes, "bytes of state per parameter")
    for label in next(iter(sizes.values()))["optimizers"]:
        rows = [size["optimizers"][label] for size in sizes.values()]
        ratio = [f"{row['time / AdamW foreach']:.2f}" for row in rows]
        table.add(label, *ratio, f"{rows[-1]['state_bytes_per_parameter']:.0f}")
    meta = Table("meta step of MetaAdamW", "passes (one forward and backward)")
    for label, row in content["meta_step"]["rows"].items():
        meta.add(label, f"{row['passes']:.1f}")
    return f"{meta.markdown()}\n\n{show(table, path)}"


def costs(path: str) -> str:
    content = read(path)["optimizees"]
    heads = [f"{task} {what}" for task in content for what in ("time", "memory")]
    table = Table("regularizer", "extra gradients", *heads)
    for rows in zip(*content.values()):
        cells = [f"{r[f'{what}_ratio']:.2f}" for r in rows for what in ("time", "memory")]
        table.add(rows[0]["regularizer"], f"{rows[0]['extra_gradients']:g}", *cells)
    return show(table, path)


def robustness(*paths: str) -> str:
    """Best and worst mean final loss over the grid of first step sizes."""
    table = Table("problem", "optimizer", "best final loss", "at", "worst", "at", "worst / best")
    for path in paths:
        content = read(path)
        for line in content["lines"]:
            means = [float(mean(x)) for x in line["metrics"]["final_loss"]]
            ends = min(means), max(means)
            cells = [x for m in ends for x in (m, f"{content['lrs'][means.index(m)]:.3g}")]
            table.add(line["task"], line["optimizer"], *cells, f"{ends[1] / ends[0]:.3g}x")
    return show(table, *paths)


def sharpness(*paths: str) -> str:
    """Differences to the control at matched training loss, paired by seed."""
    measures = {"λ max": "top_eigenvalue", "h(.1)": "l2.gap(0.1)", "test loss": "test_loss"}
    arms = ["attention-mlp sam", "attention-mlp gsam", "attention-mlp gam"]
    table = Table("problem", "measure", *(arm.split()[-1] + " absorbed" for arm in arms))
    for path in paths:
        with (ROOT / path).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["place"] == "matched"]
        for task in dict.fromkeys(row["task"] for row in rows):
            for label, column in measures.items():
                values: dict[str, list[float]] = defaultdict(list)
                for row in sorted(rows, key=lambda row: row["seed"]):
                    if row["task"] == task and row.get(column):
                        values[row["optimizer"]].append(float(row[column]))
                control = values["attention-mlp control"]
                if control:
                    table.add(
                        task, label, *(str(paired_difference(values[a], control)) for a in arms)
                    )
    return show(table, *(str(Path(path).with_name("command.txt")) for path in paths))


def report(path: str, command: str) -> str:
    """The first table of a report in Markdown."""
    lines = (ROOT / path).read_text("utf-8").splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("|"))
    end = next(k for k, line in enumerate(lines) if k > start and not line.startswith("|"))
    return "\n".join([*lines[start:end], "", origin(command)])


KINDS: dict[str, Callable[..., str]] = {
    f.__name__: f
    for f in (
        transfer,
        throughput,
        memory,
        steps,
        costs,
        robustness,
        sharpness,
        report,
        origin,
    )
}


def fill(text: str) -> str:
    """The document with every block written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{KINDS[m[2]](*m[3].split())}\n\n{m[4]}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(fill(DOCUMENT.read_text("utf-8")), "utf-8")
    print(f"wrote {DOCUMENT}")
