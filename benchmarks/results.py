"""The tables of docs/results.md, when.md, papers.md and nine_cells.md, from the files in results/.

    python -m benchmarks.results                            # make results

A document is prose with blocks between ``<!-- kind: paths -->`` and ``<!-- end -->``. A block's
text comes from the tables of its kind here and from its files alone, so no number is typed; a
test compares. It stands beside the benchmarks because both write what is read in the documents,
and nothing that is installed needs it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_compared import Rows, beside, compared, overview
from benchmarks.results_flat import ceiling, cells, horizon, incentive, incentive_of_rates, lever
from lo_framework.eval.report.table import Table
from lo_framework.eval.statistics import Estimate, mean, paired_difference

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "docs" / name for name in ("results.md", "when.md", "papers.md", "nine_cells.md")
]
GENERAL = "results/general/config.json"  # of the run that `curve` is of
BLOCK = re.compile(r"(<!-- (\w+): (.*?) -->\n).*?(<!-- end -->)", re.S)
METRICS = ("mean_loss", "final_loss", "test_loss")
ESTIMATORS = ("pes", "tbptt")
COSTS = ("time", "memory")
MEASURES = {"λ max": "top_eigenvalue", "h(.1)": "l2.gap(0.1)", "test loss": "test_loss"}
ABSORBED = ("sam", "gsam", "gam")


def transfer(content: Any) -> Rows:
    """Every comparison with a tuned baseline, a row per metric."""
    yield (
        "problem",
        "steps",
        "optimizer",
        "metric",
        "best-of-grid AdamW",
        "difference [95%]",
        "ratio",
        "better on",
        "verdict",
    )
    arms = {(arm["task"], arm["optimizer"]): arm for arm in content["arms"]}
    optimizer = Path(next(iter(content["files"].values()))).parent.name
    for c in content["derived"]["comparisons"]:
        task, metric = c["task"], c["metric"]
        if metric in METRICS:
            arm, difference = arms[task, c["baseline"]], Estimate(**c["difference"])
            tuned = float(mean(arm["runs"][arm["chosen"][metric]]["metrics"][metric]))
            wins = f"{c['improvement']['value'] * difference.n:g} of {difference.n}"
            form = optimizer + " (step tuned)" * c["learned"].endswith("(step tuned)")
            setting = task, content["steps"], form, metric.replace("_", " ")
            yield *setting, tuned, str(difference), f"{c['ratio']:.3g}", wins, c["verdict"]


def score(content: Any) -> Rows:
    """Interquartile means over the held-out problems, and the worst of them."""
    yield "optimizer", "speed-up", "final loss", "test loss", "worst final loss", "early spike"
    for name, means in content["derived"]["overall"].items():
        problems = [p for p in content["derived"]["problems"] if p["optimizer"] == name]
        worst = max(problems, key=lambda p: p["final"])
        between = (interval(means[measure]) for measure in ("speed_up", "final", "test"))
        spike = max(p["spike"] for p in problems)
        yield name, *between, f"{worst['final']:.3g}x ({worst['problem']})", f"{spike:.3g}x"


def curve(content: Any) -> Rows:
    """One optimizer a row, by how long it had been trained where its folder says so."""
    heads = "speed-up", "final loss", "test loss", "worst final loss", "early spike"
    yield "outer steps after quick", *heads
    place = Path(content["provenance"]["command"][-1]).name
    for name, *measures in itertools.islice(score(content), 1, None):
        known = {"quick": "0", "general": str(read(GENERAL)["outer_steps"])}
        yield known.get(name, place.lstrip("0")), *measures


def problems(content: Any) -> Rows:
    """The first optimizer's measures on each held-out problem, axis by axis."""
    yield "axis", "problem", "what it is", "steps", "speed-up", "final loss", "test loss"
    described = {problem["name"]: problem for problem in content["problems"]}
    measured = content["derived"]["problems"]
    for row in measured:
        if row["optimizer"] == measured[0]["optimizer"]:
            problem = described[row["problem"]]
            what = f"{problem['optimizee']} on {problem['dataset']}"
            ratios = (f"{row[measure]:.3g}" for measure in ("speed_up", "final", "test"))
            yield problem["axis"], row["problem"], what, problem["steps"], *ratios


def interval(ends: Sequence[float]) -> str:
    value, low, high = (f"{x:.3g}" for x in ends)
    return f"{value} [{low}, {high}]"


def throughput(content: Any) -> Rows:
    yield "estimator", "contender", "inner steps/s, median", "best", "times plain code"
    for kind in ESTIMATORS:
        for label, row in content["headline"][kind].items():
            if isinstance(row, dict):
                speeds = (f"{row[k]:,.0f}" for k in ("median", "best"))
                yield kind, label, *speeds, f"{row['ratio_median']:.1f}x"


def families(content: Any) -> Rows:
    """The best engine for each learned optimizer and problem, beside others in the same rounds."""
    against = "best engine of the peer", "best uncompiled engine of the peer", "jax"
    heads = "times the peer's best", "times the peer's best uncompiled", "times JAX"
    yield "estimator, learned optimizer, problem", "engine", "inner steps/s, median", *heads
    for name, row in content["families"].items():
        if isinstance(row, dict):
            ratios = (row["ratios"].get(f"x {other}") for other in against)
            speed = f"{row['inner steps/s'][row['ours']]['median']:,.0f}"
            engine = row["ours"].removeprefix("ours, ")
            yield name, engine, speed, *(f"{x:.2f}" if x else "" for x in ratios)


def kernels(content: Any) -> Rows:
    """Kernels beside plain code, one case a row."""
    parts = next(iter(content["cases"].values()))
    heads = ("{}, ms", "{}, times as fast as plain")
    yield "kernel", *(head.format(part) for part in parts for head in heads)
    for label, row in content["cases"].items():
        pairs = (x for part in row.values() for x in (part["kernel, ms"], part["times as fast"]))
        yield label, *(f"{x:.2g}" for x in pairs)


def landscape(content: Any) -> Rows:
    """Recordings beside plain calls, one question a row."""
    keys = next(iter(content["cases"].values()))
    yield "of a landscape", *(f"recorded, {key}" if "times" in key else key for key in keys)
    for label, row in content["cases"].items():
        yield label, *(f"{row[key]:.2g}" if "times" in key else f"{row[key]:.1f}" for key in keys)


def programs(content: Any) -> Rows:
    yield "program", "times as fast"
    names = {"evaluation": "eval transfer, here over the peer", "ranks": "two ranks over one"}
    for key, label in names.items():
        if key in content:
            yield label, f"{content[key]['times as fast']:.2f}"


def large(content: Any) -> Rows:
    yield "problem", "AdamW's rate", "final loss", "test loss", "mean loss", "ms a step", "AdamW's"
    for name in content["kept"]:
        result = content[name]
        ratios = (f"{m:.2f}x [{a:.2f}, {b:.2f}]" for m, a, b in result["ratios"].values())
        costs = (mean([x["seconds a step"] for x in result[o]]) for o in ("learned", "adamw"))
        yield name, f"{result['rate']:g}", *ratios, *(f"{1e3 * x:.1f}" for x in costs)


def ordinary(content: Any) -> Rows:
    """Ratios to AdamW at 1e-3, and of the GAN its highest losses."""
    yield "problem", "optimizer", "final loss", "worst seed", "highest / first loss", "hand-overs"
    for name, arms in content["problems"].items():
        for arm, result in arms.items():
            keys = ("judge", "maker", "") if name == "gan" else ("median", "worst", "highest")
            values = (f"{result[key]:.3g}" if key else "" for key in keys)
            label = (
                f"{name}, highest loss of discriminator and of generator" if name == "gan" else name
            )
            yield label, arm, *values, result["activations"]
    for arm, total in content["over AdamW"].items():
        yield "IQM, and worst", arm, *(f"{total[key]:.3g}" for key in ("iqm", "worst")), "", ""


def memory(content: Any) -> Rows:
    yield "estimator", "shortest unroll", "MiB", "longest", "MiB", "grows as"
    for label, points in content["bytes"].items():
        ends = (x for t, b in (points[0], points[-1]) for x in (t, f"{b / 2**20:.1f}"))
        yield label, *ends, f"T^{content['exponents'][label]:.2f}"


def meta_steps(content: Any) -> Rows:
    yield "meta step of MetaAdamW", "passes (one forward and backward)"
    for label, row in content["meta_step"]["rows"].items():
        yield label, f"{row['passes']:.1f}"


def steps(content: Any) -> Rows:
    sizes = content["sizes"]
    yield "times AdamW(foreach=True)", *sizes, "bytes of state per parameter"
    for label in next(iter(sizes.values()))["optimizers"]:
        rows = [size["optimizers"][label] for size in sizes.values()]
        ratios = (f"{row['time / AdamW foreach']:.2f}" for row in rows)
        yield label, *ratios, f"{rows[-1]['state_bytes_per_parameter']:.0f}"


def costs(content: Any) -> Rows:
    tasks = content["optimizees"]
    yield "regularizer", "extra gradients", *(f"{task} {what}" for task in tasks for what in COSTS)
    for rows in zip(*tasks.values()):
        ratios = (f"{row[f'{what}_ratio']:.2f}" for row in rows for what in COSTS)
        yield rows[0]["regularizer"], f"{rows[0]['extra_gradients']:g}", *ratios


def robustness(content: Any) -> Rows:
    """Best and worst mean final loss over the grid of first step sizes."""
    yield "problem", "optimizer", "best final loss", "at", "worst", "at", "worst / best"
    for line in content["lines"]:
        means = [float(mean(x)) for x in line["metrics"]["final_loss"]]
        low, high = min(means), max(means)
        ends = (x for m in (low, high) for x in (m, f"{content['lrs'][means.index(m)]:.3g}"))
        yield line["task"], line["optimizer"], *ends, f"{high / low:.3g}x"


def sharpness(content: Any) -> Rows:
    """Differences to the control at matched training loss, paired by seed."""
    yield "problem", "measure", *(f"{name} absorbed" for name in ABSORBED)
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in sorted(content, key=lambda row: row["seed"]):
        for column in MEASURES.values():
            if row["place"] == "matched" and row.get(column):
                values[row["task"], column, row["optimizer"]].append(float(row[column]))
    for task in dict.fromkeys(row["task"] for row in content):
        for label, column in MEASURES.items():
            control, *arms = (
                values[task, column, f"attention-mlp {name}"] for name in ("control", *ABSORBED)
            )
            if control:
                yield task, label, *(str(paired_difference(arm, control)) for arm in arms)


# What a block of each kind shows before the commands that made its files.
KINDS: dict[str, tuple[Callable[[Any], Rows], ...]] = {
    **{
        f.__name__: (f,)
        for f in (
            transfer,
            score,
            curve,
            problems,
            throughput,
            families,
            kernels,
            landscape,
            programs,
            large,
            ordinary,
            memory,
            costs,
            robustness,
            sharpness,
            ceiling,
            cells,
            horizon,
            lever,
        )
    },
    "compared": (overview, compared),
    "incentive": (incentive, incentive_of_rates),
    "steps": (meta_steps, steps),
    "origin": (),
    "report": (),
}


def read(path: str) -> Any:
    """JSON, or the rows of a CSV file."""
    text = (ROOT / path).read_text("utf-8")
    return [*csv.DictReader(text.splitlines())] if path.endswith(".csv") else json.loads(text)


def tables(kind: str, paths: list[str]) -> Iterator[str]:
    """A table in Markdown from all files, for every table of the kind."""
    for make in KINDS[kind]:
        parts = [[*make(read(path))] for path in paths]
        if make is overview:
            parts = [beside(parts)]
        table = Table(*parts[0][0])
        rows = [row for _, *rest in parts for row in rest]
        for row in sorted(rows, key=lambda row: int(row[0])) if make is curve else rows:
            table.add(*row)
        yield table.markdown()
    if kind == "report":  # its first table
        lines = (ROOT / paths[0]).read_text("utf-8").splitlines()
        inside = itertools.dropwhile(lambda line: not line.startswith("|"), lines)
        yield "\n".join(itertools.takewhile(lambda line: line.startswith("|"), inside))


def origin(paths: list[str]) -> str:
    """The commands that made the files, as a block of code, with their versions and machines."""
    commands: dict[str, None] = {}
    notes: dict[str, None] = {}
    for path in paths:
        if path.endswith(".json"):
            content = read(path)
            source = content.get("provenance", content)
            command = source["command"]
            if not isinstance(command, str):
                command = f"{command[0]} {shlex.join(command[1:])}"
            place = source.get("machine", source)
            machine = place.get("processor") or place["platform"]
            day = (source.get("date") or source["time"])[:10]
            notes[f"{day}, torch {source['versions']['torch']}, {machine}"] = None
        else:
            command = (ROOT / path).with_name("command.txt").read_text("utf-8").strip()
        commands[command] = None
    return "\n".join(["```console", *commands, "```", *([""] if notes else []), *notes])


def block(match: re.Match[str]) -> str:
    paths = match[3].split()
    return f"{match[1]}\n" + "\n\n".join([*tables(match[2], paths), origin(paths), match[4]])


def fill(text: str) -> str:
    """The document with every block written anew."""
    return BLOCK.sub(block, text)


if __name__ == "__main__":
    # There are no options: one that is given is refused.
    kept = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=kept).parse_args()
    for document in DOCUMENTS:
        document.write_text(fill(document.read_text("utf-8")), "utf-8")
        print(f"wrote {document}")
